"""Sweeps: what is checked before the first run, what a dry run says, and studies end to end, killed on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bert_jax.config import UserError
from bert_jax.lab.records import COMPLETE, FAILED, UNFINISHED, WAITING, read_study
from bert_jax.lab.space import Search, log_uniform, one_of
from bert_jax.lab.study import Stage, Study, choice, grid, plan, probes, seeds
from bert_jax.lab.sweep import dry_run, estimate, planning
from bert_jax.lab.sweep.dry_run import describe
from bert_jax.lab.sweep.estimate import Estimate, Examined, Request, examine

TINY = {"model.size": "tiny", "mesh.data": 1, "eval.batch_size": 16, "train.batch_size": 16}
PRETRAIN = Stage(
    "pretrain", "experiments/base.py", grid(choice("norm", {"post": {}, "pre": {"model.norm": "pre"}})), "", TINY
)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labelled")
    for name, count in (("train", 48), ("dev", 24)):
        rows = [
            f"the {('list', 'tuple')[i % 2]} of item {i % 7} is {('sorted', 'hashed')[i % 2]}" for i in range(count)
        ]
        lines = [f"{row},{('a', 'b')[i % 2]}" for i, row in enumerate(rows)]
        (folder / f"{name}.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    return folder


def tuning(labelled: Path, **more) -> Stage:
    data = {
        f"data.{split}": str(labelled / f"{file}.csv") for split, file in (("train", "train"), ("validation", "dev"))
    }
    return Stage("tune", "experiments/classify.py", after="pretrain", overrides={"mesh.data": 1} | data | more)


def examined(study: Study, workdir: Path, jobs: int = 1) -> Examined:
    planned = plan(study)
    configs = planning.resolve(study, planned, workdir)
    return examine(
        workdir,
        [Request(one, configs[one.key].to_dict(), study.metrics.get(one.stage, "")) for one in planned],
        jobs,
        False,
    )


def test_runs_are_estimated_before_any_data_is_read(tmp_path: Path, labelled: Path):
    study = Study("?", (PRETRAIN, tuning(labelled, **{"train.epochs": 2.0, "train.batch_size": 16})))
    found = examined(study, tmp_path).estimates
    first, last = found["pretrain/norm=post"], found["tune/norm=pre"]
    assert first is not None and last is not None
    # BERT-tiny of Turc et al. with its two heads: embeddings, two layers, pooler, MLM transform, output bias, NSP
    layer = 4 * (128 * 128 + 128) + 2 * 128 * 512 + 512 + 128 + 4 * 128
    body = (30522 + 512 + 2) * 128 + 256 + 2 * layer + 128 * 128 + 128
    assert first.parameters == body + (128 * 128 + 128 + 256 + 30522) + (2 * 128 + 2)
    assert first.steps == 900_000 and first.tokens == 900_000 * 16 * 128
    assert last.parameters == body + (2 * 128 + 2) + 256  # pre-norm has one more LayerNorm, at the end
    assert last.steps == 2 * 3
    assert last.checkpoint == 12 * last.parameters


@pytest.mark.parametrize(
    ("overrides", "metric", "message"),
    [
        ({"seeds": 3}, "", "tune/norm=post: seeds is 3; in a study seeds are an axis: grid(…, seeds(3))"),
        ({"data.train": "nothing.csv"}, "", "tune/norm=post: data.train"),
        ({"data.sequence_length": 600}, "", "tune/norm=post: data.sequence_length 600 is over"),
        ({"train.batch_size": 7, "train.accumulation": 2}, "", "tune/norm=post: train.batch_size 7 is not a multiple"),
        (
            {"optimizer.warmup_share": None, "optimizer.warmup_steps": 50, "train.epochs": None, "train.steps": 50},
            "",
            "warmup",
        ),
        (
            {},
            "test.accuracy",
            "the study's metric is test.accuracy, but a run is evaluated on validation: take another metric, or for "
            "labelled examples set data.test",
        ),
        ({"task": "tagging.None"}, "", "task is 'tagging.None', which cannot be loaded"),
    ],
)
def test_a_mistake_in_any_run_is_found_before_the_first(
    tmp_path: Path, labelled: Path, overrides: dict, metric: str, message: str
):
    with pytest.raises(UserError) as error:
        examined(
            Study("?", (PRETRAIN, tuning(labelled, **overrides)), metrics={"tune": metric} if metric else {}), tmp_path
        )
    assert message in str(error.value) and "\n" not in str(error.value)


def test_pretraining_has_no_test(tmp_path: Path):
    with pytest.raises(UserError, match=r"metric is test\.loss, but a run is evaluated on validation: take another"):
        examined(Study("?", (PRETRAIN,), metrics={"pretrain": "test.loss"}), tmp_path)


def test_fine_tuning_without_a_checkpoint_is_refused(tmp_path: Path, labelled: Path):
    with pytest.raises(UserError, match="tune/run: fine-tuning needs a checkpoint"):
        examined(Study("?", (replace(tuning(labelled), after=""),)), tmp_path)


def test_a_disk_or_a_memory_that_is_too_small_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    study = Study("?", (PRETRAIN,))
    assert examined(study, tmp_path).problem == ""
    monkeypatch.setattr(estimate, "host_memory", lambda: 10**9)
    assert "2 runs at a time need about" in examined(study, tmp_path, jobs=2).problem
    usage = estimate.shutil.disk_usage(tmp_path)._replace(free=10**8)
    monkeypatch.setattr(estimate.shutil, "disk_usage", lambda _: usage)
    problem = examined(study, tmp_path / "not" / "there").problem
    assert "the checkpoints of 2 runs take about 0.426 GB, and 0.1 GB are free" in problem


ONE = Estimate(4_000_000, 48e6, 192e6, 0.9e9, 100, 3e6, 5e12, 360.0)


def test_a_dry_run_says_what_differs_what_it_costs_and_what_it_can_show(tmp_path: Path, capsys: pytest.CaptureFixture):
    study = Study(
        "Pre or post?",
        (replace(PRETRAIN, points=grid(PRETRAIN.points, seeds(5))), Stage("tune", "b.py", after="pretrain")),
        factor="norm",
        baseline="post",
        metrics={"tune": "eval.accuracy"},
    )
    planned = plan(study)
    describe(study, planned, tmp_path, Examined({one.key: ONE for one in planned}, "30 % of 1 TFLOP/s", ""), 2)
    text = capsys.readouterr().out
    assert "20 runs in 2 stages, 0 of them complete" in text
    assert "  all: model.size=tiny, mesh.data=1" in text
    assert "  norm=pre, seed=4: model.norm=pre, seed=4" in text
    assert "4 M parameters, 0.9 GB of memory (estimated from parameters and batch), 0.192 GB on disk, 100 steps" in text
    assert "time: 730 s per run (10 s + FLOPs at 30 % of 1 TFLOP/s, shared by 2; rough), 1.01 h for the 10 left" in text
    assert "in all about 2.03 h" in text
    assert "tune: 5 runs of pretrain per level show a difference of 2" in text
    assert "(1 comparison, α = 0.05 by Holm)" in text
    describe(study, planned, tmp_path, Examined(dict.fromkeys(map(lambda one: one.key, planned)), "", "no disk"), 1)
    text = capsys.readouterr().out
    assert "time: unknown" in text and "cannot start: no disk" in text


def test_what_a_dry_run_promises_is_what_the_report_will_test():
    levels, sizes = choice("norm", {"post": {}, "pre": {}}), choice("size", {"tiny": {}, "mini": {}})
    pretrain = Stage("pretrain", "a.py", grid(levels))

    def power(*stages: Stage) -> list[str]:
        study = Study("?", stages, "norm", "post", {stages[-1].name: "eval.loss"})
        return dry_run._power(study, plan(study))

    tune = Stage("tune", "b.py", grid(seeds(5)), after="pretrain")
    assert power(pretrain, tune) == [
        "tune: one run of pretrain per level cannot show a difference; add seeds to it, e.g. grid(…, seeds(5))"
    ]
    [line] = power(Stage("one", "a.py", grid(levels, sizes, seeds(3))))  # two columns of three runs each
    assert line.startswith("one: 3 runs per level show a difference of 3.5 standard deviations between seeds")
    [line] = power(Stage("first", "a.py", grid(seeds(5))), Stage("then", "b.py", grid(levels), after="first"))
    assert "5 runs of first per level" in line and "standard deviations of the differences between pairs" in line
    assert power(Stage("one", "a.py", grid(seeds(5), choice("norm", {"post": {}})))) == []


def test_a_dry_run_of_a_search_says_its_space(tmp_path: Path, capsys: pytest.CaptureFixture):
    space = {"optimizer.learning_rate": log_uniform(1e-5, 1e-3), "optimizer.name": one_of("adamw", "lamb")}
    search = Search(space, 40, pruner="asha", metric="eval.accuracy", direction="max")
    study = Study("Which?", (Stage("tune", "b.py"),), search=search)
    planned = probes(search, study.stages[0])
    describe(study, planned, tmp_path, Examined({one.key: ONE for one in planned}, "x", ""), 1)
    text = capsys.readouterr().out
    assert "40 trials of b.py for the maximum of eval.accuracy (sampler tpe, pruner asha, seed 0)" in text
    assert "optimizer.learning_rate: 1e-05 to 0.001, by its logarithm" in text
    assert "optimizer.name: adamw or lamb" in text and "at most 4.11 h" in text


# Studies end to end, by the command


@pytest.fixture
def study_file(tmp_path: Path, topics: Path, prepared_folder: Path, labelled: Path) -> Callable[..., Path]:
    """study_file(levels, steps, …) → a study of two stages whose runs take a second each."""

    def write(levels: dict[str, dict], **more) -> Path:
        small = TINY | {"data.corpus": "text", "data.files": str(topics), "data.prepared": str(prepared_folder)}
        small |= {"data.vocab_size": 600, "data.workers": 1, "data.sequence_length": 32, "train.steps": 8}
        small |= {"model.hidden_size": 32, "model.num_attention_heads": 2, "model.intermediate_size": 64}
        small |= {"data.max_predictions_per_sequence": 5, "data.validation_share": 0.15, "data.test_share": 0.1}
        small |= {"optimizer.warmup_steps": 2, "train.log_every": 2, "train.peak_tflops": 1.0, "eval.every": 4}
        small |= {"eval.max_examples": 32, "checkpoint.every": 4} | more
        stage = tuning(labelled, **{"train.epochs": 1.0, "data.sequence_length": 32, "train.peak_tflops": 1.0})
        file = tmp_path / "small.py"
        file.write_text(
            "from bert_jax.lab.study import *\n\n\ndef get_study():\n"
            f"    x, small = choice('x', {levels!r}), {small!r}\n"
            "    pretrain = Stage('pretrain', 'experiments/base.py', grid(x), overrides=small)\n"
            f"    tune = Stage('tune', {stage.base!r}, after='pretrain', overrides={stage.overrides!r})\n"
            "    return Study('?', (pretrain, tune), 'x', metrics={'pretrain': 'eval.loss', 'tune': 'eval.accuracy'})\n"
        )
        return file

    return write


def start(file: Path, workdir: Path, *words: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "bert_jax.lab.sweep", f"--study={file}", f"--workdir={workdir}", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def end(process: subprocess.Popen) -> str:
    text = process.communicate(timeout=900)[0]
    assert "Traceback" not in text, text
    return text


def wait_for(condition: Callable[[], object], seconds: float = 600) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def statuses(workdir: Path) -> list[str]:
    return [run.status for run in read_study(workdir).runs]


def test_a_study_of_two_runs_from_the_command_to_its_results(tmp_path: Path, study_file):
    file, workdir = study_file({"a": {}}), tmp_path / "w"
    process = start(file, workdir)
    text = end(process)
    assert process.returncode == 0, text
    pretrain, tune = read_study(workdir).runs
    assert (pretrain.status, tune.status) == (COMPLETE, COMPLETE), text
    assert (pretrain.attempts, pretrain.key, tune.key) == (1, "pretrain/x=a", "tune/x=a")
    last = [json.loads(line) for line in (pretrain.folder / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in last if line["split"] == "eval"}
    assert pretrain.metric("eval.loss") == min(losses.values()) and pretrain.metric("last.loss") == losses[8]
    assert tune.metric("eval.accuracy") is not None and tune.seconds > 0 and tune.environment["code"]
    assert "1 × cpu" in tune.devices or "8 × cpu" in tune.devices  # the tests have virtual ones
    assert f"warm start from {pretrain.folder}" in (tune.folder / "log.txt").read_text()
    assert "pretrain/x=a: complete, eval.loss" in text and "tune: 1 complete" in text


@pytest.mark.slow
def test_a_study_survives_kills_and_has_the_results_of_an_undisturbed_one(tmp_path: Path, study_file):
    levels = {
        "a": {},
        "b": {"data.pairing": "none"},
        "bad": {"optimizer.learning_rate": 1000.0, "optimizer.clip_norm": 0.0},
    }
    file, calm, workdir = study_file(levels, **{"train.steps": 40}), tmp_path / "calm", tmp_path / "w"
    text = end(process := start(file, calm))
    expected = {run.key: run for run in read_study(calm).runs}
    assert process.returncode == (2 if expected["pretrain/x=bad"].status == FAILED else 0), text

    process = start(file, workdir)
    folder = workdir / "pretrain" / "x=a"
    wait_for(lambda: (folder / "checkpoints" / "4").is_dir() or (folder / "checkpoints" / "8").is_dir())
    os.kill(json.loads((folder / "lock").read_text())["pid"], signal.SIGKILL)  # the process of a run
    wait_for(lambda: (workdir / "pretrain" / "x=b" / "checkpoints" / "8").is_dir())
    pid = json.loads((workdir / "pretrain" / "x=b" / "lock").read_text())["pid"]
    process.kill()  # the sweep
    process.wait()
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), 20)  # the run ends with it
    assert "started again" in end(process)
    found = {run.key: run for run in read_study(workdir).runs}
    assert found["pretrain/x=a"].status == COMPLETE and found["pretrain/x=a"].attempts == 2
    assert found["pretrain/x=b"].status == UNFINISHED and found["tune/x=a"].status == WAITING

    process = start(file, workdir)
    wait_for(lambda: process.poll() is not None or (workdir / "tune" / "x=a" / "log.txt").exists())
    process.send_signal(signal.SIGTERM)
    text = end(process)
    assert process.returncode == 128 + signal.SIGTERM and "the same command continues" in text
    text = end(start(file, workdir))
    for run in read_study(workdir).runs:
        assert (run.key, run.status, run.result) == (run.key, expected[run.key].status, expected[run.key].result)
    attempts = {run.key: run.attempts for run in read_study(workdir).runs}
    assert ": complete, " not in end(start(file, workdir))
    assert {run.key: run.attempts for run in read_study(workdir).runs} == attempts  # nothing was made again


@pytest.mark.slow
def test_slurm_jobs_on_this_machine(tmp_path: Path, study_file):
    pytest.importorskip("submitit", reason="needs the extra lab")
    file, workdir = study_file({"a": {}, "b": {}}), tmp_path / "w"
    text = end(process := start(file, workdir, "--slurm=cluster=local"))
    assert process.returncode == 0, text
    assert statuses(workdir) == [COMPLETE] * 4
    assert set(json.loads((workdir / "slurm" / "jobs.json").read_text())) == {"tune/x=a", "tune/x=b"}
    assert "warm start" in (workdir / "tune" / "x=b" / "log.txt").read_text()


def test_a_search_by_slurm_has_as_many_trials_at_a_time_as_it_is_told(tmp_path: Path):
    pytest.importorskip("submitit", reason="needs the extra lab")
    from bert_jax.lab.sweep.slurm import Slurm

    with pytest.raises(UserError, match="a search needs parallel=N"):
        Slurm(tmp_path, "cluster=local", is_search=True)
    assert Slurm(tmp_path, "cluster=local,parallel=2", is_search=True).room() == 2
    assert Slurm(tmp_path, "cluster=local,parallel=2").room() > 1000  # an array of them all


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpu", "--slurm=gpu: 'gpu' is not NAME=VALUE"),
        ("partition=gpu", "it must be NAME=VALUE of sbatch, on a machine that has it"),
    ],
)
def test_slurm_where_there_is_none_is_one_line(tmp_path: Path, text: str, message: str):
    pytest.importorskip("submitit", reason="needs the extra lab")
    from bert_jax.lab.sweep.slurm import Slurm

    with pytest.raises(UserError) as error:
        Slurm(tmp_path, text)
    assert message in str(error.value)
