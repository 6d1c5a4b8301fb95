"""The bytes of a record against the protobuf library, and reading them from more shards than may be open."""

import resource
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.data.pretraining import records
from bert_jax.data.pretraining.prepare import prepare
from bert_jax.data.pretraining.records import Records, encode_record
from experiments.base import get_config


@settings(deadline=None)  # the first example imports the library
@given(st.integers(0, 2**63 - 1), st.integers(0, 300), st.integers(0, 20_000))
def test_records_are_the_bytes_of_the_protobuf_library(number: int, short: int, long: int):
    from tensorflow_datasets.proto.tf_example_generated_pb2 import Example  # pyright: ignore[reportAttributeAccessIssue]

    tokens, lengths = np.arange(long, dtype="<u2"), np.arange(short, dtype="<u2")
    example = Example()
    feature = example.features.feature
    feature["tokens"].bytes_list.value.append(tokens.tobytes())
    feature["sentence_lengths"].bytes_list.value.append(lengths.tobytes())
    feature["document"].int64_list.value.append(number)
    record = {"tokens": tokens, "sentence_lengths": lengths, "document": number}
    assert encode_record(record) == example.SerializeToString(deterministic=True)


@pytest.mark.parametrize("most", [1, 3, 100])
def test_shards_are_closed_and_opened_again(most: int, topics: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("bert_jax.data.pretraining.prepare._shard_bytes", lambda corpus: 2_000)
    data = get_config().data
    data.update(corpus="text", files=str(topics), prepared=str(tmp_path), vocab_size=600, sequence_length=32, workers=1)
    prepared = prepare(data, 0, progress=False)
    monkeypatch.setattr(records, "_MAX_OPEN_SHARDS", most)
    source = prepared.source("train")
    shards = sum(shard["split"] == "train" for shard in prepared.manifest["shards"])
    assert shards > 10
    order = np.random.default_rng(0).permutation(len(source)).tolist()
    found = {index: source[index] for index in order}
    in_order = Records(source.directory, "train", source.fields, source.counts)
    for index in range(len(source)):
        np.testing.assert_array_equal(found[index]["tokens"], in_order[index]["tokens"])
        assert found[index]["chunk_index"] == in_order[index]["chunk_index"]
    assert len(source._readers) == min(most, shards)


@pytest.mark.parametrize(
    ("soft", "hard", "allowed", "raised"),
    [
        (10_000, 10_000, 300, 10_000),
        (400, 10_000, 300, 556),
        (400, 500, 250, 500),
        (100, 100, 50, 100),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 300, resource.RLIM_INFINITY),
    ],
)
def test_the_limit_of_open_files_is_kept(soft, hard, allowed, raised, monkeypatch: pytest.MonkeyPatch):
    limits = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: limits.append(pair))
    assert records._file_handles(300) == allowed
    assert limits[-1] == (raised, hard)
