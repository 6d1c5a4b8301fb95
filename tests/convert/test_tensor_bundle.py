"""TensorFlow's checkpoints: as TensorFlow writes them, as a small writer here does, and with every byte damaged."""

import contextlib
import importlib.util
import json
import math
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.config import UserError
from bert_jax.convert.tensor_bundle import DTYPES, Entry, open_bundle, read_index

PEER = importlib.util.find_spec("tensorflow") is not None
parity = [pytest.mark.parity, pytest.mark.skipif(not PEER, reason="needs TensorFlow: the extra 'parity'")]
needs_peer = lambda test: parity[0](parity[1](test))  # noqa: E731

BETA, GAMMA, BIAS, STEP = "bert/LayerNorm/beta", "bert/LayerNorm/gamma", "bert/pooler/bias", "global_step"
SMALL = {
    BETA: np.asarray([0.5, -1.0, 3.0], np.float32),
    GAMMA: np.asarray([[1, -2], [3, 4]], np.int64),
    BIAS: np.asarray(7, np.float16),
    STEP: np.zeros((2, 0), np.float32),
}
MASKS = [*(1 << bit for bit in range(8)), 255]
FOOTER = 48


def list_bundle(prefix):
    return read_index(prefix)[1]


def test_the_index_of_the_published_chinese_model(shared_data):
    prefix = shared_data("bert_assets") / "bert_assets" / "chinese_L-12_H-768_A-12" / "bert_model.ckpt"
    rows = json.loads(Path(f"{prefix}.index.contents.json").read_text())
    assert len(rows) == 206
    assert {row["dtype"] for row in rows} == {1}
    keys = ("shard", "offset", "size", "crc32c_masked")
    expected = {row["name"]: Entry("float32", tuple(row["shape"]), *(row[key] for key in keys)) for row in rows}
    found = list_bundle(prefix)
    assert found == expected
    assert list(found) == sorted(expected)
    with pytest.raises(UserError, match=r"there is no .*bert_model\.ckpt\.data-00000-of-00001, where bert/embeddings"):
        open_bundle(prefix)


def test_the_entries_of_a_small_bundle(tmp_path):
    prefix = _write(tmp_path / "model.ckpt-7", SMALL)
    crcs = [_masked_crc(value.tobytes()) for value in SMALL.values()]
    assert list_bundle(str(prefix)) == {
        BETA: Entry("float32", (3,), 0, 0, 12, crcs[0]),
        GAMMA: Entry("int64", (2, 2), 0, 12, 32, crcs[1]),
        BIAS: Entry("float16", (), 0, 44, 2, crcs[2]),
        STEP: Entry("float32", (2, 0), 0, 46, 0, crcs[3]),
    }


def test_the_writer_below_knows_the_checksum():
    assert _crc(b"123456789") == 0xE3069283  # the check value of CRC-32C


def test_only_the_tensor_that_is_asked_for_is_read_and_it_is_writable(tmp_path):
    prefix = _write(tmp_path / "ckpt", SMALL)
    data = Path(f"{prefix}.data-00000-of-00001")
    data.write_bytes(_flipped(data.read_bytes(), 0, 1))
    readers = open_bundle(prefix)
    with pytest.raises(UserError, match=f"{data} is damaged: the checksum of {BETA} is wrong"):
        readers[BETA]()
    gamma = readers[GAMMA]()
    gamma += 1
    _assert_same(readers[GAMMA](), SMALL[GAMMA])


def _array(dtype: np.dtype, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Any bits at all, NaNs among them."""
    generator = np.random.default_rng(seed)
    size = math.prod(shape) * dtype.itemsize
    return generator.integers(0, 2 if dtype == np.bool_ else 256, size, np.uint8).view(dtype).reshape(shape)


shapes = st.lists(st.integers(0, 3), max_size=4).map(tuple)
arrays = st.builds(_array, st.sampled_from(list(DTYPES.values())), shapes, st.integers(0, 2**32))
bundles = st.dictionaries(st.text(min_size=1, max_size=12), arrays, max_size=12)
layouts = st.fixed_dictionaries({"shards": st.integers(1, 3), "block": st.integers(1, 5), "restart": st.integers(1, 4)})


@given(bundles, layouts)
def test_what_is_written_is_read(tensors, layout):
    with tempfile.TemporaryDirectory() as folder:
        prefix = _write(Path(folder) / "ckpt", tensors, **layout)
        assert list(list_bundle(prefix)) == sorted(tensors)
        assert _reads_as(prefix, tensors)


def test_every_flipped_byte_of_the_index_is_noticed_or_not_used(tmp_path):
    prefix = _write(tmp_path / "ckpt", SMALL, shards=2, block=2)
    index = Path(f"{prefix}.index")
    whole = index.read_bytes()
    *data_blocks, meta, top = _blocks(SMALL, shards=2, block=2)
    assert len(data_blocks) == 3
    # Not used: the meta index, the handle to it, and the zeros between the handle of the index and the magic number.
    footer = len(whole) - FOOTER
    handle = footer + len(_varint(meta[0]) + _varint(meta[1]))
    zeros = handle + len(_varint(top[0]) + _varint(top[1]))
    unused = {*range(meta[0], top[0]), *range(footer, handle), *range(zeros, len(whole) - 8)}
    accepted = set()
    for at in range(len(whole)):
        for mask in MASKS:
            index.write_bytes(_flipped(whole, at, mask))
            accepted |= {(at, mask)} if _reads_as(prefix, SMALL) else set()
    # A handle that goes on into the zeros behind it is the same number, written with one byte more.
    assert {(at, mask) for at, mask in accepted if at not in unused} == {(zeros - 1, 128)}
    # The meta index is never looked at, so the bundle was indeed read each time.
    assert {(at, mask) for at in range(meta[0], top[0]) for mask in MASKS} <= accepted


def test_every_flipped_byte_of_the_data_is_noticed(tmp_path):
    prefix = _write(tmp_path / "ckpt", SMALL, shards=2)
    for shard in range(2):
        data = Path(f"{prefix}.data-{shard:05d}-of-00002")
        whole = data.read_bytes()
        for at in range(len(whole)):
            for mask in MASKS:
                data.write_bytes(_flipped(whole, at, mask))
                assert not _reads_as(prefix, SMALL)
        data.write_bytes(whole)
    assert _reads_as(prefix, SMALL)


def test_every_truncation_is_noticed_when_the_bundle_is_opened(tmp_path):
    prefix = _write(tmp_path / "ckpt", SMALL, shards=2, block=2)
    for suffix in ("index", "data-00000-of-00002", "data-00001-of-00002"):
        file = Path(f"{prefix}.{suffix}")
        whole = file.read_bytes()
        assert whole
        for length in range(len(whole)):
            file.write_bytes(whole[:length])
            with pytest.raises(UserError, match=suffix):
                open_bundle(prefix)
        file.write_bytes(whole + bytes(9) if suffix != "index" else whole)  # more data than is named does no harm
    assert _reads_as(prefix, SMALL)


@settings(max_examples=300)
@given(st.data(), layouts)
def test_nonsense_with_right_checksums_raises_nothing_else(data, layout):
    with tempfile.TemporaryDirectory() as folder:
        prefix = _write(Path(folder) / "ckpt", SMALL, **layout)
        index = Path(f"{prefix}.index")
        table = bytearray(index.read_bytes())
        offset, size = data.draw(st.sampled_from(_blocks(SMALL, **layout)))
        for at, byte in data.draw(st.dictionaries(st.integers(0, size - 1), st.integers(0, 255), max_size=4)).items():
            table[offset + at] = byte
        index.write_bytes(_resealed(table, offset, size))
        # Any other exception fails the test; what the values are is up to the one who forged them.
        with contextlib.suppress(UserError):
            assert all(isinstance(read(), np.ndarray) for read in open_bundle(prefix).values())


@pytest.mark.parametrize(
    ("key", "message", "expected"),
    [
        ("", b"\x08\x01\x10\x01", "big-endian"),
        ("", b"\x08\x01\x1a\x02\x10\x02", "is of format version 2; only versions up to 1"),
        ("", b"\x08", "damaged: a number does not end"),
        ("", b"\x08" + b"\x80" * 10 + b"\x01", "damaged: a number does not end"),  # 64 bits are ten bytes at most
        ("", b"\x0a\x01", "damaged: a message ends within a field"),
        ("", b"\x0b", "damaged: a message has a field of wire type 3"),
        ("", b"\x0a\x00", "damaged: field 1 of a message is not a number"),
        (BETA, b"\x10\x01", "damaged: field 2 of a message is not a message"),
        (BETA, {"more": b"\x3a\x00"}, f"{BETA} is partitioned into slices"),
        (BETA, {"shard": 1}, f"{BETA} lies in data file 1 of 1"),
        (BETA, {"size": 8}, rf"{BETA} has 8 bytes, which is not float32 of shape \(3,\)"),
        (BETA, {"shape": (0, 2**63), "size": 0}, f"{BETA} has a shape that no array has"),
        (BETA, {"shape": (1,) * 65, "size": 4}, f"{BETA} has a shape that no array has"),
        (BETA, {"offset": 40}, rf"00001 is too short: {BETA} ends at byte 52, the file at 46; fetch it again"),
    ],
)
def test_what_is_wrong_with_an_entry_is_said(tmp_path, key, message, expected):
    message = message if isinstance(message, bytes) else _forged(**message)
    prefix = _write(tmp_path / "ckpt", SMALL, replace={key: message})
    with pytest.raises(UserError, match=expected):
        open_bundle(prefix)


@pytest.mark.parametrize(("number", "named"), [(7, "string"), (21, "variant"), (11, "DataType 11")])
def test_a_dtype_that_cannot_be_read_does_no_harm_until_it_is_read(tmp_path, number, named):
    prefix = _write(tmp_path / "ckpt", SMALL, replace={BETA: _forged(dtype=number)})
    assert list_bundle(prefix)[BETA].dtype == named
    readers = open_bundle(prefix)
    _assert_same(readers[GAMMA](), SMALL[GAMMA])
    with pytest.raises(UserError, match=f"00001: {BETA} is a tensor of {named}; it can be float32, float64"):
        readers[BETA]()


def test_what_is_wrong_with_the_files_is_said(tmp_path):
    prefix = _write(tmp_path / "ckpt", SMALL, shards=2, block=2)
    index, second = Path(f"{prefix}.index"), Path(f"{prefix}.data-00001-of-00002")
    whole = index.read_bytes()

    def refuses(table: bytes, expected: str) -> None:
        index.write_bytes(table)
        with pytest.raises(UserError, match=expected):
            list_bundle(prefix)

    (first, size), *_ = _blocks(SMALL, shards=2, block=2)
    refuses(b"version https://git-lfs.github.com/spec/v1\n" * 3, "damaged: its last bytes are not a table's")
    refuses(_flipped(whole, first, 1), "damaged: the checksum of the block at byte 0 is wrong; fetch it again")
    compressed = _resealed(bytearray(_flipped(whole, first + size, 1)), first, size)
    refuses(compressed, "the block at byte 0 is compressed; save it again without compression")
    refuses(_resealed(bytearray(_flipped(whole, first, 1)), first, size), "block at byte 0 is out of bounds")
    refuses(_resealed(bytearray(_flipped(whole, first + size - 1, 255)), first, size), "0 is shorter than its restarts")
    far = (_varint(0) + _varint(0) + _varint(10**6) + _varint(8)).ljust(40, b"\0")
    refuses(whole[:-FOOTER] + far + whole[-8:], "damaged: a block ends at byte 1,000,013, behind the end")
    refuses(_table({}, 1, 1)[0], "damaged: it has no header")
    refuses(_table({BETA.encode(): b""}, 1, 1)[0], "damaged: it has no header")
    refuses(_table({b"": b"\x08\x02", b"b": _forged(), b"a": _forged()}, 1, 1)[0], "names are not in order at b'a'")
    refuses(_table({b"": b"\x08\x02", b"\xff": _forged()}, 1, 1)[0], "damaged: 'utf-8' codec can't decode")
    index.write_bytes(whole)
    second.unlink()
    with pytest.raises(UserError, match=rf"there is no {second}, where {GAMMA} lies; fetch the whole checkpoint"):
        open_bundle(prefix)
    with pytest.raises(UserError, match=r"there is no .*ckpt\.index\.index; name a TensorFlow checkpoint by its"):
        list_bundle(index)


# TensorFlow runs by itself: its warnings and threads are no business of these tests. It writes what it is given,
# and says how it reads each bundle, ours among them.
SCRIPT = """
import json, pickle, sys
import tensorflow as tf

folder = sys.argv[1]
bundles = pickle.load(open(f"{folder}/given.pickle", "rb"))

def save(prefix, tensors):
    tf.raw_ops.SaveV2(prefix=prefix, tensor_names=list(tensors), shape_and_slices=[""] * len(tensors),
                      tensors=[tf.constant(value) for value in tensors.values()])

for name, tensors in bundles.items():
    if name.startswith("merged"):
        items = list(tensors.items())
        parts = [f"{folder}/part-{i}" for i in range(3)]
        for i, part in enumerate(parts):
            save(part, dict(items[i::3]))
        tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=parts, destination_prefix=f"{folder}/{name}")
    elif name.startswith("saver"):
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            for key, value in tensors.items():
                tf.compat.v1.get_variable(key, initializer=tf.constant(value), use_resource=False)
            session.run(tf.compat.v1.global_variables_initializer())
            tf.compat.v1.train.Saver().save(session, f"{folder}/{name}")
    elif not name.startswith("ours"):
        save(f"{folder}/{name}", tensors)

with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    tf.compat.v1.get_variable("bert/step", initializer=tf.constant(3))
    tf.compat.v1.get_variable("bert/word_embeddings", [4, 2], partitioner=tf.compat.v1.fixed_size_partitioner(2))
    session.run(tf.compat.v1.global_variables_initializer())
    tf.compat.v1.train.Saver().save(session, f"{folder}/partitioned")
tf.train.Checkpoint(weights=tf.Variable([1.0, 2.0])).write(f"{folder}/objects")

seen = {}
for name in bundles:
    reader = tf.train.load_checkpoint(f"{folder}/{name}")
    dtypes = reader.get_variable_to_dtype_map()
    seen[name] = {key: (dtypes[key].name, dtypes[key].as_datatype_enum, reader.get_tensor(key)) for key in dtypes}
pickle.dump(seen, open(f"{folder}/seen.pickle", "wb"))
"""


def _given() -> dict[str, dict[str, np.ndarray]]:
    dtypes = {f"bert/{dtype.name}": _array(dtype, (3, 5), seed) for seed, dtype in enumerate(DTYPES.values())}
    dtypes |= {"bert/empty": np.zeros((0, 4), np.float32), "global_step": np.asarray(2**40, np.int64)}
    dtypes |= {"bert/scale": np.asarray(1.5, ml_dtypes.bfloat16), "blank name/": np.asarray([True, False])}
    generator = np.random.default_rng(0)
    bert = {
        f"bert/encoder/layer_{i}/{kind}": generator.standard_normal((4, 1 + i)).astype(np.float32)
        for i in range(12)
        for kind in ("attention/self/query/kernel", "output/LayerNorm/gamma")
    }
    # Names without common beginnings, of more bytes together than the 256 KiB of TensorFlow's blocks.
    many = {f"{i * 2654435761 % 2**32:08x}{'/layer' * 30}": np.asarray(i, np.int32) for i in range(3000)}
    return {"dtypes": dtypes, "merged": bert, "many": many, "saver": bert, "ours": dtypes}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tensorflow")
    (folder / "given.pickle").write_bytes(pickle.dumps(_given()))
    _write(folder / "ours", _given()["ours"], shards=2, block=3, restart=2)
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run([sys.executable, "-c", SCRIPT, folder], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    return folder


@needs_peer
@pytest.mark.parametrize("name", ["dtypes", "merged", "many", "saver", "ours"])
def test_what_tensorflow_writes_is_read_bit_for_bit(checkpoints, name):
    written, seen = _given()[name], pickle.loads((checkpoints / "seen.pickle").read_bytes())[name]
    entries = list_bundle(checkpoints / name)
    assert _reads_as(checkpoints / name, written)
    assert {key: (entry.dtype, entry.shape) for key, entry in entries.items()} == {
        key: (dtype, np.shape(value)) for key, (dtype, _, value) in seen.items()
    }
    for key, (dtype, number, value) in seen.items():
        assert DTYPES[number].name == dtype
        _assert_same(np.asarray(value), written[key])  # the test's own writer is TensorFlow's equal
    shards = {"merged": {0, 1, 2}, "ours": {0, 1}}
    assert {entry.shard for entry in entries.values()} == shards.get(name, {0})
    assert (checkpoints / f"{name}.index").stat().st_size > 2 * 2**18 or name != "many"  # so it has several blocks


@needs_peer
def test_a_partitioned_variable_of_tensorflow_is_refused_by_name(checkpoints):
    with pytest.raises(UserError, match=r"partitioned\.index: bert/word_embeddings is partitioned into slices"):
        list_bundle(checkpoints / "partitioned")


@needs_peer
def test_an_object_graph_beside_the_weights_does_no_harm(checkpoints):
    readers = open_bundle(checkpoints / "objects")
    graph, weights = "_CHECKPOINTABLE_OBJECT_GRAPH", "weights/.ATTRIBUTES/VARIABLE_VALUE"
    assert {graph, weights} <= readers.keys()
    assert readers[weights]().tolist() == [1.0, 2.0]
    with pytest.raises(UserError, match=f"{graph} is a tensor of string"):
        readers[graph]()


def _assert_same(value: np.ndarray, expected: np.ndarray) -> None:
    assert (value.dtype, value.shape) == (expected.dtype, expected.shape)
    assert value.tobytes() == expected.tobytes()  # bits: a NaN is not equal to itself


def _reads_as(prefix: Path, tensors: dict[str, np.ndarray]) -> bool:
    """Whether the bundle is accepted; if it is, it must hold exactly these tensors."""
    try:
        found = {name: read() for name, read in open_bundle(prefix).items()}
    except UserError:
        return False
    assert found.keys() == tensors.keys()
    for name, value in found.items():
        _assert_same(value, tensors[name])
    return True


def _flipped(data: bytes, at: int, mask: int) -> bytes:
    return data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :]


def _resealed(table: bytearray, offset: int, size: int) -> bytes:
    """With the checksum that the block has now."""
    end = offset + size + 1
    table[end : end + 4] = _masked_crc(bytes(table[offset:end])).to_bytes(4, "little")
    return bytes(table)


# A writer of bundles, by the description of the format, that shares nothing with the reader.


def _write(prefix: Path, tensors: dict[str, np.ndarray], *, shards=1, block=4, restart=2, replace=None) -> Path:
    """`block` is the number of entries in a block, `restart` that between restarts; `replace` forges messages."""
    items, data = _bundle(tensors, shards)
    items |= {key.encode(): message for key, message in (replace or {}).items()}
    Path(f"{prefix}.index").write_bytes(_table(items, block, restart)[0])
    for shard, content in enumerate(data):
        Path(f"{prefix}.data-{shard:05d}-of-{shards:05d}").write_bytes(content)
    return prefix


def _blocks(tensors: dict[str, np.ndarray], *, shards=1, block=4, restart=2) -> list[tuple[int, int]]:
    """(offset, size) of all blocks that `_write` would write: of the data, then the meta index and the index."""
    return _table(_bundle(tensors, shards)[0], block, restart)[1]


def _bundle(tensors: dict[str, np.ndarray], shards: int) -> tuple[dict[bytes, bytes], list[bytes]]:
    items, data = {b"": _field(1, shards) + _field(3, _field(1, 1))}, [b""] * shards
    numbers = {dtype: number for number, dtype in DTYPES.items()}
    for i, (name, value) in enumerate(sorted(tensors.items())):
        content, shard = value.tobytes(), i % shards
        items[name.encode()] = _entry_message(
            numbers[value.dtype], value.shape, shard, len(data[shard]), len(content), _masked_crc(content)
        )
        data[shard] += content
    return items, data


def _forged(**changes) -> bytes:
    return _entry_message(**{"dtype": 1, "shape": (3,), "shard": 0, "offset": 0, "size": 12, "crc": 0} | changes)


def _entry_message(dtype, shape, shard, offset, size, crc, more=b"") -> bytes:
    dimensions = b"".join(_field(2, _field(1, dimension)) for dimension in shape)
    numbers = _field(3, shard) + _field(4, offset) + _field(5, size)
    return _field(1, dtype) + _field(2, dimensions) + numbers + bytes([6 << 3 | 5]) + crc.to_bytes(4, "little") + more


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, bytes):
        return bytes([number << 3 | 2]) + _varint(len(value)) + value
    return bytes([number << 3]) + _varint(value) if value else b""  # zero is what is not there


def _varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value % 128 + 128]) + _varint(value // 128)


def _table(items: dict[bytes, bytes], block: int, restart: int) -> tuple[bytes, list[tuple[int, int]]]:
    table, blocks, index = b"", [], {}

    def append(entries: dict[bytes, bytes]) -> bytes:
        nonlocal table
        content = _block(entries, restart) + b"\0"
        blocks.append((len(table), len(content) - 1))
        table += content + _masked_crc(content).to_bytes(4, "little")
        return _varint(blocks[-1][0]) + _varint(blocks[-1][1])

    keys = list(items)
    for start in range(0, len(keys), block):
        part = keys[start : start + block]
        index[part[-1]] = append({key: items[key] for key in part})
    handles = append({}) + append(index)
    return table + handles.ljust(40, b"\0") + bytes.fromhex("57fb808b247547db"), blocks


def _block(entries: dict[bytes, bytes], restart: int) -> bytes:
    content, restarts, before = b"", [0], b""
    for i, (key, value) in enumerate(entries.items()):
        if i and i % restart == 0:
            restarts, before = [*restarts, len(content)], b""
        shared = next((at for at, (a, b) in enumerate(zip(key, before, strict=False)) if a != b), len(before))
        shared = min(shared, len(key))
        content += _varint(shared) + _varint(len(key) - shared) + _varint(len(value)) + key[shared:] + value
        before = key
    return content + b"".join(number.to_bytes(4, "little") for number in [*restarts, len(restarts)])


def _masked_crc(data: bytes) -> int:
    crc = _crc(data)
    return ((crc // 2**15 + crc % 2**15 * 2**17) + 0xA282EAD8) % 2**32


def _crc(data: bytes) -> int:
    """CRC-32C bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF
