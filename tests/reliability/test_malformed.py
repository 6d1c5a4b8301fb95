"""A sample of the malformed inputs; `python -m tests.reliability` runs all of them (docs/RELIABILITY.md)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.reliability.cases import all_cases
from tests.reliability.harness import Case, Outcome, run_case

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_one_in_eight_malformed_inputs_ends_in_one_line(tmp_path):
    command = [sys.executable, "-m", "tests.reliability", f"--scratch={tmp_path}", "--every=8", "--first=3"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_there_are_a_thousand_of_them_with_names_of_their_own():
    cases = all_cases()
    assert len(cases) >= 1_000
    assert len({(case.group, case.name) for case in cases}) == len(cases)


class TestTheJudge:
    """The harness itself: what it must call bad it does call bad."""

    @pytest.fixture
    def judged(self, tmp_path, monkeypatch):
        (tmp_path / "world").mkdir()
        (tmp_path / "world" / "hostile_module.py").write_text("")
        (tmp_path / "world" / "mine.txt").write_text("mine")

        def run(status, output, act=lambda folder: None, **changes) -> Outcome:
            def end(case, folder):
                act(folder)
                return status, output

            monkeypatch.setattr("tests.reliability.harness.fork_command", end)
            case = Case("group", "name", ("main",), ("mine.txt",), **changes)
            return run_case(case, tmp_path / "world", tmp_path / "runs" / str(len(list((tmp_path).glob("runs/*")))))

        (tmp_path / "runs").mkdir()
        return run

    def test_verdicts(self, judged):
        assert judged(2, "12:00:00 a warning\nerror: what is wrong\n").verdict == "one line"
        assert judged(0, "", accepts=True).verdict == "accepted"
        assert judged(0, "").verdict == "accepted although wrong"
        assert judged(None, "").verdict == "hung"
        assert judged(1, "Traceback (most recent call last):\n").verdict == "traceback"
        assert judged(2, "Traceback (most recent call last):\nerror: x\n").verdict == "traceback"
        assert judged(2, "").verdict == "not one line"
        assert judged(2, "error: one\nerror: two\n").verdict == "not one line"
        assert judged(-11, "").verdict == "status -11"
        assert judged(2, "error: x\n", lambda f: (f / "mine.txt").unlink()).verdict == "destroyed mine.txt"
        assert judged(0, "", lambda f: (f / "mine.txt").write_text("x"), accepts=True).verdict == "destroyed mine.txt"
        assert judged(2, "error: x\n", lambda f: (f / "canary").touch()).verdict == "executed"
