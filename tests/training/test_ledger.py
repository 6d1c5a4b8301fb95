"""The ledger: every second of a run is of one kind, and steps that are taken again are lost."""

import json
import time

import jax
import jax.numpy as jnp
import pytest

from bert_jax.lab.plots import plot_run
from bert_jax.training.ledger import KINDS, Ledger
from bert_jax.training.observer import EVALUATION, SAVING
from bert_jax.training.step import TrainState


def state(step):
    return TrainState(jnp.asarray(step, jnp.int32), {}, {})


@pytest.fixture
def clock(monkeypatch):
    """clock(seconds) lets time pass."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


def take(ledger, clock, steps, seconds=1.0):
    for _ in range(steps):
        ledger.before_batch()
        clock(0.25)
        ledger.before_step({})
        clock(seconds)
        ledger.after_step({})


def test_every_second_is_of_one_kind(tmp_path, clock):
    ledger = Ledger(tmp_path)
    clock(3)
    ledger.begin(None, state(0), None)
    ledger.before_batch()
    ledger.before_step({})
    clock(4)
    ledger.compiled({}, None, 3.0)  # the fourth second was another observer's
    clock(1)
    ledger.after_step({})
    take(ledger, clock, 3)
    ledger.pause(EVALUATION)
    clock(7)
    ledger.pause(SAVING)
    clock(0.5)
    expected = {"start": 3, "compile": 4, "useful": 4, "waiting": 0.75, "evaluation": 7, "saving": 0.5, "lost": 0}
    assert ledger.account() == expected and expected.keys() == set(KINDS)


def test_after_a_kill_steps_that_were_logged_are_lost_when_taken_again(tmp_path, clock):
    lines = [{"step": 2, "split": "ledger", "useful": 20.0, "start": 2.0}, {"step": 4, "split": "train", "loss": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    ledger = Ledger(tmp_path)
    ledger.begin(None, state(2), None)
    take(ledger, clock, 3)
    found = ledger.account()
    assert (found["useful"], found["lost"], found["start"]) == (23, 2, 2)  # five steps, of which two were taken twice


def test_steps_taken_again_after_going_back_are_lost(tmp_path, clock):
    ledger = Ledger(tmp_path)
    ledger.begin(None, state(0), None)
    take(ledger, clock, 5)
    ledger.begin(None, state(3), None)
    take(ledger, clock, 3)
    found = ledger.account()
    assert (found["useful"], found["lost"]) == (6, 2)


def test_the_time_is_drawn(tmp_path):
    line = {"step": 4, "split": "ledger", "useful": 20.0, "lost": 1.0, "compile": 2.0, "saving": 0.1}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    paths = {path.name: path for path in plot_run(tmp_path)}
    assert paths["time.png"].read_bytes().startswith(b"\x89PNG")


def test_a_run_writes_its_ledger_with_every_save_and_at_the_end(small_config, tmp_path):
    from bert_jax.run import run

    small_config.train.steps = 4
    small_config.checkpoint.every = 2
    began = time.perf_counter()
    result = run(small_config, tmp_path / "run")
    passed = time.perf_counter() - began
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    ledger = [line for line in lines if line["split"] == "ledger"]
    assert [line["step"] for line in ledger] == [2, 4, 4]
    total = sum(ledger[-1][kind] for kind in KINDS)
    assert 0.5 * passed < total <= passed and ledger[-1]["useful"] > 0 and ledger[-1]["lost"] == 0
    assert result.last == {k: v for k, v in lines[-3].items() if k not in ("step", "split")}
    assert jax.process_count() == 1 and (tmp_path / "run" / "plots" / "time.png").is_file()
