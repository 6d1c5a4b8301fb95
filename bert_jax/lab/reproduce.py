"""Makes a run again and compares it with the first one, number by number and bit by bit.

    python -m bert_jax.lab.reproduce runs/a [--steps=100] [--workdir=runs/a.again]

The config, the data and the seed are those of the run; what else has changed since (code, packages, machine, devices)
is listed first. Every number of metrics.jsonl is compared, but for times and memory, and the checksums of checkpoints
of the same step. The exit status is 0 if all are the same and 2 if not; the error names the first difference.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bert_jax.command import Parser, run_command, say
from bert_jax.config import Json, UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

Lines = dict[tuple[int, str], Json]  # (step, split) → line of metrics.jsonl


class Change(NamedTuple):
    """A number that is not the same in both runs; None where one of them lacks it."""

    step: int
    split: str
    name: str
    before: float | None
    now: float | None

    @property
    def size(self) -> float:
        """The difference, relative to the larger of the two."""
        if self.before is None or self.now is None or not math.isfinite(self.before) or not math.isfinite(self.now):
            return math.inf
        return abs(self.before - self.now) / max(abs(self.before), abs(self.now))

    def __str__(self) -> str:
        shown = ["missing" if value is None else f"{value:.6g}" for value in (self.before, self.now)]
        apart = f", {self.size:.2g} apart" if math.isfinite(self.size) else ""
        return f"step {self.step}, {self.split} {self.name}: {shown[0]} before, {shown[1]} now{apart}"


def main(argv: list[str]) -> int:
    """Prints the comparison. Heavy imports wait until the flags are known to be right."""
    parser = Parser("bert_jax.lab.reproduce", __doc__ or "")
    parser.usage = "python -m bert_jax.lab.reproduce RUN [--NAME=VALUE …]"
    parser.flag("workdir", "", "folder of the second run [RUN.again]", metavar="DIR")
    parser.flag("steps", 0, "first steps that are made again; 0 = as many as the run made", metavar="N")
    parser.flag("task", "", "the run's task, if it is a class of your own: its module is imported", metavar="CLASS")
    parser.flag("debug", False, "show the traceback of an error")
    flags, words = parser.parse_with_names(argv)
    if len(words) != 1:
        raise UserError(f"{len(words)} runs are given; give one workdir, e.g. runs/mine")
    folder = Path(words[0])
    again = Path(flags["workdir"] or folder.parent / f"{folder.resolve().name}.again")
    reproduce(folder, again, steps=flags["steps"], users_task=flags["task"])
    return 0


def reproduce(folder: Path, again: Path, *, steps: int = 0, users_task: str = "") -> None:
    """Makes the run of a workdir again, or its first steps, in the folder `again`, and prints what differs.

    Raises UserError if the run cannot be made again (its data is gone or has changed, its config is none of this code),
    and if a number or a bit differs.
    """
    from bert_jax.checks import check_writable
    from bert_jax.lab.provenance import Provenance, read_environments
    from bert_jax.run import start_run
    from bert_jax.teaching import trained_task
    from bert_jax.training.loop import train

    config, before = _config_of(folder, users_task), _lines(folder)
    made = max((step for step, split in before if split == "train"), default=0)
    if not made:
        raise UserError(f"{folder} has no step in metrics.jsonl to compare with; train that run first")
    _check_unused(again, folder)
    end = min(steps or made, made)
    is_whole = end == config.train.steps
    if not is_whole:  # the learning rate falls as if all steps were made
        config.optimizer.decay_steps = config.optimizer.decay_steps or config.train.steps
        config.train.epochs, config.train.steps = None, end
    # The copy in a bucket is the first run's: its checkpoints would be continued, and replaced.
    config.checkpoint.mirror, config.train.trackers = "", ""
    environment = (read_environments(folder) or [{}])[0]
    source = start_run(config, again)
    check_writable(again)
    task = trained_task(config, source)
    provenance = Provenance(again, source.parameters if source else "")
    _check_data(environment, provenance.data_of(task), folder)
    train(task, config, again, [provenance])
    now = _lines(again)
    for line in _circumstances(environment, read_environments(again)[-1]):
        say(line)
    _judge(folder, again, end, before, now, with_test=is_whole)


def _config_of(folder: Path, users_task: str) -> "ConfigDict":
    """Returns the config of a run. Raises UserError if this code cannot make it."""
    from bert_jax.config import check_options, read_config
    from bert_jax.lab.provenance import read_environments
    from bert_jax.lab.records import STUDY
    from bert_jax.tasks import may_import

    if not (folder / "config.json").exists():
        several = "; it holds several runs, give one of them" if (folder / STUDY).exists() else ""
        several = f"; give one seed, as {folder}/seed0" if (folder / "seeds.json").exists() else several
        raise UserError(f"{folder} is not the workdir of a run: there is no config.json{several}")
    config = read_config(folder / "config.json")
    if not may_import(config, users_task):
        raise UserError(f"the task of {folder} is the class {config.task}; if you trust it, give --task={config.task}")
    try:
        check_options(config)
    except UserError as error:
        commit = (read_environments(folder) or [{}])[0].get("code", {}).get("commit", "")
        remedy = f": check out its commit, {commit}" if commit else ""
        raise UserError(f"{folder / 'config.json'} was written by other code ({error}){remedy}") from None
    return config


def _check_unused(again: Path, folder: Path) -> None:
    """Raises UserError for a second folder that is the first, or holds what other code has made."""
    from bert_jax.lab.provenance import code_and_packages, differences, read_environments

    if again.resolve() == folder.resolve():
        raise UserError(f"--workdir {again} is the run itself; give another folder")
    if not again.exists() or not any(again.iterdir()):
        return
    starts = read_environments(again)
    mine = code_and_packages()
    if not starts or any(differences({key: start.get(key) for key in mine}, mine) for start in starts):
        raise UserError(f"{again} was not made by this code; delete it, or give another --workdir")


def _lines(folder: Path) -> Lines:
    """Returns what is compared of a metrics.jsonl."""
    from bert_jax.training.metrics_log import read_metrics
    from bert_jax.training.observer import LEDGER
    from bert_jax.training.throughput import MEASURED

    return {
        (line["step"], line["split"]): {
            name: value
            for name, value in line.items()
            if name not in ("step", "split", *MEASURED) and isinstance(value, (int, float))
        }
        for line in read_metrics(folder / "metrics.jsonl")
        if line["split"] != LEDGER
    }


def _check_data(environment: Mapping[str, object], data: Mapping[str, str], folder: Path) -> None:
    """Raises UserError if the data, or what the run started from, has another content than it had."""
    saved = environment.get("data")
    if not isinstance(saved, dict):
        return
    changed = [name for name in {**saved, **data} if saved.get(name) != data.get(name)]
    if changed:
        raise UserError(
            f"the data of {folder} has changed since ({', '.join(changed)}); restore what its config.json names, else "
            "other figures are to be expected"
        )


def _circumstances(before: Mapping[str, object], now: Mapping[str, object]) -> Iterator[str]:
    """Yields a line for each group of what the figures depend on."""
    from bert_jax.lab.provenance import differences

    if not before:
        yield "the run does not say by which code, on which machine and from which data it was made"
        return
    for group in ("code", "packages", "machine", "devices", "data"):
        changes = differences({group: before.get(group)}, {group: now.get(group)})
        shown = "; ".join(f"{name.partition('.')[2] or name} was {old}, is {new}" for name, old, new in changes)
        yield f"{group:9} {shown or 'the same'}"


def _judge(folder: Path, again: Path, end: int, before: Lines, now: Lines, *, with_test: bool) -> None:
    """Prints the verdict. Raises UserError if anything differs."""
    lines = {key: line for key, line in before.items() if key[0] <= end and (with_test or key[1] in ("train", "eval"))}
    changes = [change for key in sorted(lines) for change in _changes(key, lines[key], now.get(key, {}))]
    bits, steps = _changed_bits(folder, again, end)
    count = sum(map(len, lines.values()))
    if not changes and not bits:
        also = f", and the same bits in checkpoint {', '.join(map(str, steps))}" if steps else ""
        say(f"the same: all {count} numbers of {len(lines)} lines up to step {end}{also}")
        return
    if not changes:
        raise UserError(f"all {count} numbers up to step {end} are the same, but not all bits: {bits[0]}")
    largest = max(changes, key=lambda change: change.size)
    more = f"; {len(changes)} of {count} numbers differ, most of all {largest}" if len(changes) > 1 else ""
    raise UserError(f"{again} differs from {folder} from step {changes[0].step} on: {changes[0]}{more}")


def _changes(key: tuple[int, str], before: Mapping[str, float], now: Mapping[str, float]) -> Iterator[Change]:
    for name, value in before.items():
        other = now.get(name)
        if other != value and not (other is not None and math.isnan(other) and math.isnan(value)):
            yield Change(*key, name, value, other)


def _changed_bits(folder: Path, again: Path, end: int) -> tuple[list[str], list[int]]:
    """Returns the arrays whose bits differ, of the earliest such checkpoint, and the steps of which both runs have
    one."""
    from bert_jax.training.checkpoint import describe_checkpoint, steps

    both = [step for step in steps(folder / "checkpoints") if step in steps(again / "checkpoints") and step <= end]
    for step in both:
        sums = [describe_checkpoint(path / "checkpoints" / str(step))[0]["checksums"] for path in (folder, again)]
        names = [
            f"{item}{name} of checkpoint {step}"
            for item in ("parameters", "trained", "optimizer")
            for name, number in sums[0].get(item, {}).items()
            if sums[1].get(item, {}).get(name) != number
        ]
        if names:
            return names, both
    return [], both


if __name__ == "__main__":
    run_command(main)
