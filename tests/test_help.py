"""Help by topic, its colours and its completions; the command `bert_jax`."""

import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bert_jax import __version__
from bert_jax.__main__ import TOOLS, main
from bert_jax.command import exit_status
from bert_jax.help import _GROUPS, EXAMPLES, option_groups, pages
from bert_jax.main import _parser, read_command
from bert_jax.modes import MODES
from bert_jax.options import NAMED, OPTIONS

OPTIMIZERS = OPTIONS["optimizer.name"].choices
ROOT = Path(__file__).resolve().parents[1]


def page(topic: str) -> str:
    return pages(MODES)(_parser(), topic)


def test_every_mode_has_an_example_that_the_door_accepts():
    assert list(EXAMPLES) == list(MODES)
    for mode, words in EXAMPLES.items():
        assert read_command([f"--mode={mode}", *shlex.split(words)])[0] == mode
        assert words in page("") and words in page(mode)


def test_a_mode_has_its_flags_and_no_others():
    parser = _parser()
    for mode in MODES:
        shown = set(re.findall(r"^  --(\w+)", page(mode).partition("\nOptions of the config")[0], re.M))
        its = {name for name in parser.defaults if mode in parser.modes.get(name, (mode,))}
        assert shown == {*its, "help"}, mode
        assert not set(re.findall(r"`(\w+)`", page(mode))) & set(parser.defaults), mode  # a parameter is a flag here


def test_every_option_is_in_its_group_with_its_default():
    groups = option_groups()
    assert set(_GROUPS) == set(groups)
    shown = "".join(f"{' '.join(page(group).split())} " for group in groups)
    for option in (*OPTIONS.values(), *(option for its in NAMED.values() for option in its.values())):
        default = "''" if option.default == "" else option.default
        assert re.search(rf" {re.escape(option.name)}( [SRI]+)? {re.escape(f'[{default}] {option.meaning}')}", shown)
    for name in ("train.steps", "data.packing"):
        assert OPTIONS[name].meaning in " ".join(page(name).split())


def test_colours_are_for_terminals():
    def output(**environment: str) -> str:
        ours, its = pty.openpty()
        words = [sys.executable, "-m", "bert_jax.main", "--help=compile"]  # fits the buffer of a terminal
        with subprocess.Popen(words, cwd=ROOT, stdout=its, env=os.environ | environment) as process:
            assert process.wait(60) == 0
        os.close(its)
        read = os.read(ours, 1 << 16)
        os.close(ours)
        return read.decode()

    plain, styled = output(NO_COLOR="1", TERM="xterm"), output(NO_COLOR="", TERM="xterm")
    assert "\x1b" not in plain and "\x1b[1mFlags\x1b[0m" in styled
    assert re.sub(r"\x1b\[\d+m", "", styled) == plain


def command(*words: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-m", "bert_jax", *words]
    return subprocess.run(call, cwd=cwd, capture_output=True, text=True, timeout=120, env=os.environ | environment)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the command is missing, e.g. bert_jax train --config=base"),
        (["tran"], "the command is 'tran'; it can be prepare, train,"),
        (["--verbose"], "the command is '--verbose'; it can be"),
    ],
)
def test_a_mistake_is_one_line(words, message, capsys):
    assert exit_status(main, words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")


def test_the_command_lists_modes_and_tools(capsys):
    assert exit_status(main, ["--version"]) == 0 and capsys.readouterr().out == f"bert_jax {__version__}\n"
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    shown = capsys.readouterr().out
    assert caught.value.code == 0
    for name in (*MODES, *TOOLS):
        assert re.search(rf"^  {name} ", shown, re.M), name
    for module, _ in TOOLS.values():
        assert (ROOT / Path(*module.split("."))).is_dir() or (ROOT / f"{module.replace('.', '/')}.py").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fill_mask", "--config=tiny"], "error: --mode=fill_mask needs a text"),
        (["predict", "--mode=train"], "error: `bert_jax predict` is a mode; leave --mode out"),
        (["report", "none"], "error: none is not a folder; give the --workdir of a sweep or of a run"),
    ],
)
def test_a_command_is_its_module(words, message, tmp_path):
    result = command(*words, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert result.returncode == 2 and result.stderr.splitlines()[-1].startswith(message)


@pytest.mark.parametrize(
    ("line", "some"),
    [
        ("bert_jax pre", ["prepare", "predict"]),
        (
            "bert_jax train --config.optimizer.name=",
            [f"--config.optimizer.name={x}" for x in OPTIMIZERS],
        ),
        ("bert_jax embed --pooling=m", ["--pooling=mean", "--pooling=max"]),
        ("bert_jax train --config=bas", ["--config=base"]),
    ],
)
def test_a_shell_completes(line, some, tmp_path):
    pytest.importorskip("argcomplete", reason="pip install -e '.[dev]'")
    asked = {"COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9", "_ARGCOMPLETE": "1"}
    asked |= {"_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "found"), "_ARGCOMPLETE_DFS": ""}
    asked |= {"_ARGCOMPLETE_SUPPRESS_SPACE": "1"}
    assert command(**asked).returncode == 0
    assert (tmp_path / "found").read_text().split("\n") == some
