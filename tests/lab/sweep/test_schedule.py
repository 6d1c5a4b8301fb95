"""Which run of a study starts when, and what becomes of those that fail or are killed: with processes made up."""

import fcntl
import logging
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from bert_jax.config import UserError
from bert_jax.lab.records import (
    COMPLETE,
    FAILED,
    PRUNED,
    UNFINISHED,
    WAITING,
    read_run,
    read_study,
    write_record,
    write_study,
)
from bert_jax.lab.study import PlannedRun, Stage, Study, grid, plan, seeds
from bert_jax.lab.sweep.progress import Progress, remaining
from bert_jax.lab.sweep.runners import shares
from bert_jax.lab.sweep.schedule import DISK_FULL, Schedule

STUDY = Study(
    "?",
    (Stage("pretrain", "a.py", grid(seeds(2))), Stage("tune", "b.py", after="pretrain")),
    metrics={"tune": "eval.accuracy"},
)
RESULT = {"eval": {"accuracy": 0.5}}


class MadeUp:
    """Ends every run at the next look: as `script` says for its key, else with a result. An entry is "fail", "full",
    the step at which its process is killed, or None for a process that was lost."""

    starts_stages = False

    def __init__(self, workdir: Path, jobs: int = 1, **script: Sequence[object]):
        self.workdir, self.jobs = workdir, jobs
        self.script = {key.replace("__", "/seed="): list(outcomes) for key, outcomes in script.items()}
        self.now: list[PlannedRun] = []
        self.started: list[str] = []
        self.stopped: list[tuple[str, bool]] = []

    def room(self) -> int:
        return self.jobs - len(self.now)

    def start(self, planned: Sequence[PlannedRun]) -> None:
        self.now += planned
        self.started += [one.key for one in planned]

    def running(self) -> Sequence[PlannedRun]:
        return list(self.now)

    def stop(self, planned: PlannedRun, *, at_once: bool = False) -> None:
        self.stopped.append((planned.key, at_once))

    def wait(self, seconds: float) -> list[tuple[PlannedRun, str | None]]:
        ended, self.now = [(one, self.end(one)) for one in self.now], []
        return ended

    def end(self, one: PlannedRun) -> str | None:
        record = read_run(self.workdir, one)
        record = replace(record, attempts=record.attempts + 1)
        outcomes = self.script.get(one.key)
        outcome = outcomes.pop(0) if outcomes else "result"
        if outcome == "result":
            write_record(replace(record, status=COMPLETE, result=RESULT, seconds=2.0))
        elif outcome == "fail":
            write_record(replace(record, status=FAILED, error="a mistake"))
        elif outcome == "full":
            write_record(replace(record, status=UNFINISHED, error=f"{DISK_FULL}: no checkpoint"))
        else:
            write_record(replace(record, status="running"))
            (record.folder / "checkpoints" / str(outcome or 0)).mkdir(parents=True, exist_ok=True)
            return None if outcome is None else "was killed by SIGKILL"
        return "ended with status 0"


def schedule(workdir: Path, runner: MadeUp, **more) -> Schedule:
    planned = plan(STUDY)
    write_study(workdir, "study", "study.py", STUDY, planned)
    return Schedule(workdir, planned, runner, Progress(STUDY, 1), **more)


def statuses(workdir: Path) -> dict[str, str]:
    return {run.key: run.status for run in read_study(workdir).runs}


def test_runs_start_after_what_they_continue(tmp_path: Path):
    runner = MadeUp(tmp_path)
    assert schedule(tmp_path, runner).run() is None
    assert runner.started == ["pretrain/seed=0", "pretrain/seed=1", "tune/seed=0", "tune/seed=1"]
    assert set(statuses(tmp_path).values()) == {COMPLETE}


def test_complete_runs_are_not_made_again(tmp_path: Path):
    schedule(tmp_path, MadeUp(tmp_path)).run()
    again = MadeUp(tmp_path)
    assert schedule(tmp_path, again).run() is None
    assert again.started == []


def test_a_failed_run_stops_only_those_that_start_from_it(tmp_path: Path):
    runner = MadeUp(tmp_path, pretrain__0=["fail"])
    assert schedule(tmp_path, runner).run() is None
    assert runner.started == ["pretrain/seed=0", "pretrain/seed=1", "tune/seed=1"]
    runs = {run.key: run for run in read_study(tmp_path).runs}
    assert runs["pretrain/seed=0"].error == "a mistake"
    assert runs["tune/seed=0"].status == WAITING
    assert runs["tune/seed=0"].error == "waits for pretrain/seed=0, which failed"
    assert runs["tune/seed=0"].metric("eval.accuracy") is None and runs["tune/seed=1"].metric("eval.accuracy") == 0.5
    again = MadeUp(tmp_path)
    schedule(tmp_path, again).run()
    assert again.started == []  # failed ones only on request


def test_a_killed_process_is_started_again_at_most_twice_without_progress(tmp_path: Path):
    runner = MadeUp(tmp_path, pretrain__0=[0, 0, 0, 0], pretrain__1=[10, 20, 30, 40, 50])
    schedule(tmp_path, runner).run()
    assert runner.started.count("pretrain/seed=0") == 3 and runner.started.count("pretrain/seed=1") == 6
    runs = {run.key: run for run in read_study(tmp_path).runs}
    assert runs["pretrain/seed=0"].status == FAILED
    assert runs["pretrain/seed=0"].error == "its process was killed by SIGKILL, 3 times at step 0"
    assert runs["pretrain/seed=1"].status == COMPLETE and runs["pretrain/seed=1"].attempts == 6


def test_a_lost_fork_server_is_no_fault_of_the_run(tmp_path: Path):
    runner = MadeUp(tmp_path, pretrain__0=[None] * 9)
    schedule(tmp_path, runner).run()
    assert set(statuses(tmp_path).values()) == {COMPLETE}


def test_a_fork_server_that_never_stays_ends_the_sweep(tmp_path: Path):
    with pytest.raises(UserError, match="the server that starts the runs was lost 20 times"):
        schedule(tmp_path, MadeUp(tmp_path, pretrain__0=[None] * 99)).run()


def test_a_full_disk_ends_the_sweep_and_fails_nothing(tmp_path: Path):
    runner = MadeUp(tmp_path, pretrain__0=["full"])
    with pytest.raises(UserError, match="the disk is full; free some space and start the same command again"):
        schedule(tmp_path, runner).run()
    assert statuses(tmp_path) == {"pretrain/seed=0": UNFINISHED} | dict.fromkeys(
        ("pretrain/seed=1", "tune/seed=0", "tune/seed=1"), WAITING
    )
    assert schedule(tmp_path, MadeUp(tmp_path)).run() is None
    assert set(statuses(tmp_path).values()) == {COMPLETE}


def test_the_first_signal_lets_runs_save_and_the_second_ends_them(tmp_path: Path):
    class Stubborn(MadeUp):
        looks = 0

        def wait(self, seconds: float):
            self.looks += 1
            if self.looks <= 2:
                handler = signal.getsignal(signal.SIGTERM)  # called, not sent: a signal has ended pytest's worker
                assert callable(handler)
                handler(signal.SIGTERM, None)
                return []
            for one in self.now:
                write_record(replace(read_run(self.workdir, one), status=UNFINISHED, error="stopped"))
            ended, self.now = [(one, "ended with status 143") for one in self.now], []
            return ended

    runner = Stubborn(tmp_path)
    assert schedule(tmp_path, runner).run() == signal.SIGTERM
    assert runner.stopped == [("pretrain/seed=0", False), ("pretrain/seed=0", True)]
    assert statuses(tmp_path)["pretrain/seed=0"] == UNFINISHED and runner.started == ["pretrain/seed=0"]


def test_a_run_that_somebody_else_makes_is_waited_for_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder = tmp_path / "pretrain" / "seed=0"
    folder.mkdir(parents=True)
    lock = open(folder / "lock", "w")  # noqa: SIM115 — closed by the runner
    fcntl.flock(lock, fcntl.LOCK_EX)

    class Waiting(MadeUp):
        def wait(self, seconds: float):
            if self.started and not self.now:  # all others have ended
                lock.close()
            return super().wait(seconds)

    with caplog.at_level(logging.INFO):
        schedule(tmp_path, Waiting(tmp_path)).run()
    assert set(statuses(tmp_path).values()) == {COMPLETE}
    told = [text for text in caplog.messages if "another process works on it" in text]
    assert len(told) == 1 and told[0].startswith("pretrain/seed=0: ")


def test_only_wanted_runs_are_made(tmp_path: Path):
    runner = MadeUp(tmp_path)
    schedule(tmp_path, runner, wanted=frozenset({"pretrain/seed=1", "tune/seed=1"})).run()
    assert runner.started == ["pretrain/seed=1", "tune/seed=1"]


def test_an_array_is_submitted_when_the_stage_before_has_ended(tmp_path: Path):
    class Arrays(MadeUp):
        starts_stages = True

        def start(self, planned):
            super().start(planned)
            self.arrays = [*getattr(self, "arrays", []), [one.key for one in planned]]

        def wait(self, seconds: float):  # one at a time
            return [(one, self.end(one)) for one in [self.now.pop(0)]] if self.now else []

    runner = Arrays(tmp_path, jobs=9, pretrain__0=["fail"])
    schedule(tmp_path, runner).run()
    assert runner.arrays == [["pretrain/seed=0", "pretrain/seed=1"], ["tune/seed=1"]]


def test_trials_are_asked_for_told_and_given_up(tmp_path: Path):
    class Trials:
        def __init__(self):
            self.asked, self.told = 0, []

        def ask(self):
            self.asked += 1
            return (
                PlannedRun("tune", f"trial={self.asked}", {"trial": str(self.asked)}, {}) if self.asked <= 3 else None
            )

        def watch(self, running):
            return [one for one in running if one.name == "trial=2"]

        def tell(self, planned, record):
            self.told.append((planned.name, record.status))

    class Slow(MadeUp):
        def wait(self, seconds):
            first = [one for one in self.now if one.name == "trial=2" and not self.stopped]
            return [] if first else super().wait(seconds)

    trials, runner = Trials(), Slow(tmp_path, **{"tune/trial=2": [4]})
    Schedule(tmp_path, [], runner, Progress(STUDY, 1), trials=trials).run()
    assert trials.told == [("trial=1", COMPLETE), ("trial=2", PRUNED), ("trial=3", COMPLETE)]
    assert read_run(tmp_path, PlannedRun("tune", "trial=2", {}, {})).error == "pruned at step 4"


def test_remaining_time_is_that_of_the_median_run(tmp_path: Path):
    records = schedule(tmp_path, MadeUp(tmp_path)).records
    some = [replace(record, status=COMPLETE, seconds=s) for record, s in zip(records.values(), (1, 9, 3), strict=False)]
    last = list(records.values())[-1]
    assert remaining([*some, last], jobs=1) == 3 and remaining([*some, last, last], jobs=2) == 3
    assert remaining([last], 1) is None and remaining(some, 1) == 0


def test_cores_and_gpus_are_shared_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 4, 6, 8})
    assert shares(1) == [((), {})]
    assert [cores for cores, _ in shares(2)] == [(0, 2), (4, 6, 8)]
    four = shares(4, ["0", "1"])
    assert [environment["CUDA_VISIBLE_DEVICES"] for _, environment in four] == ["0", "1", "0", "1"]
    assert {environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] for _, environment in four} == {"0.450"}
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION" not in shares(2, ["0", "1"])[0][1]
    with pytest.raises(UserError, match="--jobs=6: this machine has 5 cores"):
        shares(6)
