"""The records of a prepared dataset: their TFDS features, their bytes, their writer and their reader.

A dynamic record is a chunk (consecutive whole sentences of one document); a static one is a finished instance of the
original script. Both are `tf.train.Example`s in ArrayRecord, as TFDS writes and reads them; `Records` reads them ten
times as fast, because every feature is either one integer or one array in one bytes field.
"""

import bisect
import contextlib
import functools
import itertools
import os
import resource
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
from google.protobuf.message import DecodeError

from bert_jax.config import Json, UserError
from bert_jax.data.pretraining.splits import SPLITS

DATASET_NAME = "corpus"
# Token ids hardly compress: for English, zstd saves 2 % of the bytes and costs a third of the reading speed.
WRITER_OPTIONS = "group_size:1,uncompressed"
# Rows come from all shards at random, and opening one takes milliseconds. An open one holds a file handle, 40 KB and
# 9 bytes a record.
_MAX_OPEN_SHARDS = 1024
_OTHER_FILES = 256  # handles that the rest of the process may need


def record_fields(masking: str, vocab_size: int) -> dict[str, np.dtype | None]:
    """Returns the fields of a record: name → dtype of a one-dimensional array, or None for a single integer."""
    token = np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<i4")
    length = np.dtype("<u2")
    if masking == "static":
        return {
            "input_ids": token,
            "segment_ids": np.dtype("u1"),
            "masked_lm_positions": length,
            "masked_lm_ids": token,
            "next_sentence_labels": None,
        }
    return {"tokens": token, "sentence_lengths": length, "document": None, "chunk_index": None, "num_chunks": None}


def tfds_features(fields: Mapping[str, np.dtype | None]) -> Any:
    """Returns the same fields as a `tfds.features.FeaturesDict`."""
    import tensorflow_datasets as tfds

    def feature(dtype: np.dtype | None) -> Any:
        if dtype is None:
            return tfds.features.Scalar(dtype=np.int64)
        return tfds.features.Tensor(shape=(None,), dtype=dtype.newbyteorder("="), encoding="bytes")

    return tfds.features.FeaturesDict({name: feature(dtype) for name, dtype in fields.items()})


def encode_record(record: Mapping[str, int | np.ndarray]) -> bytes:
    """Returns a serialized `tf.train.Example`: the bytes of the protobuf library's deterministic serialization.

    Written by hand, since the library takes longer and its import 45 MB of every worker: a map entry for each name, in
    order, of key (field 1) and feature (2), which is a bytes_list (1) or an int64_list (3) of one value.
    """
    features = b""
    for name in sorted(record):
        is_array = isinstance(value := record[name], np.ndarray)
        features += _array_entry(name, value) if is_array else _integer_entry(name, value)
    return b"\x0a" + _sized(features)


def _array_entry(name: str, value: np.ndarray) -> bytes:
    return _entry(name, b"\x0a" + _sized(b"\x0a" + _sized(value.tobytes())))


@functools.lru_cache(maxsize=1 << 12)  # the chunks of a document share its number, and most counts are small
def _integer_entry(name: str, value: int) -> bytes:
    return _entry(name, b"\x1a" + _sized(b"\x0a" + _sized(_varint(value))))


def _entry(name: str, feature: bytes) -> bytes:
    return b"\x0a" + _sized(_key(name) + _sized(feature))


@functools.cache
def _key(name: str) -> bytes:
    return b"\x0a" + _sized(name.encode()) + b"\x12"


def _sized(content: bytes) -> bytes:
    size = len(content)
    return (size.to_bytes() if size < 128 else _varint(size)) + content


def _varint(value: int) -> bytes:
    """Returns `value` ≥ 0 in groups of seven bits, the lowest first; all but the last have the eighth bit set."""
    groups = bytearray()
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def shard_name(split: str, index: int, count: int) -> str:
    """Returns the file name of a shard, which TFDS expects."""
    return f"{DATASET_NAME}-{split}.array_record-{index:05d}-of-{count:05d}"


class ShardWriter:
    """A writer of shards of about `limit` bytes. Raises OSError, where ArrayRecord says RuntimeError for a full
    disk."""

    def __init__(self, directory: Path, limit: int):
        self._directory, self._limit = directory, limit
        self._shards: list[Json] = []  # "split", "file", "records", "size"
        self._open: dict[str, tuple[Any, Json]] = {}  # split → writer, its shard

    def write(self, split: str, records: Iterable[bytes]) -> None:
        with _as_os_error(self._directory):
            for record in records:
                writer, shard = self._open.get(split) or self._begin(split)
                writer.write(record)
                shard["records"] += 1
                shard["size"] += len(record)
                if shard["size"] >= self._limit:
                    self._open.pop(split)
                    writer.close()

    def finish(self) -> list[Json]:
        """Returns the shards as the manifest lists them, with the names that TFDS expects, now that their number is
        known."""
        with _as_os_error(self._directory):
            for writer, _ in self._open.values():
                writer.close()
        named = []
        for split in SPLITS:
            shards = [shard for shard in self._shards if shard["split"] == split]
            for index, shard in enumerate(shards):
                path = self._directory / shard_name(split, index, len(shards))
                os.rename(self._directory / shard["file"], path)
                size = path.stat().st_size
                named.append({"split": split, "file": path.name, "records": shard["records"], "bytes": size})
        return named

    def _begin(self, split: str) -> tuple[Any, Json]:
        from array_record.python.array_record_module import ArrayRecordWriter

        shard = {"split": split, "file": f"{split}-{len(self._shards):06d}", "records": 0, "size": 0}
        writer = ArrayRecordWriter(os.fspath(_shard_path(self._directory, shard["file"])), WRITER_OPTIONS)
        self._shards.append(shard)
        self._open[split] = writer, shard
        return writer, shard


def _shard_path(directory: Path, file: str) -> Path:
    return directory / file


@contextlib.contextmanager
def _as_os_error(directory: Path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise OSError(f"cannot write to {directory}: {error}") from error


class Records:
    """Random access to the records of one split: `records[i]` is a dict whose arrays are read-only.

    `counts` are the numbers of records of its shards. TFDS's own source asks ArrayRecord's thread pool for each record
    (20,000 a second); a reader without parallelism, moved with `seek`, gives 200,000. It can be pickled (and then opens
    its files again), so Grain's worker processes can hold one; threads may share one.
    """

    def __init__(self, directory: Path, split: str, fields: Mapping[str, np.dtype | None], counts: Sequence[int]):
        self.directory, self.split, self.fields, self.counts = Path(directory), split, dict(fields), list(counts)
        self._paths = [str(self.directory / shard_name(split, i, len(counts))) for i in range(len(counts))]
        self._ends = list(itertools.accumulate(counts))
        self._readers: dict[int, Any] = {}
        _example()  # imported before threads read: while TFDS is imported, other threads' imports give lazy modules
        self._max_open = _file_handles(min(len(self._paths), _MAX_OPEN_SHARDS))
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: SupportsIndex) -> Json:
        """Raises UserError naming the shard file if it is damaged, IndexError past the end."""
        index = index.__index__()
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)} in split {self.split!r} of {self.directory}")
        shard = bisect.bisect_right(self._ends, index)
        position = index - (self._ends[shard - 1] if shard else 0)
        try:
            with self._lock:
                reader = self._readers.get(shard) or self._open(shard)
                reader.seek(position)
                serialized = reader.read()
            return _decode(serialized, self.fields)
        except (RuntimeError, IndexError, ValueError, DecodeError) as error:
            path = self._paths[shard]
            if not os.path.exists(path):
                raise UserError(f"{path}: was deleted while it was in use: prepare the dataset again") from error
            where = f"{path} (record {position}; record {index} of split {self.split!r})"
            remedy = f"delete {self.directory} and prepare it again"
            raise UserError(f"corrupt or truncated shard {where}: {error}; {remedy}") from error

    def __reduce__(self):
        return (Records, (self.directory, self.split, self.fields, self.counts))

    def _open(self, shard: int) -> Any:
        """Opens a shard; closes the one opened first when too many are open."""
        from array_record.python.array_record_module import ArrayRecordReader

        if len(self._readers) >= self._max_open:
            self._readers.pop(next(iter(self._readers))).close()
        options = "readahead_buffer_size:0,max_parallelism:1"
        reader = ArrayRecordReader(self._paths[shard], options=options, file_reader_buffer_size=4096)
        return self._readers.setdefault(shard, reader)


def _file_handles(wanted: int) -> int:
    """Returns `wanted`, after raising the limit of open files if need be, or fewer if the process may not have so
    many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft != unlimited and soft < wanted + _OTHER_FILES:
        soft = wanted + _OTHER_FILES if hard == unlimited else min(hard, wanted + _OTHER_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == unlimited else min(wanted, max(soft // 2, soft - _OTHER_FILES))


@functools.cache  # an import statement would take a fifth of `_decode`
def _example() -> Any:
    from tensorflow_datasets.proto.tf_example_generated_pb2 import Example  # pyright: ignore[reportAttributeAccessIssue]

    return Example


def _decode(serialized: bytes, fields: Mapping[str, np.dtype | None]) -> dict[str, Any]:
    feature = _example().FromString(serialized).features.feature
    record: Json = {}
    for name, dtype in fields.items():
        values = feature[name].int64_list.value if dtype is None else feature[name].bytes_list.value
        record[name] = values[0] if dtype is None else np.frombuffer(values[0], dtype)
    return record
