"""A sample of the faults; `python -m tests.reliability.faults` makes all of them (docs/RELIABILITY.md)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.reliability.faults import End, Trial, _resumed_elsewhere, bits, files_by_kind, lines, table

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_three_faults_of_each_kind_are_survived(tmp_path):
    kinds = "kill,sigterm,flip,permission" + (",disk" if os.geteuid() == 0 else "")
    command = [sys.executable, "-m", "tests.reliability.faults", f"--scratch={tmp_path / 'faults'}", "--number=3"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, f"--kinds={kinds}"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


class TestTheJudge:
    """The harness itself: what it must call bad it does call bad."""

    def test_ends(self):
        assert End(0, "a log\n", 1.0).problem == ""
        assert End(2, "a warning\nerror: what is wrong\n", 1.0).problem == ""
        assert End(None, "", 60.0).problem == "hung"
        assert End(2, "Traceback (most recent call last):\nerror: x\n", 1.0).problem == "traceback"
        assert End(2, "error: x\nerror: y\n", 1.0).problem == End(2, "", 1.0).problem == "status 2, not one line"
        assert End(1, "error: x\n", 1.0).problem == "status 1, not one line"

    def test_a_checkpoint_that_was_finished_and_not_used_is_lost(self):
        resumed = End(-9, "resuming run at step 4\n", 1.0)
        assert _resumed_elsewhere(resumed, [2, 4]) == ""
        assert _resumed_elsewhere(resumed, [2, 4, 6]) == "resumed at 4 though [2, 4, 6] were finished"
        assert _resumed_elsewhere(End(1, "", 1.0), []) == "status 1, not one line"

    def test_bits_and_lines(self, tmp_path):
        for step in (9, 10):
            (tmp_path / "checkpoints" / str(step) / "run").mkdir(parents=True)
            run = {"step": step, "checksums": {"parameters": {"x": step}, "optimizer": {"y": 2}, "run": "a"}}
            (tmp_path / "checkpoints" / str(step) / "run" / "metadata").write_text(json.dumps(run))
        assert bits(tmp_path) == {"parameters": {"x": 10}, "optimizer": {"y": 2}, "step": 10}
        written = [
            {"step": 1, "split": "train", "loss": 1.5, "mfu": 0.1},
            {"step": 1, "split": "ledger", "useful": 2.0},
        ]
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in written))
        assert lines(tmp_path) == [{"step": 1, "split": "train", "loss": 1.5}]

    def test_kinds_of_files_have_no_numbers(self, tmp_path):
        for name in ("run/checkpoints/2/run/metadata", "run/checkpoints/12/run/metadata", "prepared/a-0123456789ab/x"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        assert list(files_by_kind(tmp_path)) == ["run/checkpoints/#/run/metadata", "prepared/a-#/x"]

    def test_the_table(self):
        trials = [Trial("kill", "a", "survived"), Trial("kill", "b", "hung"), Trial("disk", "c", "survived")]
        assert table(trials).splitlines()[2:] == [
            "| SIGKILL at a random moment, while saving too | 2 | 1 | 1 |",
            "| disk full | 1 | 1 | 0 |",
        ]
