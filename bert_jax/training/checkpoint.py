"""One checkpoint: which folder is meant, reading it onto any devices, writing one of parameters alone.

A checkpoint is a folder `checkpoints/<step>` with the items `parameters` and `optimizer` (arrays under flat names),
`run` (step, data position, config, what the task learned, checksums) and `tokenizer` (its files): alone it is enough to
predict, fine-tune or export. A converted one has no optimizer. If a run averages its parameters (`train.ema_decay`),
`parameters` is the average, and a further item, `trained`, has those that training continues from.
`checkpoint_format.py` has the details.
"""

import contextlib
import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Sharding
from jaxtyping import PyTree
from ml_collections import ConfigDict

from bert_jax.config import Json, UserError
from bert_jax.data.text.buckets import local
from bert_jax.data.tokenizers.tokenizer import Tokenizer
from bert_jax.sharding import Mesh, place, tree_shardings
from bert_jax.tasks.task import LOWER_IS_BETTER
from bert_jax.training import checkpoint_format
from bert_jax.training.checkpoint_format import Damaged, Trouble, checksums, guarded
from bert_jax.training.parameters import Parameters, name_of_format_1, name_since_format_2, rename
from bert_jax.training.step import TrainState
from bert_jax.training.stored import widened

Shardings = Callable[[PyTree], PyTree]  # a tree of abstract arrays → the same tree of shardings
HIDDEN = ".deleting-"  # begins names that no reader takes for a checkpoint; what has one is removed at the next start
EXTENDED = "extended"  # in a workdir: the checkpoint of init_from with the new tokens of extend.words
_SMALL = 1 << 30  # bytes of parameters that any file may claim
_MOST_COMPRESSED = 64  # bytes of parameters per byte of their files, beyond that; trained ones have about 1


@dataclass(frozen=True)
class Saved:
    """The content of a checkpoint. `optimizer` is None unless it was asked for, and so is `trained`, which only a run
    that averages its parameters has; `run` has its config over today's defaults."""

    parameters: Parameters
    optimizer: PyTree
    trained: Parameters | None
    run: Json
    tokenizer: Tokenizer


def on_one_device(tree: PyTree, number: int = 0) -> PyTree:
    """Returns shardings that put every array whole onto one of this process's devices."""
    one = jax.sharding.SingleDeviceSharding(jax.local_devices()[number])
    return jax.tree.map(lambda _: one, tree)


def on_mesh(mesh: Mesh) -> Shardings:
    """Returns the shardings that the rules of `sharding.py` give."""
    return lambda tree: tree_shardings(mesh, tree)


def restored_state(saved: Saved, mesh: Mesh) -> TrainState:
    """Returns the state of a checkpoint that was read onto the mesh, placed as `init_state` places a fresh one: a step
    that was compiled for the one is found for the other."""
    step = place(mesh, np.int32(saved.run["step"]))
    if saved.trained is None:
        return TrainState(step, saved.parameters, saved.optimizer)
    return TrainState(step, saved.trained, saved.optimizer, saved.parameters)


def arrays_of(state: TrainState) -> dict[str, Any]:
    """Returns the items of a checkpoint that hold arrays."""
    arrays = {"parameters": state.learned, "optimizer": state.optimizer}
    return arrays if state.average is None else arrays | {"trained": state.parameters}


def read_checkpoint(
    directory: Path,
    *,
    shardings: Shardings = on_one_device,
    expected: TrainState | None = None,
    tokenizer_hash: str | None = None,
) -> Saved:
    """Reads one checkpoint folder; every array goes directly where `shardings` wants it, whatever mesh it was saved
    from. With `expected`, the optimizer's state is read too.

    Raises Damaged if it does not hold what was written (or parameters that are not finite), Trouble if something else
    prevents reading; UserError if its arrays are not those of `expected`, or its tokenizer has another hash than
    `tokenizer_hash`. Of several processes that share the arrays, all raise if one does.
    """
    run, tokenizer = describe_checkpoint(directory)
    if tokenizer_hash is not None and tokenizer.content_hash != tokenizer_hash:
        raise UserError(
            f"{directory} was trained with another vocabulary than this run's data has; prepare the data with its "
            "vocabulary (--config.data.vocab_file), or restore the corpus as it was"
        )
    as_saved = name_of_format_1 if run["format"] == 1 else str
    with guarded(directory):
        trees: dict[str, Any] = {"parameters": rename(_abstract_parameters(directory, run), name_since_format_2)}
    if expected is not None:
        whole = jax.eval_shape(widened, trees["parameters"])
        _check_structure(expected, whole, run, directory, as_saved)
        trees["optimizer"] = expected.optimizer
        trees |= {"trained": expected.parameters} if expected.average is not None else {}
    targets = {item: rename(jax.tree.map(_target, tree, shardings(tree)), as_saved) for item, tree in trees.items()}
    restored = _agreed(directory, targets)
    for item, tree in restored.items():
        saved = run["checksums"][item]
        if any(saved[name] != number for name, number in checksums(tree).items()):
            raise Damaged(f"checkpoint {directory}: {item} differ from what was saved")
    if names := checkpoint_format.not_finite(restored["parameters"]):
        raise Damaged(f"checkpoint {directory}: {len(names)} parameters are not finite, among them {names[0]}")
    restored = rename(restored, name_since_format_2)
    return Saved(widened(restored["parameters"]), restored.get("optimizer"), restored.get("trained"), run, tokenizer)


def describe_checkpoint(directory: Path) -> tuple[Json, Tokenizer]:
    """Returns the `run` item and the tokenizer, without any array. Raises Damaged, Trouble or UserError."""
    with guarded(directory):
        # JSON files under the name that Orbax's JSON handler gives them
        run, files = (json.loads((directory / item / "metadata").read_bytes()) for item in ("run", "tokenizer"))
    run = checkpoint_format.check_run(run, directory)
    return run, checkpoint_format.unpack(files, run, directory)


def write_checkpoint(directory: Path, parameters: dict[str, Any], run: dict, tokenizer: Tokenizer) -> None:
    """Writes a checkpoint of parameters alone, such as a converted one, that `init_from=<directory>` can name.

    `run` needs `step`, `config` (with the group `model`) and `task`, as `describe_checkpoint` gives them. `parameters`
    may be in fewer bits (`stored.py`). It is emptied: array by array it becomes JAX's, of which Orbax makes one copy
    less than of NumPy's.
    """
    parameters = {name: jnp.asarray(parameters.pop(name)) for name in list(parameters)}
    with contextlib.closing(ocp.Checkpointer(ocp.CompositeCheckpointHandler())) as checkpointer:
        checkpointer.save(directory.absolute(), args=items({"parameters": parameters}, run, tokenizer))


def items(arrays: dict[str, Any], run: dict[str, Any], tokenizer: Tokenizer) -> ocp.args.Composite:
    """Returns what Orbax is to write: the arrays themselves, copies of the rest."""
    sums, files = {name: checksums(tree) for name, tree in arrays.items()}, checkpoint_format.pack(tokenizer)
    return ocp.args.Composite(
        **{name: ocp.args.StandardSave(tree) for name, tree in arrays.items()},
        run=ocp.args.JsonSave(checkpoint_format.seal(run, sums, files)),
        tokenizer=ocp.args.JsonSave(files),
    )


def find_checkpoint(path: str) -> Path:
    """Returns the newest checkpoint of a workdir or a `checkpoints` folder; or `path` itself if it is a checkpoint."""
    found = _newest(Path(local(path)))
    if found is None:
        raise UserError(f"no checkpoint in {path}; give a workdir or one of its checkpoints")
    return found


def choose_checkpoint(path: str, which: str = "best", task_name: str = "") -> Path:
    """Returns the checkpoint that a workdir, a `checkpoints` folder or a checkpoint's own path means; logs the choice.

    `which` is "best" (the newest if none was evaluated), "best:METRIC", "newest", the number of a step, or another
    path. "best" goes by the run's `checkpoint.best_metric`, or for one of several tasks by the first metric of that
    task in `checkpoint.also_best`. Raises UserError.
    """
    kind, _, metric = which.partition(":")
    if which != "newest" and kind != "best" and not which.isdigit():
        return choose_checkpoint(which, task_name=task_name)
    path = local(path)
    newest = find_checkpoint(path)
    if newest in (Path(path), Path(path) / "checkpoints"):  # the path of one checkpoint says everything
        return newest
    if which.isdigit():
        if not (newest.parent / which / "run").is_dir():
            present = ", ".join(map(str, steps(newest.parent)))
            raise UserError(f"{path} has no checkpoint of step {which}; it has {present}")
        return newest.parent / which
    folder, reason = newest, "the newest checkpoint"
    if kind == "best":
        modes = best_modes(describe_checkpoint(newest)[0]["config"]["checkpoint"])
        if metric and metric not in modes:
            raise UserError(f"{path}: its run kept the best checkpoint by {', '.join(modes)}, not by '{metric}'")
        main, *others = modes
        of_task = (name for name in others if task_name and name.startswith(f"{task_name}/"))
        metric = metric or next(of_task, main)
        known = scores(newest.parent, metric)
        best = best_of(known, modes[metric])
        reason = "no checkpoint was evaluated, so the newest one is taken"
        if best is not None:
            folder, reason = newest.parent / str(best), f"the best by {metric}, {known[best]:.4f}"
    logging.info("%s: %s", folder, reason)
    return folder


def start_of(config: ConfigDict, workdir: Path) -> str:
    """Returns the path that a run's first parameters and vocabulary come from: init_from, or once it is made the one
    with the new tokens of extend.words."""
    extended = workdir / EXTENDED
    return str(extended) if config.extend.words and extended.is_dir() else config.init_from


def has_checkpoint(path: str) -> bool:
    """Returns True if `find_checkpoint` would find one."""
    return _newest(Path(local(path))) is not None


def _newest(root: Path) -> Path | None:
    for folder in (root / "checkpoints", root):
        if (folder / "run").is_dir():
            return folder
        if found := steps(folder):
            return folder / str(found[-1])
    return None


def scores(directory: Path, metric: str) -> dict[int, float]:
    """Returns the value of `metric` with which each checkpoint in a `checkpoints` folder was saved, by step. One that
    was not evaluated, or whose score cannot be read, is left out."""
    found = {}
    for step in steps(directory):
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            folder = directory / str(step)
            run = json.loads((folder / "run" / "metadata").read_bytes())
            # Format 1 left the score to Orbax, which keeps it in an item of its own.
            score = run["score"] if "format" in run else json.loads((folder / "metrics" / "metrics").read_bytes())
            if np.isfinite(score[metric]):
                found[step] = float(score[metric])
    return found


def best_modes(checkpoint: Mapping[str, Any] | ConfigDict) -> dict[str, str]:
    """Returns the metrics by which a run keeps best checkpoints, with "min" or "max": `best_metric`, then those of
    `also_best`."""
    others = (name.strip() for name in checkpoint["also_best"].split(","))
    modes = {name: "min" if name.endswith(LOWER_IS_BETTER) else "max" for name in others if name}
    return {checkpoint["best_metric"]: checkpoint["best_mode"]} | {
        name: mode for name, mode in modes.items() if name != checkpoint["best_metric"]
    }


def best_of(scores: Mapping[int, float], mode: str) -> int | None:
    """Returns the step with the best score, the later one of two equals. `mode` is "min" or "max"."""
    sign = -1 if mode == "min" else 1
    return max(scores, key=lambda step: (sign * scores[step], step), default=None)


def steps(directory: Path) -> list[int]:
    """Returns the steps of the finished checkpoints in a `checkpoints` folder, ascending."""
    # One that is being written or deleted has a name that is no number.
    return sorted(int(child.name) for child in directory.glob("*") if child.name.isdecimal())


def _abstract_parameters(directory: Path, run: Json) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of the saved parameters. Their names must be those of the checksums, which are protected."""
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
        metadata = handler.metadata(epath.Path(directory.absolute()) / "parameters")
    if metadata is None:
        raise FileNotFoundError(f"no description of the arrays in {directory / 'parameters'}")
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in metadata.tree.items()}
    keys = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(shapes)[0]}
    if keys != run["checksums"]["parameters"].keys():
        raise Damaged(f"checkpoint {directory}: parameters have other names than those that were saved")
    # A shape of a crafted checkpoint must not fill the memory: what was never written is read as zeros.
    claimed = sum(math.prod(x.shape) * x.dtype.itemsize for x in shapes.values())
    held = sum(file.stat().st_size for file in (directory / "parameters").rglob("*") if file.is_file())
    if claimed > _SMALL + _MOST_COMPRESSED * held:
        raise Damaged(f"checkpoint {directory}: parameters claim {claimed:,} bytes, and their files hold {held:,}")
    return shapes


def _check_structure(
    expected: TrainState, shapes: dict, run: Json, directory: Path, as_saved: Callable[[str], str]
) -> None:
    """Raises UserError if the run's state has other arrays than `expected`: an option was changed, nothing is lost."""
    for name in sorted({*shapes, *expected.parameters}):
        there, here = (tree[name].shape if name in tree else "absent" for tree in (shapes, expected.parameters))
        if there != here:
            raise UserError(
                f"{directory} holds another model than the config describes ({name}: {there} there, {here} here); "
                "restore the config of its run, or choose another --workdir"
            )
    remedy = "start from it with --config.init_from in another --workdir"
    sums = run["checksums"].get("optimizer")
    if sums is None:
        raise UserError(f"{directory} has no optimizer state; {remedy}")
    if ("trained" in run["checksums"]) != (expected.average is not None):
        was = run["config"]["train"]["ema_decay"]
        raise UserError(f"{directory} was trained with train.ema_decay={was}: restore it, or {remedy}")
    leaves = jax.tree_util.tree_flatten_with_path(rename(expected.optimizer, as_saved))[0]
    paths = {jax.tree_util.keystr(path) for path, _ in leaves}
    changes = [f"it lacks {path}" for path in sorted(paths - sums.keys())]
    if run["format"] > 1:  # runs of format 1 kept moments of frozen parameters too; these are left behind
        changes += [f"it has {path} besides" for path in sorted(sums.keys() - paths)]
    if changes:
        was = run["config"]["optimizer"]
        raise UserError(
            f"{directory} was trained with another optimizer than the config describes ({changes[0]}); its run had "
            f"optimizer.name={was['name']} and optimizer.freeze={was['freeze']!r}: restore them, or {remedy}"
        )


def _target(x: Any, sharding: Sharding) -> jax.ShapeDtypeStruct:
    sharding.shard_shape(x.shape)  # raises what would otherwise pass for damage
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _restore(directory: Path, target: PyTree) -> PyTree:
    # The handler alone, not a Checkpointer: that waits for the other processes, of which one may have failed.
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
        how = ocp.checkpoint_utils.construct_restore_args(target)
        args = ocp.args.PyTreeRestore(item=target, restore_args=how, partial_restore=True)
        return handler.restore(epath.Path(directory.absolute()), args=args)


def _agreed(directory: Path, targets: dict[str, Any]) -> dict[str, Any]:
    """Returns the restored items, or raises on every process if reading fails on one, Trouble before Damaged: the
    others would wait for ever for the one that failed, or take another checkpoint than it does."""
    problem, restored = None, {}
    try:
        with guarded(directory):
            restored = {item: _restore(directory / item, target) for item, target in targets.items()}
    except (Damaged, Trouble) as raised:
        problem = raised
    if not all(x.sharding.is_fully_addressable for x in jax.tree.leaves(targets)):  # the processes share them
        code = 2 if isinstance(problem, Trouble) else 1 if problem else 0
        worst = int(np.max(multihost_utils.process_allgather(np.int32(code))))
        if worst and code < worst:
            kind, what = (Trouble, "cannot be read") if worst == 2 else (Damaged, "is damaged")
            raise kind(f"checkpoint {directory} {what} on another process, whose output says why")
    if problem is not None:
        raise problem
    return restored
