"""TensorFlow's checkpoints (`tf.train.Saver`, "V2") without TensorFlow: the tensor bundle, as BERT was published in it.

A bundle is `<prefix>.index`, a LevelDB table of (name → where the tensor lies), and `<prefix>.data-…` with the bare
bytes. Source of the formats: tensorflow/core/util/tensor_bundle, core/lib/io/table, core/protobuf/tensor_bundle.proto.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np

from bert_jax.config import UserError
from bert_jax.training.tensorboard import masked_checksum

# TensorFlow's enum DataType; tensors of these can be read.
_NAMES = {1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 8: "complex64", 9: "int64"}
_NAMES |= {10: "bool", 17: "uint16", 18: "complex128", 19: "float16", 22: "uint32", 23: "uint64"}
DTYPES = {number: np.dtype(name) for number, name in _NAMES.items()} | {14: np.dtype(ml_dtypes.bfloat16)}
# Others that a checkpoint can hold, by TensorFlow's name.
OTHER_DTYPES = {7: "string", 20: "resource", 21: "variant"}

FOOTER_BYTES, TRAILER_BYTES = 48, 5  # of a table; of a block: one byte of compression, four of checksum
MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
FORMAT_VERSION = 1  # the newest there is
MAX_DIMENSIONS = 64  # of a NumPy array
Fields = dict[int, list[int | bytes]]  # of a protobuf message: number → values in order; nested messages are bytes


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies. `crc32c` is masked, as it is stored."""

    dtype: str  # NumPy's name, or TensorFlow's where NumPy has no such type
    shape: tuple[int, ...]
    shard: int
    offset: int  # in bytes
    size: int  # in bytes
    crc32c: int


class _DamagedError(Exception):
    """What is wrong with the bytes of an index; becomes a UserError where the path is known."""


def open_bundle(prefix: str | Path) -> dict[str, Callable[[], np.ndarray]]:
    """Returns for every tensor's name a function that reads it, into memory of its own, and verifies its checksum.

    `prefix` is the path without ".index", such as folder/bert_model.ckpt. Raises UserError as `read_index` does, and
    for a data file that is missing or too short; the functions raise it for a wrong checksum, and for a dtype that
    NumPy does not have (so a string beside the weights does no harm until it is read).
    """
    num_shards, entries = read_index(prefix)
    shards: dict[int, np.ndarray] = {}
    readers = {}
    for name, entry in entries.items():
        path = Path(f"{prefix}.data-{entry.shard:05d}-of-{num_shards:05d}")
        if entry.shard not in shards:
            if not path.is_file():
                raise UserError(f"there is no {path}, where {name} lies; fetch the whole checkpoint")
            is_empty = path.stat().st_size == 0  # it cannot be mapped, and is right if all its tensors are empty
            shards[entry.shard] = np.empty(0, np.uint8) if is_empty else np.memmap(path, np.uint8, "r")
        size, end = shards[entry.shard].size, entry.offset + entry.size
        if end > size:
            raise UserError(f"{path} is too short: {name} ends at byte {end:,}, the file at {size:,}; fetch it again")
        readers[name] = partial(_read_tensor, name, entry, path, shards[entry.shard])
    return readers


def read_index(prefix: str | Path) -> tuple[int, dict[str, Entry]]:
    """Returns the number of data files, and every tensor's entry by its name, sorted by name.

    Raises UserError for an index that is missing or damaged, and for what is not supported: variables partitioned into
    slices, big-endian data, compressed blocks.
    """
    path = Path(f"{prefix}.index")
    if not path.is_file():
        raise UserError(f"there is no {path}; name a TensorFlow checkpoint by its prefix, such as …/bert_model.ckpt")
    try:
        items = _table(path.read_bytes(), path)
        key, header = next(items, (None, b""))
        if key != b"":
            raise _DamagedError("it has no header")
        num_shards = _check_header(_fields(header), path)
        entries = {key: _entry(key, _fields(message), num_shards, path) for key, message in items}
        # Not before all are parsed: the slices of a partitioned variable have binary keys, and come first.
        return num_shards, {key.decode(): entry for key, entry in entries.items()}
    except (_DamagedError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no index of a tensor bundle, or damaged: {error}; fetch it again") from None


def _check_header(header: Fields, path: Path) -> int:
    """BundleHeaderProto {1: num_shards, 2: endianness, 3: VersionDef {2: min_consumer}} → num_shards."""
    if _number(header, 2) != 0:
        raise UserError(f"{path}: the tensors are big-endian; only little-endian checkpoints can be read")
    needs = max((_number(version, 2) for version in _messages(header, 3)), default=0)
    if needs > FORMAT_VERSION:
        raise UserError(f"{path} is of format version {needs}; only versions up to {FORMAT_VERSION} can be read")
    return _number(header, 1)


def _entry(key: bytes, fields: Fields, num_shards: int, path: Path) -> Entry:
    """BundleEntryProto {1: dtype, 2: shape, 3: shard_id, 4: offset, 5: size, 6: crc32c, 7: slices} → Entry."""
    name = key.decode(errors="backslashreplace")
    if _messages(fields, 7):
        raise UserError(f"{path}: {name} is partitioned into slices; save it again as one variable")
    # TensorShapeProto {2: repeated Dim {1: size}}
    shape = tuple(_number(dim, 1) for message in _messages(fields, 2) for dim in _messages(message, 2))
    number, shard, offset, size, checksum = (_number(fields, i) for i in (1, 3, 4, 5, 6))
    if shard >= num_shards:
        raise _DamagedError(f"{name} lies in data file {shard} of {num_shards}")
    dtype = DTYPES.get(number)
    if dtype is None:
        return Entry(OTHER_DTYPES.get(number, f"DataType {number}"), shape, shard, offset, size, checksum)
    if size != math.prod(shape) * dtype.itemsize:
        raise _DamagedError(f"{name} has {size:,} bytes, which is not {dtype.name} of shape {shape}")
    # Zeros left out: a shape such as (0, 2**63) has the right size, but NumPy refuses it.
    if len(shape) > MAX_DIMENSIONS or math.prod(filter(None, shape)) * dtype.itemsize >= 2**63:
        raise _DamagedError(f"{name} has a shape that no array has, {shape}")
    return Entry(dtype.name, shape, shard, offset, size, checksum)


def _read_tensor(name: str, entry: Entry, path: Path, data: np.ndarray) -> np.ndarray:
    dtypes = {dtype.name: dtype for dtype in DTYPES.values()}
    if entry.dtype not in dtypes:
        raise UserError(f"{path}: {name} is a tensor of {entry.dtype}; it can be {', '.join(dtypes)}")
    # Copied first, so that the bytes that were verified are the bytes that are returned.
    value = np.array(data[entry.offset : entry.offset + entry.size])
    if masked_checksum(value.data) != entry.crc32c:
        raise UserError(f"{path} is damaged: the checksum of {name} is wrong; fetch it again")
    return value.view(dtypes[entry.dtype]).reshape(entry.shape)


def _table(table: bytes, path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Yields keys and values of a LevelDB table, in order. All of it is parsed: filters and restarts are not used."""
    if len(table) < FOOTER_BYTES or not table.endswith(MAGIC):
        raise _DamagedError("its last bytes are not a table's")
    # The footer has two handles, of the meta index and of the index: offset and size of a block each.
    (*_, offset, size), _ = _varints(table[-FOOTER_BYTES:], 0, 4)
    last = None
    for _, handle in _block(table, offset, size, path):
        (offset, size), _ = _varints(handle, 0, 2)
        for key, message in _block(table, offset, size, path):
            if last is not None and key <= last:
                raise _DamagedError(f"its names are not in order at {key!r}")
            yield key, message
            last = key


def _block(table: bytes, offset: int, size: int, path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Yields the entries of a block: (bytes shared with the key before, other bytes of the key, bytes of the value)
    each; behind them are the restarts."""
    end = offset + size
    if end + TRAILER_BYTES > len(table) - FOOTER_BYTES:
        raise _DamagedError(f"a block ends at byte {end + TRAILER_BYTES:,}, behind the end")
    if masked_checksum(table[offset : end + 1]) != int.from_bytes(table[end + 1 : end + TRAILER_BYTES], "little"):
        raise _DamagedError(f"the checksum of the block at byte {offset:,} is wrong")
    if table[end] != 0:  # 1 is Snappy
        raise UserError(f"{path}: the block at byte {offset:,} is compressed; save it again without compression")
    block = table[offset:end]
    entries_end = len(block) - 4 - 4 * int.from_bytes(block[-4:], "little")
    if entries_end < 0:
        raise _DamagedError(f"the block at byte {offset:,} is shorter than its restarts")
    at, key = 0, b""
    while at < entries_end:
        (shared, unshared, length), at = _varints(block, at, 3)
        middle, after = at + unshared, at + unshared + length
        if shared > len(key) or after > entries_end:
            raise _DamagedError(f"an entry of the block at byte {offset:,} is out of bounds")
        key = key[:shared] + block[at:middle]
        yield key, block[middle:after]
        at = after


def _fields(message: bytes) -> Fields:
    fields: Fields = {}
    at = 0
    while at < len(message):
        (tag,), at = _varints(message, at, 1)
        wire_type = tag & 7
        if wire_type == 0:
            (value,), at = _varints(message, at, 1)
        elif wire_type in (1, 2, 5):
            (length,), at = _varints(message, at, 1) if wire_type == 2 else ([8 if wire_type == 1 else 4], at)
            value, at = message[at : at + length], at + length
            value = value if wire_type == 2 else int.from_bytes(value, "little")
        else:
            raise _DamagedError(f"a message has a field of wire type {wire_type}")
        fields.setdefault(tag >> 3, []).append(value)
    if at > len(message):
        raise _DamagedError("a message ends within a field")
    return fields


def _number(fields: Fields, field: int) -> int:
    """Returns a number as protobuf defines it: the last one counts, and zero is not written."""
    value = fields.get(field, [0])[-1]
    if not isinstance(value, int):
        raise _DamagedError(f"field {field} of a message is not a number")
    return value


def _messages(fields: Fields, field: int) -> list[Fields]:
    values = fields.get(field, [])
    messages = [_fields(value) for value in values if isinstance(value, bytes)]
    if len(messages) < len(values):
        raise _DamagedError(f"field {field} of a message is not a message")
    return messages


def _varints(data: bytes, at: int, count: int) -> tuple[list[int], int]:
    """Returns `count` numbers from `at` on, and where they end. Each has seven bits per byte, the lowest first; the top
    bit says that more follow."""
    numbers = []
    for _ in range(count):
        value = 0
        for i, byte in enumerate(data[at : at + 10]):
            value |= (byte & 127) << 7 * i
            if byte < 128:
                at += i + 1
                break
        else:
            raise _DamagedError("a number does not end")
        numbers.append(value)
    return numbers, at
