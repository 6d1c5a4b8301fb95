"""Where the time of a run went: a line of metrics.jsonl with every save and at the end, in seconds since its beginning.

start       up to the first batch: data, state, restoring
compile     programs of the training step
waiting     for a batch; the device may still be busy with the step before
useful      training steps
lost        training steps that had to be taken again, after a kill or because the run went back to a checkpoint
evaluation  of validation and test
saving      what the loop waits for; the rest is done in the background
"""

import time
from pathlib import Path

from jax.stages import Compiled

from bert_jax.sharding import Mesh
from bert_jax.tasks.task import Batch, Sums, Task
from bert_jax.training.metrics_log import read_metrics
from bert_jax.training.observer import EVALUATION, LEDGER, SAVING, Observer
from bert_jax.training.step import TrainState

START, COMPILE, WAITING, USEFUL, LOST = "start", "compile", "waiting", "useful", "lost"
KINDS = (USEFUL, LOST, COMPILE, WAITING, EVALUATION, SAVING, START)


class Ledger(Observer):
    """Adds up the time of a run over all its starts. Between two calls of the loop all time is of one kind."""

    def __init__(self, workdir: Path):
        self.file = workdir / "metrics.jsonl"
        self.seconds: dict[str, float] = dict.fromkeys(KINDS, 0.0)
        self.kind: str = START
        self.since = time.perf_counter()
        self.step = self.known_until = -1  # steps up to the second one were taken before
        self.is_new_process = True

    def begin(self, task: Task, state: TrainState, mesh: Mesh) -> None:
        self._turn_to(START)
        if self.step < 0:
            records = read_metrics(self.file)
            written = next((record for record in reversed(records) if record["split"] == LEDGER), {})
            for kind in KINDS:
                self.seconds[kind] += float(written.get(kind, 0.0))
            self.known_until = max((record["step"] for record in records), default=0)
        else:  # the run goes back to a checkpoint
            self.is_new_process, self.known_until = False, max(self.known_until, self.step)
        self.step = int(state.step)

    def before_batch(self) -> None:
        self._turn_to(WAITING)

    def before_step(self, batch: Batch) -> None:
        self._turn_to(LOST if self.step < self.known_until else USEFUL)

    def compiled(self, batch: Batch, program: Compiled, waited: float) -> None:
        now = time.perf_counter()  # also what observers before this one did: they time the machine
        self.seconds[COMPILE] += now - self.since
        self.since = now

    def after_step(self, sums: Sums) -> bool:
        self.step += 1
        return False

    def pause(self, reason: str) -> None:
        self._turn_to(reason)

    def account(self) -> dict[str, float]:
        self._turn_to(self.kind)
        return dict(self.seconds)

    def _turn_to(self, kind: str) -> None:
        now = time.perf_counter()
        self.seconds[self.kind] += now - self.since
        if self.kind == LOST and self.is_new_process:
            # The process that took these steps first did not live to write down their time, which was about the same.
            self.seconds[USEFUL] += now - self.since
        self.kind, self.since = kind, now
