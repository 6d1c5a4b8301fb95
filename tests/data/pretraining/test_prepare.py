"""Preparation: what lies in the folder, that nothing but the input decides it, and that a half dataset never shows."""

import hashlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from bert_jax.config import UserError
from bert_jax.data.pretraining import chunks
from bert_jax.data.pretraining.prepare import prepare
from bert_jax.data.pretraining.prepared import PreparedCorpus, open_prepared
from bert_jax.data.pretraining.records import DATASET_NAME
from bert_jax.data.pretraining.report import Statistics, make_report, report_text
from bert_jax.data.pretraining.splits import SPLITS, split_documents
from bert_jax.data.pretraining.workers import in_order
from bert_jax.data.text.corpus import Document
from experiments.base import get_config

WORDS = [
    "sun",
    "moon",
    "star",
    "rain",
    "snow",
    "wind",
    "tree",
    "leaf",
    "stone",
    "river",
    "lake",
    "hill",
    "road",
    "door",
]


def make_corpus(path: Path, documents: int = 60, sentences: int = 12, seed: int = 0) -> list[list[str]]:
    """Random documents, one sentence a line, blank lines between them."""
    rng = Random(seed)
    texts = [
        [
            " ".join(rng.choices(WORDS, k=rng.randrange(3, 14))).capitalize() + f" {number}."
            for number in range(sentences)
        ]
        for _ in range(documents)
    ]
    path.write_text("\n\n".join("\n".join(document) for document in texts) + "\n", "utf-8")
    return texts


def make_config(tmp_path: Path, **changes) -> ConfigDict:
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *WORDS, *NUMBERS])
    )
    data = get_config().data
    data.update(corpus="text", files=str(tmp_path / "corpus.txt"), prepared=str(tmp_path / "prepared"))
    data.update(vocab_file=str(tmp_path / "vocab.txt"), sequence_length=32, workers=1)
    data.update(validation_share=0.1, test_share=0.1, **changes)
    return data


NUMBERS = [str(number) for number in range(12)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[list[str]], ConfigDict, PreparedCorpus]:
    folder = tmp_path_factory.mktemp("corpus")
    texts = make_corpus(folder / "corpus.txt")
    data = make_config(folder)
    return texts, data, prepare(data, 0, progress=False)


def test_records_hold_every_token_of_every_document_in_order(corpus):
    texts, _, prepared = corpus
    expected = {tuple(tokens_of(text, prepared)) for text in texts}
    found = []
    for split in SPLITS:
        for records in by_document(prepared, split):
            assert [r["chunk_index"] for r in records] == list(range(len(records)))
            assert {r["num_chunks"] for r in records} == {len(records)}
            for record in records[:-1]:
                lengths = record["sentence_lengths"]
                assert lengths.sum() == len(record["tokens"]) >= 29 > lengths[:-1].sum()
            found.append(tuple(np.concatenate([r["tokens"] for r in records]).tolist()))
    assert len(found) == len(texts) and set(found) == expected
    assert [len(by_document(prepared, split)) for split in SPLITS] == [
        prepared.manifest["splits"][split]["documents"] for split in SPLITS
    ]


def test_tfds_reads_the_same_records(corpus):
    import tensorflow_datasets as tfds

    prepared = corpus[2]
    source, mine = (
        tfds.builder_from_directory(str(prepared.directory)).as_data_source("train"),
        prepared.source("train"),
    )
    assert len(source) == len(mine) == prepared.num_records("train")
    for index in range(len(source)):
        assert set(source[index]) == set(mine[index])
        for key, value in source[index].items():
            np.testing.assert_array_equal(value, mine[index][key])


def test_bytes_do_not_depend_on_the_number_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(chunks, "_BLOCK", 1 << 16)
    make_corpus(tmp_path / "corpus.txt", documents=1_500, sentences=14)  # 1 MB: sixteen blocks
    digests = []
    for workers in (1, 2, 3):
        data = make_config(tmp_path, workers=workers)
        data.prepared = str(tmp_path / f"prepared-{workers}")
        prepared = prepare(data, 0, progress=False)
        files = sorted(path for path in prepared.directory.rglob("*") if path.is_file())
        digests.append([(p.name, hashlib.sha256(p.read_bytes()).hexdigest()) for p in files])
    assert sum(name.startswith(f"{DATASET_NAME}-train") for name, _ in digests[0]) >= 4
    assert digests[0] == digests[1] == digests[2]


def test_reused_when_nothing_changed_and_rebuilt_when_something_did(tmp_path: Path):
    make_corpus(tmp_path / "corpus.txt")
    data = make_config(tmp_path)
    first = prepare(data, 0, progress=False)
    stamp = (first.directory / "manifest.json").stat().st_mtime_ns
    again = prepare(data, 0, progress=False)
    assert again.directory == first.directory and (again.directory / "manifest.json").stat().st_mtime_ns == stamp
    folders = {first.directory}
    data.pairing = "sop"  # decided when a record is read
    assert prepare(data, 0, progress=False).directory == first.directory
    data.sequence_length = 16
    folders.add(prepare(data, 0, progress=False).directory)
    folders.add(prepare(data, 1, progress=False).directory)
    data.lowercase = False
    folders.add(prepare(data, 1, progress=False).directory)
    make_corpus(tmp_path / "corpus.txt", seed=1)
    folders.add(prepare(data, 1, progress=False).directory)
    assert len(folders) == 5 and all(open_prepared(folder) for folder in folders)


def test_a_vocabulary_trained_here_is_saved_and_reused(tmp_path: Path):
    make_corpus(tmp_path / "corpus.txt")
    data = make_config(tmp_path)
    data.update(vocab_file="", vocab_size=60)
    prepared = prepare(data, 0, progress=False)
    assert open_prepared(prepared.directory).tokenizer.content_hash == prepared.manifest["tokenizer_hash"]
    assert prepare(data, 0, progress=False).directory == prepared.directory


@pytest.mark.parametrize("damage", ["manifest gone", "manifest cut", "shard gone", "shard cut", "tokenizer", "format"])
def test_open_refuses_what_is_not_whole_and_prepare_repairs_it(tmp_path: Path, damage: str):
    make_corpus(tmp_path / "corpus.txt")
    data = make_config(tmp_path)
    directory = prepare(data, 0, progress=False).directory
    manifest, shard = directory / "manifest.json", next(directory.glob("*train*"))
    if damage == "manifest gone":
        manifest.unlink()
    elif damage == "manifest cut":
        manifest.write_text(manifest.read_text()[:50])
    elif damage == "shard gone":
        shard.unlink()
    elif damage == "shard cut":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif damage == "format":
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 0}))
    else:
        file = directory / "tokenizer" / "tokenizer.json"
        file.write_text(file.read_text().replace('"moon"', '"mars"'))
    with pytest.raises(UserError) as caught:
        open_prepared(directory)
    assert str(directory) in str(caught.value) and "prepare it" in str(caught.value) and "\n" not in str(caught.value)
    assert open_prepared(prepare(data, 0, progress=False).directory).num_records("train") > 0


def test_a_damaged_record_names_its_shard(tmp_path: Path):
    make_corpus(tmp_path / "corpus.txt")
    prepared = prepare(make_config(tmp_path), 0, progress=False)
    shard = next(prepared.directory.glob("*train*"))
    content = bytearray(shard.read_bytes())
    content[200:3000] = bytes(2800)
    shard.write_bytes(content)
    source = prepared.source("train")
    with pytest.raises(UserError, match=f"corrupt or truncated shard .*{shard.name}.*delete"):
        for index in range(len(source)):
            _ = source[index]


def test_a_killed_preparation_leaves_nothing_that_opens(tmp_path: Path):
    make_corpus(tmp_path / "corpus.txt", documents=6_000, sentences=14)
    data = make_config(tmp_path, workers=2)
    script = tmp_path / "run.py"
    script.write_text(
        "import sys, json\nfrom ml_collections import ConfigDict\n"
        "from bert_jax.data.pretraining.prepare import prepare\n"
        "if __name__ == '__main__':\n    prepare(ConfigDict(json.loads(sys.argv[1])), 0, progress=False)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    process = subprocess.Popen([sys.executable, str(script), data.to_json()], env=environment, start_new_session=True)
    partial = wait_for(lambda: next(iter(Path(data.prepared).glob(".*.partial-*/train-*")), None))
    process.kill()
    process.wait()
    assert partial.exists()
    for folder in Path(data.prepared).iterdir():
        with pytest.raises(UserError):
            open_prepared(folder)
    wait_for(lambda: not session_members(process.pid))  # the workers notice and end
    prepared = prepare(data, 0, progress=False)
    assert [folder.name for folder in Path(data.prepared).iterdir()] == [prepared.directory.name]


def test_equal_documents_share_a_split_and_small_corpora_fill_every_split():
    rng = Random(0)
    for count in (1, 2, 3, 6, 10, 40, 300):
        texts = [f"text {rng.randrange(10**9)}" for _ in range(count)]
        documents = [Document("", text, True) for text in [*texts, *texts, *texts[:3]]]
        assigned = list(split_documents(documents, count, 0.01, 0.01))
        assert sorted(d.text for _, d in assigned) == sorted(d.text for d in documents)
        splits = {text: {split for split, d in assigned if d.text == text} for text in texts}
        assert all(len(found) == 1 for found in splits.values())
        sizes = {name: sum(found == {name} for found in splits.values()) for name in SPLITS}
        assert sizes["train"] >= min(2, count)
        assert count < 6 or min(sizes.values()) >= 2


def test_shares_of_documents_are_kept():
    documents = (Document("", str(number), True) for number in range(20_000))
    found = [split for split, _ in split_documents(documents, 0, 0.05, 0.1)]
    assert abs(found.count("validation") - 1_000) < 125 and abs(found.count("test") - 2_000) < 170  # 4 deviations
    alone = split_documents((Document("", str(number), True) for number in range(500)), 0, 0.0, 0.0)
    assert {split for split, _ in alone} == {"train"}


@given(st.lists(st.integers(0, 100), max_size=40), st.integers(1, 40))
def test_chunks_lose_no_token(lengths: list[int], target: int):
    sentences, ranges = chunks.cut_chunks(lengths, target)
    assert sum(sentences) == sum(lengths) and all(0 < length <= target for length in sentences)
    assert [first for first, _ in ranges] == [0, *(last for _, last in ranges)][: len(ranges)]
    assert not ranges or ranges[-1][1] == len(sentences)
    for first, last in ranges:
        assert sum(sentences[first : last - 1]) < target
        assert sum(sentences[first:last]) >= target or last == len(sentences)


def test_report_counts_unknown_and_repeated(tmp_path: Path):
    texts = make_corpus(tmp_path / "corpus.txt", documents=10)
    body = "\n".join(["Sun moon xyzzy.", *texts[0][:3]])
    (tmp_path / "corpus.txt").write_text(f"{body}\n\n{body}\n", "utf-8")
    data = make_config(tmp_path)
    data.update(validation_share=0.0, test_share=0.0)
    prepared = prepare(data, 0, progress=False)
    report = json.loads((prepared.directory / "report.json").read_text())
    source = prepared.source("train")
    tokens = np.concatenate([source[index]["tokens"] for index in range(len(source))])
    assert report["splits"]["train"]["tokens"] == len(tokens)
    assert report["unknown_share"] == pytest.approx(2 / len(tokens), abs=1e-6)
    assert report["repeated_line_share"] == pytest.approx(4 / 8)
    assert len(report["warnings"]) == 2 and "[UNK]" in report["warnings"][0] and "occurred" in report["warnings"][1]
    assert all(warning in (prepared.directory / "report.txt").read_text() for warning in report["warnings"])


def test_repeated_share_on_a_sample_is_close():
    statistics = Statistics()
    for start in range(0, 400_000, 50_000):
        part = Statistics()
        part.add_lines([str(number % 300_000) for number in range(start, start + 50_000)])
        statistics.merge(part)
    assert statistics.repeated_share() == pytest.approx(0.25, abs=0.01)
    assert "warning" not in report_text(make_report({"train": Statistics()}))


def test_errors_a_user_can_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_corpus(tmp_path / "corpus.txt", documents=1)
    data = make_config(tmp_path)
    with pytest.raises(UserError, match=r"has 1 training document.*pairing=sop"):
        prepare(data, 0, progress=False)
    data.pairing = "none"
    lone = prepare(data, 0, progress=False)
    assert lone.num_records("train") > 0
    with pytest.raises(UserError, match=r"validation split of .* is empty.*validation_share"):
        lone.source("validation")
    data.update(masking="static", pairing="sop")
    with pytest.raises(UserError, match=r"static.*pairing=sop"):
        prepare(data, 0, progress=False)
    data.update(masking="dynamic", prepared=str(tmp_path / "corpus.txt" / "below"))
    with pytest.raises(UserError, match=r"below.text-.*: cannot be written .*set data.prepared"):
        prepare(data, 0, progress=False)
    data.prepared = str(tmp_path / "full")
    monkeypatch.setattr("bert_jax.data.pretraining.records._shard_path", lambda directory, file: Path("/dev/full"))
    with pytest.raises(UserError, match=r"No space left on device.*free the disk"):
        prepare(data, 0, progress=False)
    assert list((tmp_path / "full").iterdir()) == []


def test_two_preparations_at_once_leave_one_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    make_corpus(tmp_path / "corpus.txt", documents=10)
    data = make_config(tmp_path)
    with ThreadPoolExecutor(3) as pool, caplog.at_level(logging.INFO):
        found = list(pool.map(lambda _: prepare(data, 0, progress=False), range(3)))
    assert len({prepared.directory for prepared in found}) == 1
    assert [len(prepared.source("train")) for prepared in found] == [len(found[0].source("train"))] * 3
    assert [folder.name for folder in Path(data.prepared).iterdir()] == [found[0].directory.name]
    assert not (found[0].directory / "lock").exists()
    assert caplog.text.count("million tokens in") == 1  # the others waited for it


def test_an_exception_of_a_worker_that_cannot_be_sent_is_reported():
    with pytest.raises(UserError, match=r"a worker failed: Unsendable"):
        list(in_order(_failing, [0], 2))


def test_a_worker_that_dies_is_reported():
    work = _Deadly()
    block = chunks.Block(0, [("train", Document("", "text", True))], 4)
    with pytest.raises(UserError, match=r"worker died .* block 0 .*-9.*workers"):
        list(in_order(work, [block], 2))


def test_a_script_without_a_main_guard_is_told_so(tmp_path):
    """Its workers import it and call `prepare` themselves; what they are sent is more than a pipe holds."""
    script = f"""
from bert_jax.data.pretraining.prepare import prepare
from experiments import base
data = base.get_config().data
data.update(workers=2, prepared={os.fspath(tmp_path / "prepared")!r}, sequence_length=64)
prepare(data, 0, progress=False)
"""
    (tmp_path / "script.py").write_text(script)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, tmp_path / "script.py"], env=environment, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 1
    assert re.search(r'UserError: a worker died .*exit code 1.*if __name__ == "__main__"', run.stderr), run.stderr
    assert "cannot prepare what it is a worker for" in run.stderr


class Unsendable(Exception):
    """It cannot be made again from its pickle."""

    def __init__(self, number: int, text: str):
        super().__init__(f"{text} {number}")


def _failing(item: int) -> int:
    raise Unsendable(item, "failed")


class _Deadly(chunks.BlockWork):
    def __init__(self) -> None: ...

    def __call__(self, block: chunks.Block) -> chunks.BlockResult:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def tokens_of(text: list[str], prepared: PreparedCorpus) -> list[int]:
    return [token for sentence in prepared.tokenizer.encode_words(text) for token in sentence]


def by_document(prepared: PreparedCorpus, split: str) -> list[list[dict]]:
    source = prepared.source(split)
    groups: dict[int, list[dict]] = {}
    last = None
    for index in range(len(source)):
        record = source[index]
        assert record["document"] == last or record["document"] not in groups  # neighbours
        last = record["document"]
        groups.setdefault(last, []).append(record)
    return list(groups.values())


def wait_for(condition):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.01)
    raise AssertionError("waited a minute in vain")


def session_members(session: int) -> list[int]:
    def stats() -> Iterator[tuple[int, list[str]]]:
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                yield int(path.parent.name), path.read_text().rpartition(")")[2].split()
            except OSError:
                continue

    return [pid for pid, fields in stats() if int(fields[3]) == session and fields[0] != "Z"]
