"""Exit statuses and lines of a command, also in odd environments; as a process, since they are the process's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bert_jax.command import exit_status, say, visible
from bert_jax.config import UserError

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """
import sys
import logging
from bert_jax.command import Parser, run_command
from bert_jax.config import UserError
def main(argv):
{body}
run_command(main)
"""


def call(body, *words, shell="", environment=None, **settings):
    program = PROGRAM.format(body="\n".join(f"    {line}" for line in body.splitlines()))
    command = [sys.executable, "-c", program, *words]
    if shell:  # the words of the command are its arguments
        command = ["bash", "-c", f'"$@" {shell}', "bash", *command]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)} | (environment or {})
    return subprocess.run(command, capture_output=True, timeout=60, cwd=ROOT, env=environment, **settings)


@pytest.mark.parametrize(
    ("raised", "status", "line"),
    [
        (UserError("a\nb: \x1b[31mred\x07 \udcff \u202e"), 2, "error: a b: \\x1b[31mred\\x07 \\xff \\u202e"),
        (FileNotFoundError(2, "No such file or directory", "x.txt"), 2, "error: x.txt: No such file or directory"),
        (OSError("odd"), 2, "error: odd"),
        (MemoryError(), 2, "error: there is not enough memory; lower the sizes, or free some"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
    ],
)
def test_an_exception_is_one_line_and_a_status(raised, status, line, capsys):
    def main(argv):
        raise raised

    assert exit_status(main, []) == status
    assert capsys.readouterr().err == line + "\n"
    if status == 2:
        assert exit_status(main, ["--debug"]) == 2
        error = capsys.readouterr().err
        assert "Traceback" in error and error.endswith(line + "\n")


def test_an_interrupt_that_became_another_exception():
    body = "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept KeyboardInterrupt:\n    {}"
    for raised in ("raise ImportError('numpy')", "raise UserError('task is odd')", "raise"):
        result = call(body.format(raised))
        assert (result.returncode, result.stderr) == (130, b"error: interrupted\n")


def test_a_bug_keeps_its_traceback_after_a_line(capsys):
    assert exit_status(lambda argv: {}["missing"], []) == 1
    line, *rest = capsys.readouterr().err.splitlines()
    assert line == "error: this is a bug, please report it with the traceback below (KeyError: 'missing')"
    assert rest[0].startswith("Traceback")


def test_logs_show_what_a_terminal_would_obey():
    result = call("logging.warning('label %s\\nsecond line', '\\x1b]0;title\\x07 \u200bword')\nreturn 0")
    first, second = result.stderr.decode().splitlines()
    assert first.endswith("label \\x1b]0;title\\x07 \u200bword") and second == "second line"
    assert visible("naïve 漢字 \u0627\u200c\u0628") == "naïve 漢字 \u0627\u200c\u0628"


def test_text_in_an_ascii_locale():
    result = call("print('é \\udcff')\nraise UserError('漢')", environment={"LC_ALL": "C", "PYTHONIOENCODING": "ascii"})
    assert result.returncode == 2
    assert result.stdout == b"\\xe9 \\udcff\n" and result.stderr == b"error: \\u6f22\n"


def test_words_that_cannot_be_decoded():
    result = call("Parser('m', 'd').parse(argv)", b"--caf\xe9=1")
    assert (result.returncode, result.stderr.count(b"\n")) == (2, 1)
    assert result.stderr.startswith(b"error: --caf\\xe9=1 contains bytes that are not UTF-8")


def test_what_is_printed_shows_what_a_terminal_would_obey(capsys):
    say("a \x1b[31m [MASK]\n  \u202e")
    assert capsys.readouterr().out == "a \\x1b[31m [MASK]\n  \\u202e\n"


@pytest.mark.parametrize(
    ("shell", "status", "message"),
    [
        (">&-", 2, b"error: standard output cannot be written (Bad file descriptor)\n"),
        (">/dev/full", 2, b"error: standard output cannot be written (No space left on device)\n"),
        ("2>&-", 3, b""),
        ("<&- 2>&- ", 3, b""),
        ("2>/dev/full", 3, b""),
        (">&- 2>&- <&-", 2, b""),
    ],
)
def test_standard_streams_that_are_closed_or_full(shell, status, message, tmp_path):
    file = tmp_path / "file"
    body = f"print('out')\nopen({str(file)!r}, 'w').write('mine')\nlogging.warning('log')\nreturn 3"
    result = call(body, shell=shell)
    assert result.returncode == status and result.stderr.partition(b" log\n")[2] == message
    assert file.read_text() == "mine"  # nothing else went there


def test_reading_a_closed_input_is_one_line():
    result = call("sys.stdin.read()", shell="<&-")
    assert (result.returncode, result.stderr.count(b"\n")) == (2, 1) and result.stderr.startswith(b"error: ")


def test_a_reader_that_leaves():
    result = call("for i in range(10**6): print(i)", shell="| head -1; exit ${PIPESTATUS[0]}")
    assert (result.returncode, result.stdout, result.stderr) == (141, b"0\n", b"")
