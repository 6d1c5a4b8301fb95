"""Prepared folders from somebody else: nothing in them is executed, and what is wrong is told in one line."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bert_jax.config import UserError
from bert_jax.data.pretraining.pairs import PairRows, PairSettings
from bert_jax.data.pretraining.prepare import prepare
from bert_jax.data.pretraining.prepared import PreparedCorpus, open_prepared
from bert_jax.data.pretraining.records import Records
from experiments.base import get_config

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedCorpus:
    folder = tmp_path_factory.mktemp("prepared")
    text = "\n\n".join(f"Document {number} begins.\nIt has the number {number}.\nIt ends." for number in range(40))
    (folder / "corpus.txt").write_text(text)
    data = get_config().data
    data.update(corpus="text", files=str(folder / "corpus.txt"), prepared=str(folder), vocab_size=100)
    data.update(sequence_length=32, workers=1)
    return prepare(data, 0, progress=False)


@pytest.fixture
def copy(prepared: PreparedCorpus, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared.directory, tmp_path / "copy"))


def change(path: Path, keys: tuple[str | int, ...], value: object) -> None:
    content = json.loads(path.read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(content))


def test_metadata_of_tfds_is_not_trusted(copy: Path, monkeypatch: pytest.MonkeyPatch):
    """TFDS imports the class that features.json names; reading our own folder must not."""
    module = copy.parent / "planted.py"
    module.write_text(f"open({str(copy.parent / 'executed')!r}, 'w')\nclass Features: pass\n")
    monkeypatch.syspath_prepend(str(copy.parent))
    change(copy / "features.json", ("pythonClassName",), "planted.Features")
    change(copy / "dataset_info.json", ("splits",), [{"name": "train", "filepathTemplate": "/etc/{SPLIT}"}])
    found = open_prepared(copy)
    source = found.source("train")
    assert (
        sum(len(source[index]["tokens"]) for index in range(len(source))) == found.manifest["splits"]["train"]["tokens"]
    )
    assert not (copy.parent / "executed").exists()


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("format",), 2, "manifest.json: format is 2, expected 1"),
        (("format",), True, "format is True, expected an integer"),
        (("masking",), "mixed", "masking is 'mixed', expected dynamic or static"),
        (("settings",), [], r"settings is \[\], expected an object"),
        (("settings", "sequence_length"), -1, "sequence_length is -1, expected at least 1"),
        (("splits", "train"), None, "train is None, expected an object"),
        (("splits", "train", "documents"), 2.5, "documents is 2.5, expected an integer"),
        (("shards", 0, "file"), "../../corpus", "file is '../../corpus', expected corpus-train.array_record-00000-of"),
        (("shards", 0, "file"), "/etc/passwd", "file is '/etc/passwd', expected corpus-train"),
        (("shards", 0, "split"), "other", r"shards\[0\] is .*, expected an object with one of the splits"),
        (("shards", 0, "records"), 0, "records is 0, expected at least 1"),
        (("shards", 0, "bytes"), 10**30, "bytes is a number of many digits, expected an integer of 64 bits"),
    ],
)
def test_what_is_wrong_with_a_manifest(copy: Path, keys, value, message):
    change(copy / "manifest.json", keys, value)
    with pytest.raises(UserError, match=message) as caught:
        open_prepared(copy)
    assert str(caught.value).startswith(str(copy)) and str(caught.value).endswith("prepare it again (--mode=prepare)")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from(["format", "masking", "settings", "splits", "shards", "tokenizer_hash"]), value=json_values)
def test_any_value_in_a_manifest_is_one_line(prepared: PreparedCorpus, tmp_path: Path, key: str, value: object):
    folder = tmp_path / "any"
    if not folder.exists():
        shutil.copytree(prepared.directory, folder)
    (folder / "manifest.json").write_text(json.dumps({**prepared.manifest, key: value}))
    try:
        open_prepared(folder)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert prepared.manifest[key] == value or value == []  # a dataset without shards is empty, not wrong


def test_more_records_than_a_shard_holds_and_a_shard_that_is_gone(copy: Path):
    found = open_prepared(copy)
    count = found.num_records("train")
    more = Records(copy, "train", found.source("train").fields, [count + 5])
    with pytest.raises(UserError, match=r"corrupt or truncated shard .*delete"):
        _ = more[count + 3]
    source = found.source("train")
    shutil.rmtree(copy)
    with pytest.raises(UserError, match="was deleted while it was in use: prepare the dataset again"):
        _ = source[0]


@pytest.mark.parametrize(
    "change", [{"sentence_lengths": [3, 3]}, {"sentence_lengths": []}, {"chunk_index": -4}, {"num_chunks": 9}]
)
def test_records_that_contradict_themselves(change):
    """A crafted shard has right hashes; its numbers may still point anywhere."""
    import numpy as np

    record = {"tokens": np.arange(9), "sentence_lengths": [4, 5], "document": 0, "chunk_index": 0, "num_chunks": 1}
    record = {**record, **change}
    record["sentence_lengths"] = np.asarray(record["sentence_lengths"], np.int64)
    pairs = PairSettings(32, "nsp", 1.0, 0.1, 2, 3, 100)
    for position in range(4):
        try:
            PairRows([record] * 4, pairs, 0)(position)
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert "chunk_index" in change or "num_chunks" in change
