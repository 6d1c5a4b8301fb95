"""The loop in a workdir: files, resuming to the same bits, damage, signals, warm starts."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from bert_jax.config import UserError
from bert_jax.data.pretraining.prepare import prepare
from bert_jax.tasks.pretraining import Pretraining
from bert_jax.training.checkpoint import find_checkpoint, has_checkpoint, read_checkpoint
from bert_jax.training.loop import train
from bert_jax.training.observer import Observer
from bert_jax.training.throughput import Throughput

ROOT = Path(__file__).resolve().parents[2]
TIMES = ("peak_bytes", "tokens_per_second", "sequences_per_second", "step_seconds", "mfu", "wait_share")


def run(config, workdir):
    return train(Pretraining.over(config, prepare(config.data, config.data.seed, progress=False)), config, workdir)


def curve(workdir):
    """metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["split"] != "ledger"]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def final_parameters(workdir):
    return jax.device_get(read_checkpoint(find_checkpoint(str(workdir))).parameters)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Made once by the first test that asks: `uninterrupted(config)` → workdir of all its steps in one go."""
    made = {}

    def make(config):
        key = config.to_json()
        if key not in made:
            made[key] = tmp_path_factory.mktemp("uninterrupted")
            run(config, made[key])
        return made[key]

    return make


def assert_same_run(workdir, other):
    assert curve(workdir) == curve(other)
    expected = final_parameters(other)
    for name, value in final_parameters(workdir).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_a_run_leaves_what_is_promised(small_config, uninterrupted):
    workdir = uninterrupted(small_config)
    assert json.loads((workdir / "config.json").read_text())["train"]["steps"] == 8
    lines = curve(workdir)
    assert [(r["step"], r["split"]) for r in lines] == [
        (0, "eval"), (2, "train"), (4, "train"), (4, "eval"), (6, "train"), (8, "train"), (8, "eval"),
    ]  # fmt: skip
    assert {"loss", "mlm_loss", "mlm_accuracy", "nsp_accuracy", "learning_rate", "grad_norm"} <= lines[1].keys()
    assert {"mlm_perplexity", "unigram_entropy", "majority_accuracy", "nsp_accuracy_low"} <= lines[0].keys()
    assert list((workdir / "tensorboard").iterdir())
    saved = read_checkpoint(find_checkpoint(str(workdir)))
    assert saved.run["step"] == 8 and saved.run["data"]["step"] == 8
    assert saved.run["config"]["train"]["batch_size"] == 16
    assert saved.tokenizer.vocab_size == saved.parameters["heads/mlm/bias"].shape[0]


def test_stopped_and_continued_is_the_same_run(small_config, uninterrupted, tmp_path):
    expected = uninterrupted(small_config)
    small_config.train.steps = 4
    run(small_config, tmp_path)
    small_config.train.steps = 8  # allowed, since the decay has a length of its own
    run(small_config, tmp_path)
    # The shorter run ended with an evaluation of its own at step 4, as the longer one has by its cadence.
    assert_same_run(tmp_path, expected)


@pytest.mark.parametrize("stop", [3, 5, 6])
def test_stopped_where_no_checkpoint_was_planned_and_continued_is_the_same_run(
    small_config, uninterrupted, tmp_path, stop, monkeypatch
):
    """Also in the middle of a report, and the lines of metrics.jsonl too: here a checkpoint by time, then a death."""
    expected = uninterrupted(small_config)

    class Died(Exception):
        pass

    def dies(self, step):
        if step == stop + 1:
            raise Died

    monkeypatch.setattr("bert_jax.training.saving.Checkpoints.are_due_by_time", lambda self, step, _: step == stop)
    monkeypatch.setattr("bert_jax.training.loop._Signals.caught", dies)
    with pytest.raises(Died):
        run(small_config, tmp_path)
    monkeypatch.undo()
    assert find_checkpoint(str(tmp_path)).name == str(stop)
    run(small_config, tmp_path)
    assert_same_run(tmp_path, expected)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["4", "8"]


def test_finished_run_started_again_changes_nothing(small_config, uninterrupted):
    workdir = uninterrupted(small_config)
    before = curve(workdir)
    assert run(small_config, workdir).step == 8
    assert curve(workdir) == before


@contextlib.contextmanager
def started(command, workdir):
    """The run as a process of its own, its output in a file beside the workdir; killed if the test leaves early."""
    environment = os.environ | {"JAX_NUMPY_RANK_PROMOTION": "raise"}
    with open(output_of(workdir), "w") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def output_of(workdir):
    return workdir.with_name(workdir.name + ".output")


def wait_for_step(process, workdir, step):
    deadline = time.time() + 120
    while time.time() < deadline:
        assert process.poll() is None, output_of(workdir).read_text()
        path = workdir / "metrics.jsonl"
        if path.exists() and f'"step": {step},' in path.read_text():
            return
        time.sleep(0.01)
    raise AssertionError(f"step {step} was not reached in time")


@pytest.mark.slow
def test_killed_at_random_and_resumed_is_the_same_run(small_config, command_line, uninterrupted, tmp_path):
    small_config.train.steps = 300
    small_config.optimizer.decay_steps = 1000
    expected, workdir = uninterrupted(small_config), tmp_path / "run"
    steps = sorted(np.random.default_rng(int(time.time())).choice(np.arange(2, 280, 2), size=3, replace=False))
    for step in steps:
        with started(command_line(small_config, workdir), workdir) as process:
            wait_for_step(process, workdir, int(step))
            process.send_signal(signal.SIGKILL)
    with started(command_line(small_config, workdir), workdir) as process:
        assert process.wait(timeout=300) == 0, output_of(workdir).read_text()
    assert_same_run(workdir, expected)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_says_how_to_continue(small_config, command_line, tmp_path, number):
    small_config.train.steps = 4000
    small_config.optimizer.decay_steps = 10_000
    small_config.checkpoint.every = 10_000
    workdir = tmp_path / "run"
    with started(command_line(small_config, workdir), workdir) as process:
        wait_for_step(process, workdir, 4)
        process.send_signal(number)
        assert process.wait(timeout=120) == 128 + number
    output = output_of(workdir).read_text()
    assert "the same command continues" in output and "Traceback" not in output
    assert read_checkpoint(find_checkpoint(str(workdir))).run["step"] >= 4


def damage(path, how):
    files = sorted(path.rglob("d/*"), key=lambda file: file.stat().st_size)
    content = bytearray(files[-1].read_bytes())
    if how == "truncated":
        content = content[: len(content) // 2]
    elif how == "flipped":
        content[len(content) // 2] ^= 0xFF
    elif how == "emptied":
        content = b""
    files[-1].write_bytes(bytes(content))


@pytest.mark.parametrize("how", ["truncated", "flipped", "emptied"])
def test_damaged_checkpoint_falls_back_to_the_one_before(small_config, uninterrupted, tmp_path, how, caplog):
    expected = uninterrupted(small_config)
    run(small_config, tmp_path)
    damage(tmp_path / "checkpoints" / "8" / "parameters", how)
    run(small_config, tmp_path)
    assert "damaged/8" in caplog.text
    assert_same_run(tmp_path, expected)


def test_all_checkpoints_damaged_is_said(small_config, tmp_path):
    run(small_config, tmp_path)
    for step in (4, 8):
        damage(tmp_path / "checkpoints" / str(step) / "parameters", "truncated")
    with pytest.raises(UserError, match="all 2 checkpoints"):
        run(small_config, tmp_path)


def test_a_corpus_changed_in_place_is_not_resumed_on(small_config, tmp_path):
    copy = tmp_path / "corpus.txt"
    text = Path(small_config.data.files).read_text()
    copy.write_text(text)
    small_config.data.files = str(copy)
    run(small_config, tmp_path / "run")
    copy.write_text(text.replace("the", "teh"))
    with pytest.raises(UserError, match="another vocabulary than this run's data has"):
        run(small_config, tmp_path / "run")
    assert not (tmp_path / "run" / "damaged").exists()


def test_an_unknown_best_metric_is_said_before_the_first_step(small_config, tmp_path):
    small_config.checkpoint.best_metric = "f1"
    with pytest.raises(UserError, match=r"best_metric is 'f1'; of task=pretraining it can be .*nsp_accuracy"):
        run(small_config, tmp_path)


def test_without_validation_documents_nothing_is_evaluated(small_config, tmp_path, caplog):
    small_config.data.update(validation_share=0.0, test_share=0.0)
    run(small_config, tmp_path)
    assert "NO VALIDATION EXAMPLES" in caplog.text
    assert {r["split"] for r in curve(tmp_path)} == {"train"}


def test_static_instances_train_too(small_config, tmp_path):
    small_config.data.update(masking="static", dupe_factor=2)
    assert run(small_config, tmp_path).step == 8


def test_workdir_of_another_config_names_the_keys(small_config, uninterrupted):
    workdir = uninterrupted(small_config)
    small_config.optimizer.learning_rate = 5e-4
    small_config.eval.batch_size = 32  # free to change: not named
    with pytest.raises(UserError, match=r"optimizer.learning_rate was 0.001, is 0.0005\);") as caught:
        run(small_config, workdir)
    assert "eval.batch_size" not in str(caught.value)


def test_keeps_the_last_and_the_best(small_config, tmp_path):
    small_config.train.steps = 16
    small_config.checkpoint.keep = 1
    small_config.checkpoint.update(best_metric="mlm_accuracy", best_mode="max")
    run(small_config, tmp_path)
    evals = {r["step"]: r["mlm_accuracy"] for r in curve(tmp_path) if r["split"] == "eval" and r["step"]}
    best = max(evals.values())
    kept = {int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()}
    assert 16 in kept and len(kept) <= 2
    assert max(evals[step] for step in kept) == best


def test_warm_start_reports_and_refuses(small_config, uninterrupted, tmp_path, caplog):
    source = uninterrupted(small_config)
    small_config.init_from = str(source)
    small_config.train.steps = 1
    caplog.set_level("INFO")
    run(small_config, tmp_path / "warm")
    assert "parameters loaded" in caplog.text
    first = next(r for r in curve(tmp_path / "warm") if r["split"] == "eval")
    assert first["loss"] == [r for r in curve(source) if r["split"] == "eval"][-1]["loss"]
    small_config.model.num_hidden_layers = 3
    with pytest.raises(UserError, match=r"encoder/layers/.* is \(2, .* there, \(3, .* here"):
        run(small_config, tmp_path / "refused")


def test_full_disk_keeps_the_last_good_checkpoint(small_config, tmp_path, monkeypatch):
    run(small_config, tmp_path)
    small_config.train.steps = 12

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    import orbax.checkpoint as ocp

    monkeypatch.setattr(ocp.AsyncCheckpointer, "save", full)
    with pytest.raises(UserError, match=r"No space left on device.*checkpoint of step 8 is whole"):
        run(small_config, tmp_path)
    monkeypatch.undo()
    assert run(small_config, tmp_path).step == 12


def test_observers_change_no_result(small_config, uninterrupted, tmp_path):
    expected = uninterrupted(small_config)
    task = Pretraining.over(small_config, prepare(small_config.data, small_config.data.seed, progress=False))
    train(task, small_config, tmp_path, [Throughput(), Observer()])
    assert "peak_bytes" in (tmp_path / "metrics.jsonl").read_text()
    assert "peak_bytes" not in (expected / "metrics.jsonl").read_text()
    assert_same_run(tmp_path, expected)


def test_a_loss_that_is_not_a_number_stops_the_run(small_config, tmp_path):
    learning_rate = small_config.optimizer.learning_rate
    huge = {"learning_rate": 1e3, "weight_decay": 1e3, "clip_norm": 0.0, "warmup_steps": 0}
    small_config.optimizer.update(huge, schedule="constant")  # decay makes weights a million times larger in a step
    with pytest.raises(UserError, match=r"the loss is (nan|inf) at step .*; nothing was saved: .* the same --workdir"):
        run(small_config, tmp_path)
    assert not has_checkpoint(str(tmp_path))
    usual = {"learning_rate": learning_rate, "weight_decay": 0.01, "clip_norm": 1.0, "warmup_steps": 2}
    small_config.optimizer.update(usual, schedule="bert")
    assert run(small_config, tmp_path).step == 8  # as the message says


@pytest.mark.parametrize("where", ["loss", "evaluation"])
def test_a_run_that_diverges_late_keeps_its_finite_checkpoint(small_config, tmp_path, monkeypatch, where):
    run(small_config, tmp_path / "run")
    small_config.train.steps = 9
    if where == "loss":
        means = Pretraining.means
        monkeypatch.setattr(Pretraining, "means", lambda self, sums: means(self, sums) | {"loss": float("nan")})
    else:  # the update after the last loss was too large
        evaluation = Pretraining.evaluation

        def diverged(self, *arguments):
            found = evaluation(self, *arguments)
            return dataclasses.replace(found, metrics=found.metrics | {"loss": float("nan")})

        monkeypatch.setattr(Pretraining, "evaluation", diverged)
    with pytest.raises(UserError, match=r"the loss is nan at step 9; the checkpoint of step 8 is whole and finite: "):
        run(small_config, tmp_path / "run")
    monkeypatch.undo()
    assert find_checkpoint(str(tmp_path / "run")).name == "8"
    small_config.init_from = str(tmp_path / "run")  # as the message says
    small_config.optimizer.learning_rate = 1e-4
    small_config.train.steps = 1
    assert run(small_config, tmp_path / "other").step == 1


def test_parameters_that_are_not_finite_are_not_saved(small_config, tmp_path, monkeypatch):
    small_config.data.update(validation_share=0.0, test_share=0.0)  # no evaluation would notice
    huge = {"learning_rate": 1e3, "weight_decay": 1e3, "clip_norm": 0.0, "warmup_steps": 0}
    small_config.optimizer.update(huge, schedule="constant")
    small_config.checkpoint.every = 100
    monkeypatch.setattr(Pretraining, "means", lambda self, sums: {"loss": 1.0})  # not even the loss
    with pytest.raises(UserError, match=r"is no longer finite after step 8; nothing was saved"):
        run(small_config, tmp_path)
    assert not has_checkpoint(str(tmp_path))


LAZY_IMPORTS = """
import sys, threading
from etils import epy
from etils.epy import lazy_imports_utils
others, replace = set(), lazy_imports_utils.lazy_imports
def watched(*args, **kwargs):
    others.update(x.name for x in threading.enumerate())
    return replace(*args, **kwargs)
epy.lazy_imports = lazy_imports_utils.lazy_imports = watched
from bert_jax import main
status = main.main(sys.argv[1:])
assert "grain" in sys.modules
print("beside", sorted(others - {"MainThread", "watchdog"}))  # which only waits
sys.exit(status)
"""


def test_nothing_replaces_import_while_a_thread_works(small_config, command_line, tmp_path):
    """etils.epy.lazy_imports, which Grain calls when it is imported, replaces `import` for all threads: one that traces
    a program then fails with "'LazyModule' object is not callable"."""
    small_config.train.steps = 1
    command = command_line(small_config, tmp_path / "run")
    prepare(small_config.data, small_config.data.seed, progress=False)  # which would import Grain
    assert command[1:3] == ["-m", "bert_jax.main"]
    (tmp_path / "watching.py").write_text(LAZY_IMPORTS)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    words = [command[0], str(tmp_path / "watching.py"), *command[3:]]
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "beside []"
