"""The guard of a run: a step with a loss or gradient norm that is not finite, or far above those of the last steps, is
undone, and its batch is left out.

The batch is written to `bad_batches/`, the run goes back to its last checkpoint and takes the steps from there again.
At the update that went wrong the step is examined (`diagnosis.py`), and the next batch takes the place of the bad one.
What was left out is part of the run's record in every checkpoint: a run that is interrupted and resumed leaves out the
same batches and computes the same bits.
"""

import io
import json
import logging
import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from bert_jax.config import Json
from bert_jax.files import write_atomically
from bert_jax.tasks.task import Batch, Sums, Task
from bert_jax.training.processes import on_first_process
from bert_jax.training.step import Diverged, TrainState

FOLDER = "bad_batches"
WATCHED = ("loss", "grad_norm")
_WINDOW, _LEAST = 128, 16  # finite steps whose median is the measure of a spike; as many as are needed to call one


class Taken(NamedTuple):
    """A step that was launched. `update` counts the updates before it, `number` the batches before its batch;
    `position` is the data position of the batch."""

    update: int
    number: int
    position: Mapping[str, Any]
    batch: Batch
    sums: Sums


class BadStep(Exception):
    """A step that has to be undone, and why."""

    def __init__(self, problem: str, taken: Taken, is_spike: bool):
        super().__init__(problem)
        self.problem, self.taken, self.is_spike = problem, taken, is_spike


class Guard:
    """Watches the steps of a run, one behind the loop, which so never waits for the step that it just launched. Without
    `train.max_rollbacks` and `train.spike_factor` it only passes over batches that were left out before."""

    def __init__(self, task: Task, train: ConfigDict, workdir: Path, explain: Callable[[TrainState, Batch], str]):
        """`explain` says where the first number that is not finite arises in the step from a state on a batch."""
        self.task, self.folder, self.explain = task, workdir / FOLDER, explain
        self.factor, self.most = train.spike_factor, train.max_rollbacks
        self.is_on = self.factor > 0 or self.most > 0
        self.left_out: list[int] = []  # numbers of batches, ascending
        self.recent: dict[str, deque[float]] = {}
        self.unchecked: Taken | None = None
        self.suspect: BadStep | None = None  # the step to examine when the run comes by again

    def resume(self, saved: Mapping[str, Any]) -> None:
        """Continues from the record of a checkpoint; {} at the beginning of a run."""
        self.left_out = sorted({*self.left_out, *saved.get("left_out", ())})
        recent = saved.get("recent", {})
        self.recent = {name: deque(recent.get(name, ()), maxlen=_WINDOW) for name in WATCHED}
        self.unchecked = None

    def state(self) -> Json:
        """Returns the record for a checkpoint, JSON."""
        if not self.is_on and not self.left_out:
            return {}
        return {"left_out": self.left_out, "recent": {name: list(values) for name, values in self.recent.items()}}

    def batch_number(self, update: int) -> int:
        return batch_number(update, self.left_out)

    def first_batch(self, update: int) -> int:
        """Returns the number of the batch after that of the update before, from which reading continues."""
        return self.batch_number(update - 1) + 1 if update else 0

    def watch(self, taken: Taken) -> None:
        """Checks the step before, which has ended, and keeps this one. Raises BadStep."""
        if self.is_on:
            self.settle()
            self.unchecked = taken

    def settle(self) -> None:
        """Checks the step that was launched last; waits for it. Raises BadStep."""
        taken, self.unchecked = self.unchecked, None
        if taken is None:
            return
        sums = jax.tree.map(lambda x: np.asarray(x, np.float64), jax.device_get(taken.sums))
        metrics = self.task.means(sums)
        found = {name: metrics[name] for name in WATCHED if name in metrics}
        for name, value in found.items():
            if not np.isfinite(value):
                raise BadStep(f"the {_WORDS[name]} is {value} at step {taken.update + 1}", taken, is_spike=False)
        for name, value in found.items():
            seen = self.recent[name]
            usual = statistics.median(seen) if self.factor and len(seen) >= _LEAST else np.inf
            if value > self.factor * usual:
                problem = f"the {_WORDS[name]} is {value:.4g} at step {taken.update + 1}, {value / usual:.3g} times "
                raise BadStep(f"{problem}the median of the {len(seen)} steps before", taken, is_spike=True)
        for name, value in found.items():  # a bad step does not come here: it cannot raise the median
            self.recent[name].append(value)

    def go_back(self, bad: BadStep) -> None:
        """Writes the batch of a bad step and leaves it out from now on. Raises Diverged for a spike if
        `train.max_rollbacks` batches were left out before; for a number that is not finite `examine` does."""
        file = self.folder / f"batch_{bad.taken.number}.npz"
        _write_batch(file, bad)
        logging.warning("%s; its batch is in %s; going back to the last checkpoint", bad.problem, file)
        if len(self.left_out) < self.most:
            self.left_out = sorted({*self.left_out, bad.taken.number})
        elif bad.is_spike:
            raise Diverged(f"{bad.problem}; {self._exhausted(file)}")
        self.suspect = None if bad.is_spike else bad.with_traceback(None)  # whose frames hold the old state

    def examine(self, state: TrainState, update: int) -> None:
        """Logs, before the update at which the run went wrong, where the first number that is not finite arises. Raises
        Diverged with the same words if the run may not leave out another batch."""
        if self.suspect is None or update != self.suspect.taken.update:
            return
        bad, self.suspect = self.suspect, None
        found = self.explain(state, bad.taken.batch)
        if bad.taken.number not in self.left_out:
            file = self.folder / f"batch_{bad.taken.number}.npz"
            raise Diverged(f"{bad.problem}; {found}; {self._exhausted(file)}")
        logging.warning("%s: %s; batch %d is left out", bad.problem, found, bad.taken.number)

    def _exhausted(self, file: Path) -> str:
        return f"its batch is in {file}, and train.max_rollbacks={self.most} other batches were left out before"


def batch_number(update: int, left_out: Sequence[int]) -> int:
    """Returns the number of the batch that an update takes: those left out, ascending, are not counted."""
    number = update
    for skipped in left_out:
        number += skipped <= number
    return number


_WORDS = {"loss": "loss", "grad_norm": "gradient norm"}


def _write_batch(file: Path, bad: BadStep) -> None:
    """Writes arrays that `numpy.load` reads without pickle: the batch, and what is known of the step."""
    taken = bad.taken
    arrays = taken.batch
    if jax.process_count() > 1:
        arrays = multihost_utils.process_allgather(arrays, tiled=True)
    facts = {"update": taken.update, "batch_number": taken.number, "problem": bad.problem}
    facts["data_position"] = json.dumps(dict(taken.position))

    def write() -> None:
        content = io.BytesIO()
        values = {name: np.asarray(x) for name, x in (jax.device_get(arrays) | facts).items()}
        np.savez_compressed(content, allow_pickle=False, **values)
        file.parent.mkdir(exist_ok=True)
        write_atomically(file, content.getvalue())

    on_first_process(write)
