"""The door: flags, exit statuses, one line per error; where it matters, as a process."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bert_jax.command import exit_status
from bert_jax.help import option_groups
from bert_jax.main import _parser, main
from bert_jax.modes import MODES

ROOT = Path(__file__).resolve().parents[1]
BASE = "--config=experiments/base.py"


def call(*flags, cwd=ROOT):
    command = [sys.executable, "-m", "bert_jax.main", *map(str, flags)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


def last_line(result):
    return result.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--config is missing, e.g. --config=experiments/base.py"),
        (
            ["--config=experiments/tony.py"],
            "config file experiments/tony.py does not exist; did you mean experiments/tiny.py",
        ),
        (
            ["--config=experiments/bsae.py"],
            "config file experiments/bsae.py does not exist; did you mean experiments/base.py?",
        ),
        (["--config=bsae"], "config file bsae does not exist; did you mean experiments/base.py?"),
        (["--help=optimiser"], "--help=optimiser is no topic; it can be prepare, train,"),
        (["--help=train.step"], "--help=train.step is no topic; the nearest is --help=train.steps"),
        (
            [BASE, "--config.optimiser.name=lamb"],
            "optimiser.name is not an option; the nearest is --config.optimizer.name",
        ),
        ([BASE, "--config.train.batchsize=8"], "batchsize is not an option; the nearest is --config.train.batch_size"),
        ([BASE, "--config.train.steps=many"], "--config.train.steps is 'many'; it must be a whole number from 1"),
        ([BASE, "--config.train.steps"], "--config.train.steps has no value; write --config.train.steps=VALUE"),
        ([BASE, "--config.train=3"], "--config.train is a group of options"),
        ([BASE, "--config.optimizer.freeze=("], "optimizer.freeze is '(', which is not a regular expression"),
        ([BASE, "--mode=pretrain"], "--mode is 'pretrain'; it can be blimp, compile, doctor, embed, evaluate"),
        ([BASE, "--modus=train"], "--modus is not a flag; did you mean --mode?"),
        ([BASE, "train"], "'train' is not a flag"),
        ([BASE + ":huge"], "experiments/base.py: model.size is 'huge'; it can be tiny"),
        ([BASE, "--text=a"], "--text belongs to --mode=fill_mask, not to --mode=train"),
        ([BASE, "--replay=3"], "--replay belongs to --mode=doctor, not to --mode=train"),
        (["--mode=doctor"], "run is not a folder; give the folder of a run"),
        (
            [BASE, "--mode=evaluate", "--input=a"],
            "--input belongs to --mode=predict and generate and embed and fill_mask and score and blimp and retrieve,",
        ),
        (
            [BASE, "--mode=predict", "--pooling=max"],
            "--pooling belongs to --mode=embed and retrieve, not to --mode=predict",
        ),
        ([BASE, "--mode=fill_mask", "--top_k=0"], "--top_k is 0; it must be a whole number from 1 to below 2147483648"),
        ([BASE, "--mode=fill_mask"], "--mode=fill_mask needs a text"),
        ([BASE, "--mode=predict"], "--mode=predict needs --input"),
        ([BASE, "--mode=predict", "--input=a", "--output=a.zip"], "and --glue=<test set>"),
        ([BASE, "--mode=predict", "--input=a", "--glue=RTE"], "both --output=<name>.zip and"),
        ([BASE, "--mode=embed", "--input=a.txt"], "--output=<name>.npy or <name>.parquet"),
        ([BASE, "--mode=embed", "--normalize=perhaps"], "--normalize is 'perhaps'; it must be True or False"),
        ([BASE, "--mode=predict", "--bad_lines=ignore"], "--bad_lines is 'ignore'; it can be fail, skip"),
        ([BASE, "--mode=blimp"], "--mode=blimp needs --input, the folder of the .jsonl files"),
        ([BASE, "--mode=blimp", "--input=a", "--output=a.tsv"], "unknown suffix '.tsv'; it can be .json, .csv"),
        ([BASE, "--config.eval.blimp=nowhere"], "eval.blimp: nowhere is not a folder"),
        ([BASE, "--config.task=classify"], "task is 'classify'"),
    ],
)
def test_mistakes_end_with_one_line_and_status_2(flags, message, tmp_path, capsys):
    assert exit_status(main, [*flags, f"--workdir={tmp_path / 'run'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([BASE, "--config.data.corpus=text", "--config.data.files=none/*.txt"], "none/*.txt"),
        ([BASE, "--mode=predict", "--input=a.txt"], "no checkpoint in"),
        (["--config=experiments/bsae.py"], "did you mean experiments/base.py?"),
    ],
)
def test_as_a_process(flags, message, tmp_path):
    result = call(*flags, f"--workdir={tmp_path / 'run'}")
    assert result.returncode == 2, result.stderr
    assert last_line(result).startswith("error: ") and message in last_line(result)
    assert "Traceback" not in result.stderr


def test_flags_belong_to_what_their_mode_accepts():
    parser = _parser()
    for mode, function in MODES.items():
        accepted = inspect.signature(function).parameters
        assert {name for name, its in parser.modes.items() if mode in its} <= {*accepted}, mode


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


@pytest.mark.parametrize("module", ["main", "convert", "options"])
def test_help_is_quick_and_complete(module):
    command = [sys.executable, "-X", "importtime", "-m", f"bert_jax.{module}", "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "bert_jax" in imported and not imported & {"jax", "flax", "numpy", "tensorflow"}
    if module == "main":
        assert "\x1b" not in result.stdout  # no terminal
        for name, default in _parser().defaults.items():
            assert f"--{name}" in result.stdout
            assert default in ("", None, []) or f"[{default}]" in result.stdout
        for group in option_groups():
            assert re.search(rf"^  {group} \(\d+\)", result.stdout, re.M), group
