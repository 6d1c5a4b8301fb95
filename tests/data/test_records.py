"""The bytes of a record against the protobuf library."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.data.records import encode_record


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
