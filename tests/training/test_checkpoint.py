"""Reading a checkpoint: directly onto any devices; what is damaged is told from what only cannot be read now."""

import json
import shutil

import jax
import numpy as np
import pytest
import tensorstore
from jax.sharding import NamedSharding, PartitionSpec

from bert_jax.config import UserError
from bert_jax.data.tokenizers.wordpiece import make_wordpiece
from bert_jax.options import default_config
from bert_jax.sharding import make_mesh
from bert_jax.training.checkpoint import (
    describe_checkpoint,
    on_mesh,
    read_checkpoint,
    write_checkpoint,
)
from bert_jax.training.checkpoint_format import FORMAT, Damaged, Trouble, checksums, is_trouble

TOKENIZER = make_wordpiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"], "test", True, None, True)
PARAMETERS = {"embeddings/word": np.arange(32, dtype=np.float32).reshape(8, 4), "pooler/bias": np.ones(4, np.float32)}


def write(folder, parameters=PARAMETERS, **run):
    content = {"step": 7, "config": default_config().to_dict(), "task": {}} | run
    write_checkpoint(folder, dict(parameters), content, TOKENIZER)
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write(tmp_path_factory.mktemp("written") / "7")


@pytest.fixture
def checkpoint(written, tmp_path):
    return shutil.copytree(written, tmp_path / "7")


def edit(checkpoint, change):
    """Changes the `run` item, whose checksum no longer holds then."""
    file = checkpoint / "run" / "metadata"
    run = json.loads(file.read_text())
    change(run)
    file.write_text(json.dumps(run))


def test_arrays_go_where_the_caller_wants_them(written):
    one = read_checkpoint(written).parameters["embeddings/word"]
    assert one.devices() == {jax.local_devices()[0]}
    mesh = make_mesh(default_config().mesh, jax.devices()[:4])
    everywhere = read_checkpoint(written, shardings=on_mesh(mesh)).parameters["embeddings/word"]
    assert everywhere.devices() == set(jax.devices()[:4]) and everywhere.is_fully_replicated
    rows = mesh.rows()
    split = read_checkpoint(written, shardings=lambda tree: {name: rows for name in tree}).parameters["embeddings/word"]
    assert split.addressable_shards[0].data.shape == (2, 4)
    for array in (one, everywhere, split):
        np.testing.assert_array_equal(array, PARAMETERS["embeddings/word"])


def test_a_sharding_that_does_not_divide_an_array_is_no_damage(written):
    mesh = jax.make_mesh((8,), ("data",))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    with pytest.raises(ValueError, match="evenly divide the shape") as caught:  # pooler/bias has 4 elements
        read_checkpoint(written, shardings=lambda tree: {name: rows for name in tree})
    assert not isinstance(caught.value, Damaged)


def test_host_and_device_checksums_agree():
    tree = {"a": np.random.default_rng(0).normal(size=(300, 7)).astype(np.float32), "b": np.arange(5, dtype=np.int32)}
    on_devices = jax.device_put(tree, NamedSharding(jax.make_mesh((8,), ("data",)), PartitionSpec()))
    assert checksums(tree) == checksums(on_devices)


@pytest.mark.parametrize(
    ("problem", "is_outside"),
    [
        (OSError(28, "No space left on device"), True),
        (PermissionError(13, "Permission denied"), True),
        (OSError(24, "Too many open files"), True),
        (OSError(116, "Stale file handle"), True),
        (MemoryError(), True),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 123 bytes."), True),
        (ValueError("UNAVAILABLE: connection reset"), True),
        (RuntimeError("of a kind that nobody has seen"), True),
        (FileNotFoundError(2, "No such file"), False),
        (ValueError("DATA_LOSS: Error decoding local file"), False),
        (json.JSONDecodeError("Expecting value", "", 0), False),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), False),
        (KeyError("tree_metadata"), False),
    ],
)
def test_trouble_is_told_from_damage(problem, is_outside):
    assert is_trouble(problem) is is_outside
    wrapped = RuntimeError("reading failed")
    wrapped.__cause__ = problem
    assert is_trouble(wrapped) is is_outside


def test_trouble_is_one_line_that_names_the_cause(checkpoint, monkeypatch):
    def exhausted(*_, **__):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("orbax.checkpoint.PyTreeCheckpointHandler.restore", exhausted)
    with pytest.raises(Trouble, match=r"7 cannot be read now \(\[Errno 24\] Too many open files\); it was left as"):
        read_checkpoint(checkpoint)


def test_any_changed_byte_in_any_file_is_noticed_or_harmless(written, tmp_path):
    expected = read_checkpoint(written)
    files = [file.relative_to(written) for file in sorted(written.rglob("*")) if file.is_file()]
    for number, file in enumerate(files):
        size = (written / file).stat().st_size
        for where in {0, size // 3, size - 1} if size else ():
            copy = shutil.copytree(written, tmp_path / f"{number}-{where}")
            content = bytearray((copy / file).read_bytes())
            content[where] ^= 0x15
            (copy / file).write_bytes(content)
            try:
                found = read_checkpoint(copy)
            except Damaged as damage:
                assert str(copy) in str(damage) and "\n" not in str(damage)
                continue
            assert found.run == expected.run, file
            for name, value in expected.parameters.items():
                np.testing.assert_array_equal(found.parameters[name], value, err_msg=str(file))


def test_any_missing_file_is_noticed_or_harmless(written, tmp_path):
    files = [file.relative_to(written) for file in sorted(written.rglob("*")) if file.is_file()]
    damaged = set()
    for number, file in enumerate(files):
        copy = shutil.copytree(written, tmp_path / str(number))
        (copy / file).unlink()
        try:
            read_checkpoint(copy)
        except Damaged:
            damaged.add(str(file))
    assert {"run/metadata", "tokenizer/metadata", "parameters/_METADATA", "parameters/manifest.ocdbt"} <= damaged


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("step", -1, "run.step is -1; it must be a whole number from 0"),
        ("step", True, "run.step is True"),
        ("step", "7", "run.step is '7'"),
        ("config", [], r"run.config is \[\]"),
        ("config", {"model": 3}, "run.config is"),
        ("task", "tagging", "run.task is 'tagging'"),
        ("checksums", {"parameters": 3}, "run.checksums is"),
        ("history", [1, "x"], "run.history is"),
        ("data", 3, "run.data is 3"),
        ("format", "2", "run.format is '2'"),
        ("format", 0, "run.format is 0"),
        ("step", 8, "run differs from what was saved"),
    ],
)
def test_every_field_of_run_is_checked(checkpoint, field, value, message):
    edit(checkpoint, lambda run: run.update({field: value}))
    with pytest.raises(Damaged, match=message):
        describe_checkpoint(checkpoint)


def test_a_shape_that_no_file_can_hold_is_refused_before_memory_is_taken(checkpoint):
    folder = {"driver": "ocdbt", "base": f"file://{checkpoint}/parameters/"}
    store = tensorstore.KvStore.open(folder).result()
    name = next(key for key in store.list().result() if key.endswith(b"/.zarray"))
    described = json.loads(store.read(name).result().value)
    described["shape"][0] = 1 << 40
    store.write(name, json.dumps(described).encode()).result()
    with pytest.raises(Damaged, match=r"parameters claim [\d,]{14,} bytes, and their files hold [\d,]{4,9}$"):
        read_checkpoint(checkpoint)


def test_a_newer_format_is_refused_and_no_damage(checkpoint):
    edit(checkpoint, lambda run: run.update(format=FORMAT + 1, written_by="9.9"))
    with pytest.raises(UserError, match=r"format 3, written by bert_jax 9\.9.* reads formats up to 2") as caught:
        describe_checkpoint(checkpoint)
    assert not isinstance(caught.value, Damaged)


def test_a_saved_config_is_merged_over_the_defaults(tmp_path):
    config = default_config().to_dict()
    del config["eval"]["max_examples"], config["seeds"]
    run, _ = describe_checkpoint(write(tmp_path / "old", config=config))
    assert run["config"]["eval"]["max_examples"] == 10_000 and run["config"]["seeds"] == 1


@pytest.mark.parametrize("name", ["../../outside.txt", "/tmp/outside.txt", "evil.py", "added_tokens.json"])
def test_a_tokenizer_holds_only_files_that_ours_write(checkpoint, name):
    file = checkpoint / "tokenizer" / "metadata"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: "YQ=="}))
    before = sorted(checkpoint.parent.rglob("*"))
    with pytest.raises(Damaged, match=r"must hold spm\.model, .* and no other file"):
        describe_checkpoint(checkpoint)
    assert sorted(checkpoint.parent.rglob("*")) == before


def test_no_temporary_folder_is_needed(checkpoint, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/nonexistent")
    monkeypatch.setattr("tempfile.tempdir", "/nonexistent")
    assert describe_checkpoint(checkpoint)[1].content_hash == TOKENIZER.content_hash
    write(checkpoint.parent / "8")


def test_parameters_that_are_not_finite_are_never_called_whole(tmp_path):
    bad = PARAMETERS | {"pooler/bias": np.asarray([1, np.nan, 1, 1], np.float32)}
    with pytest.raises(Damaged, match=r"1 parameters are not finite, among them .*pooler/bias"):
        read_checkpoint(write(tmp_path / "7", bad))
