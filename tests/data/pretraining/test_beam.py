"""Preparation on Beam's DirectRunner: the bytes of the local runner, resumed after a kill; what is refused."""

import gzip
import hashlib
import importlib.util
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest
from ml_collections import ConfigDict

from bert_jax.config import UserError
from bert_jax.data.pretraining import parts
from bert_jax.data.pretraining.prepare import prepare
from bert_jax.files import only_writer
from experiments.base import get_config

needs_beam = pytest.mark.skipif(importlib.util.find_spec("apache_beam") is None, reason="needs Apache Beam")
# Beam's own, whatever its version; warnings of this package stay errors.
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("DeprecationWarning", "FutureWarning")]
_TWO_PROCESSES = "--direct_num_workers=2 --direct_running_mode=multi_processing"
LETTERS = "abcdefghijklmnopqrst"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six files, one of them compressed, 600 documents, some of them twice; 1.3 MB."""
    folder, rng = tmp_path_factory.mktemp("corpus"), Random(0)
    words = ["".join(rng.choices(LETTERS, k=rng.randrange(2, 9))) for _ in range(2_000)]
    for number in range(6):
        texts = []
        for index in range(100):
            sentences = (rng.choices(words, k=rng.randrange(3, 30)) for _ in range(rng.randrange(2, 40)))
            texts.append("\n".join(" ".join(sentence).capitalize() + "." for sentence in sentences))
            texts += texts[-1:] * (index % 20 == 0)
        content = ("\n\n".join(texts) + "\n").encode()
        name = f"{number}.txt" + ".gz" * (number == 3)
        (folder / name).write_bytes(gzip.compress(content) if number == 3 else content)
    return folder


def make_data(folder: Path, prepared: Path, runner: str, **changes) -> ConfigDict:
    data = get_config().data
    data.update(corpus="text", files=f"{folder}/*.txt*", prepared=str(prepared), runner=runner, sequence_length=32)
    data.update(vocab_size=500, vocab_sample_megabytes=1, workers=1, validation_share=0.05)
    data.update(changes)
    return data


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@needs_beam
@pytest.mark.parametrize(
    "changes",
    [
        {},  # the vocabulary is learned on half of the corpus
        {"tokenizer": "unigram", "validation_share": 0.0, "clean": "prose", "deduplicate": True},
        pytest.param(
            {"beam_options": "--direct_num_workers=2 --direct_running_mode=multi_processing"}, marks=pytest.mark.slow
        ),
    ],
)
def test_beam_writes_the_bytes_of_the_local_runner(tmp_path: Path, folder: Path, monkeypatch, changes: dict[str, str]):
    monkeypatch.setattr(parts, "_PART_BYTES", (1 << 18, 1 << 18))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # of the worker processes
    local = make_data(folder, tmp_path / "local", "local", **{k: v for k, v in changes.items() if k != "beam_options"})
    prepare(local, 0, progress=False)
    prepared = prepare(make_data(folder, tmp_path / "beam", "beam", **changes), 0, progress=False)
    assert prepared.num_records("train") > 10_000
    assert digests(tmp_path / "beam") == digests(tmp_path / "local")


@needs_beam
@pytest.mark.parametrize("first", ["local", "beam"])
def test_what_one_runner_prepared_the_other_finds(tmp_path: Path, folder: Path, first: str):
    second = {"local": "beam", "beam": "local"}[first]
    one = prepare(make_data(folder, tmp_path / "prepared", first), 0, progress=False)
    written = (one.directory / "manifest.json").stat().st_mtime_ns
    other = prepare(make_data(folder, tmp_path / "prepared", second), 0, progress=False)
    assert other.directory == one.directory
    assert (other.directory / "manifest.json").stat().st_mtime_ns == written


@needs_beam
def test_parts_that_were_finished_before_a_kill_are_not_done_again(tmp_path: Path, folder: Path, monkeypatch, caplog):
    data = make_data(folder, tmp_path / "killed", "beam")
    script = """
import json, sys, time
from ml_collections import ConfigDict
from bert_jax.data.pretraining import parts
from bert_jax.data.pretraining.prepare import prepare
parts._PART_BYTES = (1 << 18, 1 << 18)
store = parts.store
def slow_store(path, arrays):
    store(path, arrays)
    time.sleep(0.3 * path.name.endswith("done"))  # so that the kill finds some parts finished
parts.store = slow_store
prepare(ConfigDict(json.loads(sys.argv[1])), 0, progress=False)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", script, data.to_json()], env=environment)
    try:
        while len(finished := list((tmp_path / "killed").glob(".*.beam/*.done"))) < 2:
            assert process.poll() is None, "it ended before the kill"
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not [path for path in (tmp_path / "killed").iterdir() if not path.name.startswith(".")]

    monkeypatch.setattr(parts, "_PART_BYTES", (1 << 18, 1 << 18))
    stored, store = [], parts.store
    monkeypatch.setattr(parts, "store", lambda path, arrays: (stored.append(path.name), store(path, arrays)))
    with caplog.at_level(logging.INFO):
        prepared = prepare(data, 0, progress=False)
    again = {name for name in stored if name.endswith("done")}
    assert not [name for name in stored if name.endswith("index")] and again
    assert not again & {path.name for path in finished} and len(again) + len(finished) <= 6
    assert "stage index: 6 of 6 parts are finished" in caplog.text
    assert [path.name for path in (tmp_path / "killed").iterdir()] == [prepared.directory.name]  # nothing is left
    local = prepare(make_data(folder, tmp_path / "local", "local"), 0, progress=False)
    assert digests(prepared.directory) == digests(local.directory)


@needs_beam
def test_a_file_that_is_wrong_inside_is_named_in_one_line(tmp_path: Path):
    (tmp_path / "good.txt").write_text("One sentence here.\nAnother one.\n")
    (tmp_path / "wrong.jsonl").write_text('{"text": "One."}\n{"text": \n')
    data = make_data(tmp_path, tmp_path / "prepared", "beam", corpus="jsonl", files=f"{tmp_path}/*.jsonl")
    with pytest.raises(UserError, match=rf"^{re.escape(str(tmp_path))}/wrong\.jsonl:2: not a whole JSON object[^\n]*$"):
        prepare(data, 0, progress=False)


@needs_beam
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("--runner=Nonsense", "Nonsense"),
        ("--nonsense=1", "DirectRunner has no option --nonsense=1"),
        ("surplus", "DirectRunner has no option surplus"),
        ("--direct_num_workers=two", "invalid int value: 'two'"),
        ("--runner=DataflowRunner", "project"),
        ("--runner='", "No closing quotation"),
    ],
)
def test_options_that_beam_refuses(tmp_path: Path, folder: Path, options: str, reason: str):
    with pytest.raises(UserError, match=rf"^data\.beam_options={re.escape(repr(options))}: [^\n]*{reason}[^\n]*$"):
        prepare(make_data(folder, tmp_path, "beam", beam_options=options), 0, progress=False)
    assert list(tmp_path.iterdir()) == []


@needs_beam
def test_a_pipeline_that_fails_is_one_line(tmp_path: Path, folder: Path, monkeypatch):
    monkeypatch.setattr(parts, "hash_of", lambda document, seed: 1 // 0)
    with pytest.raises(UserError, match=r"^data\.beam_options='': the pipeline failed \([^\n]*zero \[while[^\n]*$"):
        prepare(make_data(folder, tmp_path, "beam"), 0, progress=False)


@needs_beam
def test_a_folder_in_use(tmp_path: Path, folder: Path, monkeypatch):
    monkeypatch.setattr("bert_jax.data.pretraining.beam.Preparation", lambda *_: 1 // 0)
    data = make_data(folder, tmp_path / "prepared", "beam", beam_temp=str(tmp_path / "temp"))
    with pytest.raises(ZeroDivisionError):
        prepare(data, 0, progress=False)
    (kept,) = (tmp_path / "temp").iterdir()
    with only_writer(kept), pytest.raises(UserError, match=rf"^{kept}: in use by process {os.getpid()} on [^\n]*$"):
        prepare(data, 0, progress=False)


def test_what_is_missing_or_does_not_belong_together(tmp_path: Path, folder: Path, monkeypatch):
    with pytest.raises(UserError, match=r"^data\.beam_options and data\.beam_temp belong to data\.runner=beam"):
        prepare(make_data(folder, tmp_path, "local", beam_options="--runner=DirectRunner"), 0, progress=False)
    find_spec = importlib.util.find_spec
    with monkeypatch.context() as patched:
        patched.setattr(importlib.util, "find_spec", lambda name: None if name == "apache_beam" else find_spec(name))
        with pytest.raises(UserError, match=r"^data\.runner=beam needs Apache Beam.*pip install -e '\.\[beam\]'$"):
            prepare(make_data(folder, tmp_path, "beam"), 0, progress=False)
        patched.setattr(importlib.util, "find_spec", lambda name: object())
        with pytest.raises(UserError, match=r"^data\.masking=static .*data\.runner=local"):
            prepare(make_data(folder, tmp_path, "beam", masking="static"), 0, progress=False)
