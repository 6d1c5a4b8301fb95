"""A thread that notices when a run no longer moves, shows where it stands, and ends it.

jax's heartbeats notice a process that has died. They do not notice one that is alive and hangs: stopped by SIGSTOP, in
an endless loop, in a read of a network disk that never returns. The others then wait in a collective for ever. Every
process therefore watches itself, and they all end: a collective that waits for a process that hangs does not move
either.
"""

import contextlib
import faulthandler
import logging
import threading
from typing import NamedTuple

from bert_jax.training.observer import EVALUATION, SAVING, Observer
from bert_jax.training.processes import leave
from bert_jax.training.step import batch_shape

# What may take longer than a step: compiling a program, starting, metrics of an evaluation, writing a checkpoint.
PATIENCE = 4
_STDERR = 2


class _Phase(NamedTuple):
    """What the loop does now, and after how many seconds without another phase it counts as hanging."""

    name: str
    limit: float


class Watchdog(Observer):
    """Is told what the loop does, inside `with`. When nothing has been told for `seconds`, it writes the stacks of all
    threads to standard error; after as long again, it ends the process with one line and status 75 (`leave`).

    Compiling, the first run of a program, starting, writing a checkpoint and computing an evaluation's metrics may take
    PATIENCE times as long.
    Time in which the whole process was stopped does not count. 0 seconds: nothing is watched.
    """

    def __init__(self, seconds: float):
        self._seconds, self._shapes = seconds, set()
        # Steps until the newest program has run: its first run also waits for processes that still compile it.
        self._settling = 0
        self._phase, self._step = self._started("the run starts", PATIENCE), 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        if self._seconds:
            self._thread.join()

    def begin(self, task, state, mesh) -> None:
        self._step = int(state.step)
        self._enter("the run starts", PATIENCE)

    def before_batch(self) -> None:
        self._enter("it waits for a batch")

    def before_step(self, batch) -> None:
        self._enter_program("it takes a step", batch)

    def compiled(self, batch, program, waited) -> None:
        self._enter("it takes a step")

    def after_step(self, sums) -> bool:
        self._step += 1
        self._settling = max(0, self._settling - 1)
        self._enter("it takes a step")
        return False

    def before_evaluation_batch(self, batch) -> None:
        self._settling = max(0, self._settling - 1)
        self._enter_program("it evaluates", batch)

    def pause(self, reason: str) -> None:
        self._enter({EVALUATION: "it evaluates", SAVING: "it writes a checkpoint"}[reason], PATIENCE)

    def _enter(self, name: str, patience: int = 1) -> None:
        self._phase = self._started(name, patience)

    def _enter_program(self, name: str, batch) -> None:
        shape = (name, batch_shape(batch))
        if shape not in self._shapes:
            self._shapes.add(shape)
            self._settling = 2
        self._enter(name)

    def _started(self, name: str, patience: int) -> _Phase:
        # A new object each time, by which it is told from the one before.
        return _Phase(name, max(patience, PATIENCE if self._settling else 1) * self._seconds)

    def _watch(self) -> None:
        tick = min(1.0, self._seconds / 20)
        seen, waited, warned = self._phase, 0.0, False
        while not self._stop.wait(tick):
            if self._phase is not seen:
                seen, waited, warned = self._phase, 0.0, False
                continue
            waited += tick  # by the clock, a process that was stopped for an hour would end when it continues
            if waited >= seen.limit and not warned:
                warned = True
                self._show(self._explain(waited, seen))
            if waited >= 2 * seen.limit:
                leave(
                    f"{self._explain(waited, seen)}: a device, a disk or another process hangs, see the stacks above; "
                    "the same command continues from the last checkpoint"
                )

    def _explain(self, waited: float, phase: _Phase) -> str:
        return f"nothing has moved for {round(waited, 1):g} s while {phase.name} (step {self._step})"

    def _show(self, message: str) -> None:
        logging.warning("%s; the stacks of all threads follow; after as long again this process ends", message)
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # nobody reads standard error
            faulthandler.dump_traceback(_STDERR, all_threads=True)
