"""What may watch a run: its speed, a profiler. A run without observers computes the same bits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from jax.stages import Compiled

from bert_jax.sharding import Mesh
from bert_jax.tasks.task import Batch, Sums, Task

if TYPE_CHECKING:
    from bert_jax.training.step import TrainState

DATA_WAIT = "bert_jax data wait"  # the name in a profiler's trace of the time that the loop waits for a batch
EVALUATION, SAVING = "evaluation", "saving"  # what the loop pauses for
LEDGER = "ledger"  # the split of a line of metrics.jsonl that says where the time went (`ledger.py`)


class Observer:
    """Is told what the loop does, in the order of the methods below; each of them does nothing here."""

    def begin(self, task: Task, state: TrainState, mesh: Mesh) -> None:
        """The state exists; nothing is compiled yet. Called again when the run goes back to a checkpoint."""

    def enter_phase(self, task: Task) -> None:
        """The steps from here on are those of this task, a phase of the run's; called at the beginning too."""

    def before_batch(self) -> None:
        """The loop asks for the next batch."""

    def before_step(self, batch: Batch) -> None:
        """The loop has the batch and launches its step."""

    def compiling(self) -> None:
        """A step is traced for a new shape, and the compiler works on it: the host is idle for seconds."""

    def compiled(self, batch: Batch, program: Compiled, waited: float) -> None:
        """The step was compiled for the shape of this batch, for which the loop waited so many seconds."""

    def after_step(self, sums: Sums) -> bool:
        """The step is launched. Returns True if this call took time that should not count as training time."""
        return False

    def pause(self, reason: str) -> None:
        """The loop turns from training to EVALUATION or SAVING, until `restart_clock` or the end."""

    def before_evaluation_batch(self, batch: Batch) -> None:
        """An evaluation launches its step for this batch."""

    def restart_clock(self) -> None:
        """An evaluation, a checkpoint or another observer took time that should not count as training time."""

    def report(self) -> dict[str, float]:
        """Returns metrics for the training line about the steps since the last call, all of which have ended."""
        return {}

    def account(self) -> dict[str, float]:
        """Returns seconds since the beginning of the run, by what they were spent on; recorded with every save."""
        return {}

    def end(self) -> None:
        """The run has ended, with or without an error, or goes back to a checkpoint."""


class Observers(Observer):
    """Several observers as one."""

    def __init__(self, observers: Sequence[Observer]):
        self.observers = observers
        told = ("begin", "enter_phase", "before_batch", "before_step", "compiling", "compiled", "pause")
        for name in (*told, "before_evaluation_batch", "restart_clock", "end"):
            setattr(self, name, partial(self._tell_all, name))

    def _tell_all(self, name: str, *arguments: object) -> None:
        for observer in self.observers:
            getattr(observer, name)(*arguments)

    def after_step(self, sums: Sums) -> bool:
        took_time = [observer.after_step(sums) for observer in self.observers]
        if any(took_time):
            self.restart_clock()
        return any(took_time)

    def report(self) -> dict[str, float]:
        return {name: value for observer in self.observers for name, value in observer.report().items()}

    def account(self) -> dict[str, float]:
        return {name: value for observer in self.observers for name, value in observer.account().items()}
