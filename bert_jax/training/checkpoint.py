"""Checkpoints: written in the background, whole or not at all, checked when they are read.

A checkpoint is a folder `checkpoints/<step>` with four items: `parameters` and `optimizer` (arrays under flat
names), `run` (step, data position, resolved config, what the task learned of its data such as names of labels,
checksums) and `tokenizer` (its files): alone it is enough to predict, fine-tune or export. A converted one has no
optimizer.
"""

import base64
import contextlib
import errno
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers

from bert_jax.config import UserError
from bert_jax.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from bert_jax.training.sharding import place, tree_shardings
from bert_jax.training.step import TrainState

ARRAYS = ("parameters", "optimizer")


class Checkpoints:
    """The checkpoints of one workdir: the last `checkpoint.keep` and the best one by `checkpoint.best_metric`."""

    def __init__(self, directory: Path, checkpoint: ConfigDict):
        self.directory = directory
        self.metric = checkpoint.best_metric
        best = checkpoint_managers.BestN(
            get_metric_fn=lambda metrics: metrics[self.metric],
            reverse=checkpoint.best_mode == "min",
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        self.manager = ocp.CheckpointManager(
            directory.absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                    [checkpoint_managers.LatestN(checkpoint.keep), best]
                ),
                best_fn=lambda metrics: metrics[self.metric],
                best_mode=checkpoint.best_mode,
            ),
        )

    def save(self, state: TrainState, run: dict, tokenizer: Tokenizer, metrics: dict) -> None:
        """Starts to write in the background; first waits for the one before, whose failure is raised here.

        `run` goes into the item of that name: data position, config, the task's description.
        """
        step = int(state.step)
        if step in self.manager.all_steps():
            return
        items = _items({"parameters": state.parameters, "optimizer": state.optimizer}, {"step": step} | run, tokenizer)
        known = {self.metric: metrics[self.metric]} if self.metric in metrics else None
        with _explained(self):
            self.manager.save(step, args=items, metrics=known)

    def wait(self) -> None:
        with _explained(self):
            self.manager.wait_until_finished()

    def close(self) -> None:
        self.manager.close()

    def restore_latest(self, abstract: TrainState, mesh: Mesh, tokenizer_hash: str) -> tuple[TrainState, dict] | None:
        """The newest checkpoint that is whole, with its `run` item; None if there is none at all.

        A damaged one is set aside under `damaged/` beside the others, loudly. Raises UserError if all are damaged,
        or if one was trained with another tokenizer than the data has now.
        """
        steps = sorted(self.manager.all_steps(), reverse=True)
        for step in steps:
            try:
                saved = read_checkpoint(self.directory / str(step), abstract, mesh, tokenizer_hash)
            except Damaged as damage:
                kept = self.directory.parent / "damaged" / str(step)
                kept.parent.mkdir(exist_ok=True)
                shutil.move(self.directory / str(step), kept)
                logging.warning("%s; moved to %s, trying the one before", damage, kept)
                self.manager.reload()
                continue
            state = TrainState(jnp.asarray(saved.run["step"], jnp.int32), saved.parameters, saved.optimizer)
            return state, saved.run
        if steps:
            raise UserError(f"all {len(steps)} checkpoints in {self.directory} are damaged; choose another --workdir")
        return None

    def best(self, mesh: Mesh) -> tuple[dict[str, jax.Array], dict] | None:
        """Parameters and `run` of the best checkpoint by `checkpoint.best_metric`; None if no checkpoint has it."""
        step = self.manager.best_step()
        if step is None:
            return None
        saved = read_checkpoint(self.directory / str(step))
        return place(mesh, saved.parameters), saved.run


class Damaged(UserError):
    """A checkpoint that cannot be read back as it was written."""


@dataclass(frozen=True)
class Saved:
    """What `read_checkpoint` gives back; `optimizer` is None if it was not asked for."""

    parameters: dict[str, jax.Array]
    optimizer: Any
    run: dict
    tokenizer: Tokenizer


def read_checkpoint(
    directory: Path, abstract: TrainState | None = None, mesh: Mesh | None = None, tokenizer_hash: str | None = None
) -> Saved:
    """Reads one checkpoint folder, onto `mesh` in the shapes of `abstract`; without them, the parameters only, onto
    one device, whatever mesh they were saved from.

    Raises Damaged if it cannot be read or an array's checksum is not the one it was saved with; UserError if its
    tokenizer has another hash than `tokenizer_hash`.
    """
    run, tokenizer = describe_checkpoint(directory)
    if tokenizer_hash is not None and tokenizer.content_hash != tokenizer_hash:
        raise UserError(
            f"{directory} was trained with another vocabulary than this run's data has; prepare the data with its "
            "vocabulary (--config.data.vocab_file), or restore the corpus as it was"
        )
    with _reading(directory) as checkpointer:
        if abstract is None:
            items = {"parameters": ocp.args.StandardRestore(_on_one_device(directory / "parameters"))}
        else:
            trees = {"parameters": abstract.parameters, "optimizer": abstract.optimizer}
            items = {name: ocp.args.StandardRestore(_with_sharding(tree, mesh)) for name, tree in trees.items()}
        restored = checkpointer.restore(directory.absolute(), args=ocp.args.Composite(**items))
    for item in ARRAYS:
        if item in items and _checksums(restored[item]) != run["checksums"][item]:
            raise Damaged(f"checkpoint {directory}: {item} differ from what was saved")
    optimizer = restored["optimizer"] if "optimizer" in items else None
    return Saved(restored["parameters"], optimizer, run, tokenizer)


def describe_checkpoint(directory: Path) -> tuple[dict, Tokenizer]:
    """The `run` item and the tokenizer, without any array. Raises Damaged."""
    with _reading(directory) as checkpointer:
        items = {"run": ocp.args.JsonRestore(), "tokenizer": ocp.args.JsonRestore()}
        described = checkpointer.restore(directory.absolute(), args=ocp.args.Composite(**items))
        return described["run"], _unpack(described["tokenizer"])


def write_checkpoint(directory: Path, parameters: dict[str, Any], run: dict, tokenizer: Tokenizer) -> None:
    """A checkpoint of parameters alone, such as a converted one, that `init_from=<directory>` can name.

    `run` needs `step`, `config` (with the group `model`) and `task`, as `describe_checkpoint` gives them. `parameters`
    is emptied: array by array it becomes JAX's, of which Orbax makes one copy less than of NumPy's.
    """
    sums = _checksums(parameters)
    parameters = {name: jnp.asarray(parameters.pop(name)) for name in list(parameters)}
    items = _items({"parameters": parameters}, run | {"checksums": {"parameters": sums}}, tokenizer)
    checkpointer = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    with contextlib.closing(checkpointer):
        checkpointer.save(directory.absolute(), args=items)


def find_checkpoint(path: str) -> Path:
    """The newest checkpoint of a workdir or a `checkpoints` folder; or `path` itself if it is a checkpoint."""
    found = _newest(Path(path))
    if found is None:
        raise UserError(f"no checkpoint in {path}; give a workdir or one of its checkpoints")
    return found


def choose_checkpoint(path: str, which: str = "best") -> Path:
    """The checkpoint folder that is meant by a workdir, by a `checkpoints` folder, or by itself; logs the choice.

    The one rule for whoever wants a trained model. `which` is "best" (by the run's `checkpoint.best_metric`; the
    newest if none was evaluated), "newest", the number of a step, or another path. Raises UserError.
    """
    if which not in ("best", "newest") and not which.isdigit():
        return choose_checkpoint(which)
    newest = find_checkpoint(path)
    if newest in (Path(path), Path(path) / "checkpoints"):  # the path of one checkpoint says everything
        return newest
    if which == "best":
        return _best_beside(newest)
    if which == "newest":
        logging.info("%s: the newest checkpoint", newest)
        return newest
    folder = newest.parent / which
    if not (folder / "run").is_dir():
        steps = sorted(int(child.name) for child in newest.parent.iterdir() if child.name.isdigit())
        raise UserError(f"{path} has no checkpoint of step {which}; it has {', '.join(map(str, steps))}")
    return folder


def has_checkpoint(path: str) -> bool:
    return _newest(Path(path)) is not None


def _newest(root: Path) -> Path | None:
    for folder in (root / "checkpoints", root):
        if (folder / "run").is_dir():
            return folder
        steps = [int(child.name) for child in folder.glob("*") if child.name.isdigit()] if folder.is_dir() else []
        if steps:
            return folder / str(max(steps))
    return None


def _best_beside(newest: Path) -> Path:
    try:
        rule = describe_checkpoint(newest)[0]["config"]["checkpoint"]
    except Damaged as damage:
        raise UserError(str(damage)) from damage
    figures = {}
    for file in newest.parent.glob("[0-9]*/metrics/metrics"):  # where Orbax keeps what `Checkpoints.save` gave it
        if file.parents[1].name.isdigit():  # one that is being written has a longer name
            figures[file.parents[1]] = json.loads(file.read_text())[rule["best_metric"]]
    if not figures:
        logging.info("%s: no checkpoint was evaluated, so the newest one is taken", newest)
        return newest
    sign = -1 if rule["best_mode"] == "min" else 1
    best = max(figures, key=lambda folder: (sign * figures[folder], int(folder.name)))
    logging.info("%s: the best by %s, %.4f", best, rule["best_metric"], figures[best])
    return best


def _items(arrays: dict[str, Any], run: dict, tokenizer: Tokenizer) -> ocp.args.Composite:
    items = {name: ocp.args.StandardSave(tree) for name, tree in arrays.items()}
    if "checksums" not in run:
        run = run | {"checksums": {name: _checksums(tree) for name, tree in arrays.items()}}
    return ocp.args.Composite(**items, run=ocp.args.JsonSave(run), tokenizer=ocp.args.JsonSave(_pack(tokenizer)))


@contextlib.contextmanager
def _reading(directory: Path) -> Iterator[ocp.Checkpointer]:
    checkpointer = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    try:
        yield checkpointer
    except UserError:
        raise
    except Exception as problem:  # Orbax and TensorStore raise many kinds for one cause: the files are not as written
        raise Damaged(f"checkpoint {directory} cannot be read ({_first_line(problem)})") from problem
    finally:
        checkpointer.close()


@jax.jit
def _sums_of_bits(tree):
    def of(x):
        bits = jax.lax.bitcast_convert_type(x, jnp.uint32) if x.dtype.itemsize == 4 else x.astype(jnp.uint32)
        bits = bits.reshape(-1)
        places = jax.lax.iota(jnp.uint32, bits.size)  # weighted by odd numbers, so that exchanged values show
        return jnp.sum(bits * (2 * places + 1), dtype=jnp.uint32)

    return jax.tree.map(of, tree)


def _checksums(tree: Any) -> dict[str, int]:
    """A sum modulo 2³² over the bits of each array: the same on any mesh, at the speed of memory."""
    arrays = jax.tree.leaves(tree)
    if all(isinstance(x, np.ndarray) or (x.is_fully_addressable and _is_on_cpu(x)) for x in arrays):
        sums = _numpy_sums_of_bits(jax.tree.map(np.asarray, tree))  # as fast as on the device, and nothing to compile
    else:
        sums = _sums_of_bits(tree)
    leaves = jax.tree_util.tree_flatten_with_path(sums)[0]
    return {jax.tree_util.keystr(path): int(np.asarray(value)) for path, value in leaves}


def _is_on_cpu(x: jax.Array) -> bool:
    return all(device.platform == "cpu" for device in x.devices())


def _numpy_sums_of_bits(tree):
    """The same sums without a compiler and without a copy: piece by piece."""

    def of(x):
        bits = x.reshape(-1).view(np.uint32) if x.dtype.itemsize == 4 else x.reshape(-1).astype(np.uint32)
        total, piece = 0, 1 << 20
        for start in range(0, bits.size, piece):
            part = bits[start : start + piece]
            places = np.arange(start, start + part.size).astype(np.uint32)
            total += int(np.sum(part * (2 * places + 1), dtype=np.uint32))
        return total % 2**32

    return jax.tree.map(of, tree)


def _on_one_device(directory: Path):
    """Shapes of the saved arrays, to be restored to this process's first device."""
    with contextlib.closing(ocp.StandardCheckpointer()) as checkpointer:
        metadata = checkpointer.metadata(directory.absolute()).item_metadata
    if metadata is None:
        raise FileNotFoundError(f"no description of the arrays in {directory}")
    one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), metadata.tree)


def _with_sharding(tree, mesh):
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree, tree_shardings(mesh, tree)
    )


def _pack(tokenizer: Tokenizer) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder))
        return {path.name: base64.b64encode(path.read_bytes()).decode() for path in sorted(Path(folder).iterdir())}


def _unpack(files: dict[str, str]) -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(base64.b64decode(content))
        return load_tokenizer(folder)


class _explained:
    """Turns a failure to write into a UserError that says what is left."""

    def __init__(self, checkpoints: Checkpoints):
        self.checkpoints = checkpoints

    def __enter__(self):
        return self

    def __exit__(self, _, problem, __):
        if problem is None or not _is_about_storage(problem):
            return
        latest = self.checkpoints.manager.latest_step()
        left = "no checkpoint was finished before" if latest is None else f"the checkpoint of step {latest} is whole"
        raise UserError(
            f"cannot write a checkpoint to {self.checkpoints.directory} ({_first_line(problem)}); {left}: "
            "free some space and start the same command again"
        ) from problem


def _is_about_storage(problem: BaseException) -> bool:
    if isinstance(problem, OSError) and problem.errno in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EACCES,
        errno.EIO,
    ):
        return True
    text = str(problem)
    return any(sign in text for sign in ("No space left", "RESOURCE_EXHAUSTED", "Disk quota", "Read-only file system"))


def _first_line(problem: BaseException) -> str:
    return (str(problem).strip() or type(problem).__name__).splitlines()[0][:200]
