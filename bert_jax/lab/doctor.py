"""`--mode=doctor`: whether the next start of a run will find all that it needs, item by item. Nothing is changed."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from bert_jax.config import UserError, check_options, from_json_dict, read_config
from bert_jax.data.pretraining.prepared import open_prepared
from bert_jax.files import LOCK, only_writer
from bert_jax.tasks import may_import, task_class
from bert_jax.training.checkpoint import describe_checkpoint, read_checkpoint, steps
from bert_jax.training.checkpoint_format import Damaged, not_finite
from bert_jax.training.metrics_log import read_metrics
from bert_jax.training.optimizer import learning_rate_multipliers, make_optimizer, make_schedule
from bert_jax.training.step import TrainState


class Finding(NamedTuple):
    """What was found of one item of a workdir. A problem ends with what to do about it."""

    item: str
    text: str
    is_problem: bool = False

    def __str__(self) -> str:
        return f"{'PROBLEM' if self.is_problem else 'ok':8} {self.item}: {self.text}"


def examine(workdir: Path) -> Iterator[Finding]:
    """Yields what is found in a workdir, one item after the other."""
    if not workdir.is_dir():
        raise UserError(f"--workdir {workdir} is not a folder; give the folder of a run")
    folder = workdir / "checkpoints"
    in_use = _lock(workdir)
    yield _guarded("config.json", lambda: _config(workdir))
    yield in_use
    found = steps(folder)
    if not found:
        yield Finding("checkpoints", "there is none; the next start begins at step 0")
    for step in found:
        finding = _guarded(f"checkpoint {step}", lambda step=step: _checkpoint(folder / str(step)))
        if (folder / str(step)).is_dir():  # else a run that is training has deleted it meanwhile
            yield finding
    yield _damaged(workdir)
    yield _left_overs(workdir)
    yield _guarded("metrics.jsonl", lambda: _metrics(workdir / "metrics.jsonl"))
    yield _guarded("data", lambda: _data(workdir, found))
    yield _disk(workdir, found)


def _guarded(item: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(item, check())
    except UserError as problem:
        return Finding(item, str(problem), is_problem=True)
    except OSError as problem:
        text = f"{problem.filename or ''} cannot be read ({problem.strerror}); restore its permissions, or the disk"
        return Finding(item, text, is_problem=True)


def _config(workdir: Path) -> str:
    config = read_config(workdir / "config.json")
    check_options(config)
    return f"valid; task={config.task}, {config.train.steps} steps"


def _lock(workdir: Path) -> Finding:
    if not (workdir / LOCK).exists():
        return Finding("lock", "no run trains here")
    try:
        with only_writer(workdir):
            return Finding("lock", "no run trains here")
    except BlockingIOError as problem:
        return Finding("lock", f"{problem.strerror}: what follows may change while it is read")
    except OSError as problem:
        text = f"{workdir / LOCK} cannot be written to ({problem.strerror}); restore its permissions"
        return Finding("lock", text, is_problem=True)


def _checkpoint(folder: Path) -> str:
    """Reads everything that a resumed run reads."""
    try:
        run = describe_checkpoint(folder)[0]
        saved = read_checkpoint(folder)
        kinds = ["parameters"]
        if "optimizer" in run["checksums"]:
            shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in saved.parameters.items()}
            config = from_json_dict(run["config"])
            multipliers = learning_rate_multipliers(config.optimizer, {name: x.shape for name, x in shapes.items()})
            optimizer = make_optimizer(
                config.optimizer, make_schedule(config.optimizer, config.train.steps), multipliers
            )
            step = jax.ShapeDtypeStruct((), np.int32)
            average = shapes if config.train.ema_decay else None
            expected = TrainState(step, shapes, jax.eval_shape(optimizer.init, shapes), average)  # type: ignore[arg-type]
            saved = read_checkpoint(folder, expected=expected)
            kinds.append("optimizer")
            if names := not_finite((saved.optimizer, saved.trained)):
                raise Damaged(f"checkpoint {folder}: {names[0]} of the optimizer is not finite")
    except Damaged as damage:
        raise UserError(f"{damage}; the next start sets it aside in damaged/ and takes the one before") from None
    number = len(jax.tree.leaves((saved.parameters, saved.optimizer, saved.trained)))
    kind = "temporary, " if run["temporary"] else ""
    return f"{kind}{' and '.join(kinds)} are as saved and finite ({number} arrays, {_megabytes(_size(folder))})"


def _damaged(workdir: Path) -> Finding:
    names = sorted(path.name for path in (workdir / "damaged").glob("*"))
    if not names:
        return Finding("damaged", "no checkpoint was set aside")
    text = f"checkpoints {', '.join(names)} were set aside in {workdir / 'damaged'}; find the cause (disk, memory) and "
    return Finding("damaged", f"{text}delete that folder", is_problem=True)


def _left_overs(workdir: Path) -> Finding:
    folder = workdir / "checkpoints"
    found = [*folder.glob("*.orbax-checkpoint-tmp*"), *folder.glob(".deleting-*")]
    size = _megabytes(sum(map(_size, found)))
    if found:
        return Finding(
            "left-overs", f"{len(found)} unfinished or deleted checkpoints, {size}; the next start removes them"
        )
    return Finding("left-overs", "none")


def _metrics(file: Path) -> str:
    if not file.exists():
        return "there is none yet"
    records, lines = read_metrics(file), file.read_bytes().splitlines()
    bad = [number for number, line in enumerate(lines, 1) if not _is_json(line)]
    if bad and bad != [len(lines)]:
        raise UserError(f"{file}:{bad[0]} is not a line of metrics; correct the line, or move the file away")
    cut = "; the last line was cut off, the next start drops it" if bad else ""
    return f"{len(records)} lines, the last of step {max((record['step'] for record in records), default=0)}{cut}"


def _is_json(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _data(workdir: Path, found: list[int]) -> str:
    from bert_jax.checks import check_files

    config = read_config(workdir / "config.json")
    check_files(config)
    position = describe_checkpoint(workdir / "checkpoints" / str(found[-1]))[0]["data"] if found else {}
    is_ours = may_import(config, "")  # a class of the run's own would be executed by importing it
    folders = task_class(config.task).prepared_folders(config, position) if position and is_ours else []
    if not folders:
        return "the files that the config names are there"
    if missing := [folder for folder in folders if not folder.exists()]:
        return f"{missing[0]} is not there; the next start prepares it again from the corpus"
    shards = sum(len(open_prepared(folder).shards) for folder in folders)
    shown = " and ".join(map(str, folders))
    return f"{shown} has the {shards} shards of its manifest, in their sizes"


def _disk(workdir: Path, found: list[int]) -> Finding:
    free = shutil.disk_usage(workdir).free
    needed = _size(workdir / "checkpoints" / str(found[-1])) if found else 0
    if free < 1.1 * needed:
        text = f"{_megabytes(free)} are free and a checkpoint takes {_megabytes(needed)}; free some space"
        return Finding("disk", text, is_problem=True)
    return Finding(
        "disk", f"{_megabytes(free)} are free" + (f", a checkpoint takes {_megabytes(needed)}" if found else "")
    )


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.1f} MB"
