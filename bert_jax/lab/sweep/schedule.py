"""Which run of a study starts when: after the one that it continues, as soon as there is room, until all have ended."""

import contextlib
import logging
import shutil
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Protocol

from bert_jax.config import UserError
from bert_jax.files import is_locked
from bert_jax.lab.records import (
    COMPLETE,
    FAILED,
    PRUNED,
    RUNNING,
    UNFINISHED,
    WAITING,
    RunRecord,
    newest_step,
    read_run,
    write_record,
)
from bert_jax.lab.study import PlannedRun
from bert_jax.lab.sweep.progress import Progress, summary
from bert_jax.lab.sweep.runners import Runner

DISK_FULL = "the disk is full"  # how the error of a run begins that another run would meet as well
_TICK = 0.5  # seconds
_RETRIES = 2  # of a run whose process was killed before it got further than the one before
_MOST_LOST = 20
_LEAST_DISK = 1 << 20  # bytes
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Trials(Protocol):
    """Makes up runs while others train, as a search does (`lab/search.py`)."""

    def ask(self) -> PlannedRun | None:
        """Returns one more run; None if there are enough."""
        ...

    def watch(self, running: Sequence[PlannedRun]) -> list[PlannedRun]:
        """Returns the runs that should be given up."""
        ...

    def tell(self, planned: PlannedRun, record: RunRecord) -> None:
        """Takes notice of a run that has ended."""
        ...


class Schedule:
    """The runs of a study and what has become of them. Runs that are not `wanted` are left as they are."""

    def __init__(
        self,
        workdir: Path,
        planned: Sequence[PlannedRun],
        runner: Runner,
        progress: Progress,
        wanted: frozenset[str] | None = None,
        trials: Trials | None = None,
    ):
        self.workdir, self.runner, self.progress, self.trials = workdir, runner, progress, trials
        self.planned = {one.key: one for one in planned}
        self.records = {one.key: read_run(workdir, one) for one in planned}
        self.wanted = frozenset(self.planned) if wanted is None else wanted
        self.crashes: Counter[str] = Counter()
        self.newest: dict[str, int] = {}
        self.given_up: set[str] = set()
        self.waited_for: set[str] = set()
        self.lost = 0
        self.signal: int | None = None
        self.problem: UserError | None = None

    def run(self) -> int | None:
        """Makes the runs. Returns the signal that stopped it, or None. Raises UserError if no run can go on."""
        with self._signals():
            while True:
                if not self._is_stopping():
                    self._start()
                ended = self.runner.wait(_TICK)
                for planned, how in ended:
                    self._note_end(planned, how)
                if self.trials is not None:
                    self._prune(self.trials)
                self.progress.show(self.records.values())
                if not self.runner.running() and not ended and (self._is_stopping() or not self._has_more()):
                    break
        if self.problem is not None:
            raise self.problem
        return self.signal

    def _is_stopping(self) -> bool:
        return self.signal is not None or self.problem is not None

    def _start(self) -> None:
        room = self.runner.room()
        while self.trials is not None and room > sum(map(self._is_ready, self.planned.values())):
            one = self.trials.ask()
            if one is None:
                break
            self.planned[one.key], self.records[one.key] = one, read_run(self.workdir, one)
            self.wanted |= {one.key}
        ready = [one for one in self.planned.values() if room and self._is_ready(one)][:room]
        for one in ready:
            self.newest[one.key] = newest_step(self.records[one.key].folder)
            self.records[one.key] = replace(self.records[one.key], status=RUNNING)
        if ready:
            self.runner.start(ready)

    def _is_ready(self, one: PlannedRun) -> bool:
        record = self.records[one.key]
        if one.key not in self.wanted or one in self.runner.running():
            return False
        if record.status == RUNNING:  # in a process of somebody else's
            self.records[one.key] = record = read_run(self.workdir, one)
        if record.status not in (WAITING, UNFINISHED, RUNNING):
            return False
        if record.status == RUNNING or is_locked(record.folder):
            if one.key not in self.waited_for:
                self.waited_for.add(one.key)
                self.progress.tell(record, "another process works on it; the sweep waits for its end")
            return False
        if one.after and self.records[one.after].status != COMPLETE:
            return False
        # A Slurm array is submitted when the whole stage before it has ended.
        before = one.after.partition("/")[0] if self.runner.starts_stages else ""
        return not before or not any(self._is_open(other) for other in self.planned.values() if other.stage == before)

    def _has_more(self) -> bool:
        return any(self._is_open(one) for one in self.planned.values())

    def _is_open(self, one: PlannedRun) -> bool:
        """Returns whether the run can still be made, now or after others."""
        if one.key not in self.wanted or self.records[one.key].status not in (WAITING, UNFINISHED, RUNNING):
            return False
        return not one.after or self.records[one.after].status == COMPLETE or self._is_open(self.planned[one.after])

    def _note_end(self, planned: PlannedRun, how: str | None) -> None:
        record = read_run(self.workdir, planned)
        if record.status not in (COMPLETE, FAILED):
            record = self._interrupted(planned, record, how)
        self.records[planned.key] = record
        self.progress.show(self.records.values())
        if record.status == COMPLETE:
            self.progress.tell(record, summary(record, self.progress.metrics))
        elif record.status == FAILED:
            self.progress.tell(record, f"failed: {record.error} (see {record.folder / 'log.txt'})")
        if self.trials is not None and record.status in (COMPLETE, FAILED, PRUNED):
            self.trials.tell(planned, record)

    def _interrupted(self, planned: PlannedRun, record: RunRecord, how: str | None) -> RunRecord:
        """Returns the record of a run that has ended without a result: one that continues, or that has failed."""
        key = planned.key
        if key in self.given_up:
            record = replace(record, status=PRUNED, error=f"pruned at step {newest_step(record.folder)}")
            write_record(record)
            self.progress.tell(record, record.error)
            return record
        record = replace(record, status=UNFINISHED)
        if self._is_stopping():
            self.progress.tell(record, f"stopped at step {newest_step(record.folder)}")
            return record
        if record.error.startswith(DISK_FULL) or shutil.disk_usage(self.workdir).free < _LEAST_DISK:
            self._end_with(UserError(f"{self.workdir}: {DISK_FULL}; free some space and start the same command again"))
            return record
        if how is None:
            self.lost += 1
            if self.lost == _MOST_LOST:
                text = f"the server that starts the runs was lost {self.lost} times; look for what kills it"
                self._end_with(UserError(f"{text}, such as too little memory"))
            return record
        step = newest_step(record.folder)
        self.crashes[key] = 1 if step > self.newest[key] else self.crashes[key] + 1
        if self.crashes[key] > _RETRIES:
            text = f"its process {how}, {self.crashes[key]} times at step {step}"
            record = replace(record, status=FAILED, error=text)
            write_record(record)
        else:
            self.progress.tell(record, f"its process {how} at step {step}; it is started again")
        return record

    def _prune(self, trials: Trials) -> None:
        for one in trials.watch(self.runner.running()):
            if one.key not in self.given_up:
                self.given_up.add(one.key)
                self.runner.stop(one)

    def _end_with(self, problem: UserError) -> None:
        self.problem = problem
        for one in self.runner.running():
            self.runner.stop(one)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """The first signal asks all runs to save and end; a second one ends them at once."""

        def note(number: int, _: FrameType | None) -> None:
            at_once, self.signal = self.signal is not None, number
            logging.warning(
                "%s: %s", signal.Signals(number).name, "ending" if at_once else "the runs finish their step and save"
            )
            for one in self.runner.running():
                self.runner.stop(one, at_once=at_once)

        ignored = [number for number in _SIGNALS if signal.getsignal(number) == signal.SIG_IGN]  # as by nohup
        before = {number: signal.signal(number, note) for number in _SIGNALS if number not in ignored}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
