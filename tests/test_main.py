"""The door: flags, exit statuses, one line an error; as a process, the way a user meets it."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def call(*flags, cwd=ROOT):
    command = [sys.executable, "-m", "bert_jax.main", *map(str, flags)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


def last_line(result):
    return result.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--config is missing, e.g. --config=experiments/base.py"),
        (["--config=experiments/bsae.py"], "config file experiments/bsae.py does not exist"),
        (
            ["--config=experiments/base.py", "--config.optimiser.name=lamb"],
            "error: 'optimiser' Did you mean \"optimizer\"",
        ),
        (
            ["--config=experiments/base.py", "--config.train.batchsize=8"],
            "error: 'batchsize' Did you mean \"batch_size\"",
        ),
        (["--config=experiments/base.py", "--config.train.steps=many"], "--config.train.steps=many: invalid literal"),
        (["--config=experiments/base.py", "--mode=pretrain"], "--mode=pretrain: value should be one of"),
        (["--config=experiments/base.py", "--modus=train"], "Unknown command line flag 'modus'. Did you mean: mode"),
        (["--config=experiments/base.py", "train"], "'train' is not a flag"),
        (["--config=experiments/base.py:huge"], "model.size is 'huge'"),
        (["--config=experiments/base.py", "--mode=fill_mask"], "--mode=fill_mask needs a text"),
        (["--config=experiments/base.py", "--mode=predict"], "--mode=predict needs --input"),
        (["--config=experiments/base.py", "--mode=predict", "--input=a", "--output=a.zip"], "and --glue=<test set>"),
        (["--config=experiments/base.py", "--mode=predict", "--input=a", "--glue=RTE"], "both --output=<name>.zip and"),
        (["--config=experiments/base.py", "--mode=predict", "--input=a.txt"], "no checkpoint in"),
        (["--config=experiments/base.py", "--mode=embed", "--input=a.txt"], "--output=<name>.npy or <name>.parquet"),
        (["--config=experiments/base.py", "--bad_lines=ignore"], "--bad_lines=ignore: value should be one of"),
        (["--config=experiments/base.py", "--config.task=classify"], "task is 'classify'"),
        (["--config=experiments/base.py", "--config.data.corpus=text", "--config.data.files=none/*.txt"], "none/*.txt"),
    ],
)
def test_mistakes_end_with_one_line_and_status_2(flags, message, tmp_path):
    result = call(*flags, f"--workdir={tmp_path / 'run'}")
    assert result.returncode == 2, result.stderr
    assert last_line(result).startswith("error: ") and message in last_line(result)
    assert "Traceback" not in result.stderr


def test_fill_mask_without_a_checkpoint_says_where_it_looked(tmp_path):
    result = call("--config=experiments/tiny.py", "--mode=fill_mask", "--text=a [MASK]", f"--workdir={tmp_path}")
    assert result.returncode == 2
    assert last_line(result) == f"error: no checkpoint in {tmp_path}; give a workdir or one of its checkpoints"


def test_debug_shows_the_traceback(tmp_path):
    result = call("--config=experiments/base.py", "--mode=fill_mask", "--debug", f"--workdir={tmp_path}")
    assert result.returncode == 2 and "Traceback" in result.stderr


def test_a_workdir_that_cannot_be_written_to(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    result = call("--config=experiments/tiny.py", f"--workdir={file / 'run'}")
    assert result.returncode == 2
    assert f"--workdir {file / 'run'} cannot be written to" in last_line(result)


def test_help_is_quick_and_complete():
    start = time.perf_counter()
    result = call("--help")
    assert time.perf_counter() - start < 2
    assert result.returncode in (0, 1)  # absl's own --help exits with 1
    for flag in ("--config", "--mode", "--workdir", "--text", "--top_k", "--input", "--output", "--bad_lines"):
        assert flag in result.stdout
