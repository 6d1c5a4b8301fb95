"""How a run starts and what it returns."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from bert_jax.backend import keep_programs
from bert_jax.config import UserError
from bert_jax.run import run, start_run
from bert_jax.tasks import task_class
from experiments import classify

ASK = """
import sys, jax
from pathlib import Path
from bert_jax.backend import keep_programs
keep_programs(Path(sys.argv[1]))
print(jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs)
"""


def test_programs_are_kept_beside_the_run_small_ones_too_unless_the_user_says_otherwise(tmp_path):
    names = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    mine = {name: value for name, value in os.environ.items() if name not in names}

    def asked(environment):
        command = [sys.executable, "-c", ASK, str(tmp_path / "runs" / "one")]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.split()

    assert asked(mine) == [str(tmp_path / "runs" / ".compiled"), "0.02"]
    assert asked(mine | dict(zip(names, ("/elsewhere", "3.0"), strict=True))) == ["/elsewhere", "3.0"]


@pytest.mark.parametrize(
    ("make", "init_from", "message"),
    [
        (
            "config.json",
            "model",
            "model is a model in another format; convert it first: python -m bert_jax.convert",
        ),
        ("modules.json", "model", "model is a model in another format; convert it first"),
        ("bert.ckpt.index", "model", "model is a model in another format; convert it first"),
        ("checkpoints/", "model", "model is a workdir without a checkpoint; train that run first"),
        ("notes.txt", "model", "model is not a checkpoint; give a workdir or one of its checkpoints"),
        (
            "",
            "bert-base-uncased",
            "bert-base-uncased does not exist; if it is a model of the Hugging Face Hub: ",
        ),
        ("", "someone/bert", "--from=someone/bert --to=ckpts/bert, then give --config.init_from=ckpts/bert"),
        ("", "some/where/else", "some/where/else does not exist; correct the path"),
    ],
)
def test_what_a_run_cannot_start_from(make, init_from, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.csv").write_text("text,label\n")
    if make:
        (tmp_path / "model" / Path(make)).parent.mkdir(parents=True)
        (tmp_path / "model" / make).mkdir() if make.endswith("/") else (tmp_path / "model" / make).write_text("{}")
    config = classify.get_config()
    config.data.train, config.init_from = "train.csv", init_from
    with pytest.raises(UserError) as caught:
        start_run(config, tmp_path / "run")
    assert str(caught.value).startswith("init_from=") and message in str(caught.value)


@pytest.mark.parametrize("key", ["train", "validation", "test", "vocab_file"])
def test_a_missing_file_is_found_before_anything_is_read(key, tmp_path):
    config = classify.get_config()
    config.data[key] = str(tmp_path / "none.csv")
    with pytest.raises(UserError, match=rf"data.{key}: .*none.csv does not exist"):
        start_run(config, tmp_path / "run")


@pytest.mark.parametrize("platform", ["foo", "cuda"])
def test_a_platform_that_is_not_there_is_one_line(platform, tmp_path):
    command = [sys.executable, "-m", "bert_jax.main", "--config=experiments/tiny.py", f"--workdir={tmp_path / 'run'}"]
    environment = os.environ | {"JAX_PLATFORMS": platform}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    line = result.stderr.splitlines()[-1]
    assert line.startswith("error: jax finds no device (")
    assert line.endswith(f": JAX_PLATFORMS is '{platform}'; unset it, or set it to cpu")


@pytest.mark.parametrize(
    ("code", "name", "message"),
    [
        ("1 +", "broken_task.Mine", "which cannot be loaded (SyntaxError: invalid syntax"),
        ("nothing", "broken_task.Mine", "which cannot be loaded (NameError: name 'nothing' is not defined)"),
        ("", "broken_task.Mine", "which cannot be loaded (AttributeError: "),
        ("Mine = 3", "broken_task.Mine", "which is not a class; it can be pretraining"),
        ("", "no_such_module_here.Mine", "which cannot be loaded (ModuleNotFoundError: "),
        ("", "classify", "task is 'classify'; it can be pretraining, classification"),
    ],
)
def test_a_task_that_cannot_be_loaded(code, name, message, tmp_path, monkeypatch):
    (tmp_path / "broken_task.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "broken_task", raising=False)
    with pytest.raises(UserError) as caught:
        task_class(name)
    assert str(caught.value).startswith(f"task is '{name}'") and message in str(caught.value)


def test_a_cache_that_cannot_be_written_to_is_a_warning(tmp_path, caplog, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    (tmp_path / ".compiled").write_text("a file where the folder would be")
    before = jax.config.jax_compilation_cache_dir
    keep_programs(tmp_path / "run")
    assert "programs are not kept" in caplog.text
    assert jax.config.jax_compilation_cache_dir == before


def test_a_result_has_last_and_best_metrics_also_of_a_run_that_was_done_before(small_config, tmp_path):
    small_config.checkpoint.update(best_metric="mlm_accuracy", best_mode="max", keep=9)
    config = small_config.copy_and_resolve_references()
    result = run(small_config, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    evals = {line["step"]: line["mlm_accuracy"] for line in lines if line["split"] == "eval"}
    assert (result.step, result.ended, result.status, result.test) == (8, "done", 0, {})
    assert result.last["mlm_accuracy"] == evals[8]
    assert result.best["mlm_accuracy"] == max(evals[4], evals[8])
    assert evals[int(result.checkpoint.name)] == result.best["mlm_accuracy"]
    assert "tokens_per_second" in next(line for line in lines if line["split"] == "train")
    assert run(config, tmp_path / "run") == result
