"""A run that hangs shows where and ends; one that is only slow goes on."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from bert_jax.training import watchdog
from bert_jax.training.checkpoint import find_checkpoint, read_checkpoint
from bert_jax.training.observer import EVALUATION, SAVING
from bert_jax.training.watchdog import PATIENCE, Watchdog
from tests.processes import ROOT, Processes, finished, metrics

ENDED_BY_OTHERS = (75, -signal.SIGABRT)  # the second is jax's own end of a process whose first process is gone

LOOP = """
import sys, time
from bert_jax.training.watchdog import Watchdog
with Watchdog(0.5) as dog:
    print("watched", flush=True)
    for _ in range(30):
        dog.before_batch()
        time.sleep(0.1)
    def endless():
        while sys.argv[1:] == ["hang"]:
            pass
    endless()
print("done")
"""


def test_an_endless_loop_is_shown_and_ended(tmp_path):
    result = subprocess.run([sys.executable, "-c", LOOP, "hang"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 75 and "done" not in result.stdout
    assert "nothing has moved for 0.5 s while it waits for a batch (step 0); the stacks of all" in result.stderr
    assert "in endless" in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: nothing has moved for 1 s while it waits for a batch (step 0): a device, a disk or")
    assert last.endswith("the same command continues from the last checkpoint")


def test_time_in_which_the_process_was_stopped_does_not_count():
    with subprocess.Popen([sys.executable, "-c", LOOP], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "watched\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(2)
        process.send_signal(signal.SIGCONT)
        assert process.communicate(timeout=120)[0] == "done\n" and process.returncode == 0


class Clock:
    """Stands in for the watchdog's event, whose waits are then its only clock."""

    def __init__(self, actions):
        self.actions = actions

    def wait(self, tick):
        action = next(self.actions, "end")
        if callable(action):
            action()
        return action == "end"


def alarms(actions, monkeypatch):
    """What the watchdog does while these happen, one a twentieth of its seconds; None is nothing."""
    seen = []
    monkeypatch.setattr(watchdog, "leave", lambda message: seen.append(message) or sys.exit())
    monkeypatch.setattr(watchdog.faulthandler, "dump_traceback", lambda *_, **__: seen.append("stacks"))
    dog = Watchdog(20.0)
    monkeypatch.setattr(dog, "_stop", Clock(action(dog) if action else None for action in actions))
    try:
        dog._watch()
    except SystemExit:
        seen.append("ended")
    return seen


BATCH = {"input_ids": np.zeros((2, 4), np.int32)}
OTHER = {"input_ids": np.zeros((2, 8), np.int32)}


def told(name, *words):
    return lambda dog: lambda: getattr(dog, name)(*words)


@pytest.mark.parametrize(
    "actions",
    [
        [told("pause", EVALUATION), *[told("before_evaluation_batch", BATCH), *[None] * 19] * 9],  # slow in all
        # Compiling, and waiting for other processes that still compile
        [
            *(told("before_step", BATCH), *[None] * 79, told("compiled", BATCH, None, 79.0), *[None] * 79),
            *(told("after_step", {}), told("before_batch"), told("before_step", BATCH), *[None] * 79),
        ],
        [told("before_step", BATCH), told("before_step", OTHER), *[None] * 79],  # a shape that is new
        [told("pause", SAVING), *[None] * 79],
        [told("pause", EVALUATION), *[None] * 79],  # metrics of many examples
        [None] * 79,  # a checkpoint that is read
        [*[told("before_batch"), *[None] * 19, told("before_step", BATCH), *[None] * 19] * 4],
    ],
)
def test_what_is_slow_but_moves_is_left_alone(actions, monkeypatch):
    assert alarms(actions, monkeypatch) == []


@pytest.mark.parametrize(
    ("action", "limit", "phase"),
    [
        (told("before_batch"), 20, "it waits for a batch (step 2)"),
        (told("before_step", BATCH), 20, "it takes a step (step 2)"),
        (told("before_step", OTHER), 20 * PATIENCE, "it takes a step (step 2)"),
        (told("after_step", {}), 20, "it takes a step (step 3)"),
        (told("before_evaluation_batch", BATCH), 20 * PATIENCE, "it evaluates (step 2)"),
        (told("pause", SAVING), 20 * PATIENCE, "it writes a checkpoint (step 2)"),
    ],
)
def test_each_phase_has_a_limit_of_its_own(action, limit, phase, monkeypatch):
    before = [*[told("before_step", BATCH), told("after_step", {})] * 2, action]
    assert alarms([*before, *[None] * (limit - 1)], monkeypatch) == []
    assert alarms([*before, *[None] * (2 * limit - 1)], monkeypatch) == ["stacks"]
    stacks, message, end = alarms([*before, *[None] * 2 * limit], monkeypatch)
    assert (stacks, end) == ("stacks", "ended")
    assert message.startswith(f"nothing has moved for {2 * limit} s while {phase}: ")


def test_none_watches_nothing(monkeypatch):
    with Watchdog(0) as dog:
        assert not dog._thread.is_alive()
    with Watchdog(5.0) as dog:
        assert dog._thread.is_alive()
    assert not dog._thread.is_alive()


@pytest.fixture
def command(small_config, command_line):
    """command(workdir) → words of a run of two processes, long enough to be interrupted."""
    small_config.model.update(dtype="float32", layers="scan")
    small_config.train.update(steps=160, log_every=20, watchdog_seconds=20.0)
    small_config.eval.update(every=80, at_start=False)
    small_config.checkpoint.update(every=40, keep=2)
    small_config.mesh.data = -1
    return lambda workdir: command_line(small_config, workdir)


@pytest.mark.slow
def test_a_process_that_is_stopped_or_killed_ends_the_others_and_the_run_continues(command, tmp_path):
    assert [status for status, _ in finished(command(tmp_path / "whole"), tmp_path / "whole", 2)] == [0, 0]
    workdir = tmp_path / "hurt"
    with Processes(command(workdir), tmp_path / "stopped", 2) as run:
        run.wait_for("step 60/160 train")
        run.signal(1, "SIGSTOP")
        start = time.monotonic()
        status = run.started[0].wait(timeout=120)
        assert time.monotonic() - start < 90 and status == 75, run.text()[-3000:]
        assert "Thread 0x" in run.text() and "in block_until_ready" in run.text()
        last = run.text().splitlines()[-1]
        assert last.startswith("error: process 0: nothing has moved for 40 s while it takes a step (step ")
        run.signal(1, "SIGCONT")  # it finds that it is alone
        assert run.started[1].wait(timeout=120) in ENDED_BY_OTHERS, run.text(1)[-3000:]
    with Processes(command(workdir), tmp_path / "killed", 2) as run:
        run.wait_for("step 100/160 train")
        run.signal(1, "SIGKILL")
        start = time.monotonic()
        assert run.started[0].wait(timeout=120) == 75, run.text()[-3000:]
        assert time.monotonic() - start < 60
        last = run.text().splitlines()[-1]
        assert last.startswith("error: process 0: another process of this run has ended or cannot be reached (")
        assert "Traceback" not in run.text()
    assert [status for status, _ in finished(command(workdir), tmp_path / "again", 2)] == [0, 0]
    for one, other in zip(metrics(tmp_path / "whole"), metrics(workdir), strict=True):
        assert (one["step"], one["split"], one["loss"]) == (other["step"], other["split"], other["loss"])
    whole, hurt = (read_checkpoint(find_checkpoint(str(folder))) for folder in (tmp_path / "whole", workdir))
    for name, expected in whole.parameters.items():
        np.testing.assert_array_equal(np.asarray(hurt.parameters[name]), np.asarray(expected), err_msg=name)


HANGING = """
from bert_jax.tasks.pretraining import Pretraining

class Hanging(Pretraining):
    def train_batches(self, start_step, process_index, process_count):
        reader = super().train_batches(start_step, process_index, process_count)
        return Reader(reader) if process_index == 1 else reader

class Reader:
    def __init__(self, reader):
        self.reader, self.state, self.close = reader, reader.state, reader.close

    def __next__(self):
        while self.reader.state()["step"] == 5:
            pass
        return next(self.reader)
"""


@pytest.mark.slow
def test_a_process_in_an_endless_loop_ends_itself_and_the_others(command, tmp_path):
    (tmp_path / "hanging_task.py").write_text(HANGING)
    words = ["env", f"PYTHONPATH={tmp_path}:{ROOT}", *command(tmp_path / "run"), "--config.task=hanging_task.Hanging"]
    for number, (status, text) in enumerate(finished(words, tmp_path / "log", 2)):
        assert status == 75, text[-3000:]
        assert f"error: process {number}: " in text.splitlines()[-1]
    assert "process 1: nothing has moved for 40 s while it waits for a batch (step 5)" in text
    assert 'hanging_task.py", line 14 in __next__' in text
