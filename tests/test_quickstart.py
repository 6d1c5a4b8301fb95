"""The README's first command, shortened: every mode in a row, the way a newcomer meets them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.optimized
def test_quickstart(tmp_path):
    workdir = tmp_path / "quickstart"
    short = ["--config.train.steps=6", "--config.train.log_every=2", "--config.eval.every=3"]
    short += ["--config.checkpoint.every=3", f"--config.data.prepared={tmp_path / 'prepared'}"]
    short += ["--config.optimizer.warmup_steps=2", "--config.mesh.data=1"]
    result = subprocess.run(
        ["bash", "launch/quickstart.sh", *short],
        cwd=ROOT,
        env=os.environ | {"VENV": sys.prefix, "WORKDIR": str(workdir)},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "THE CORPUS IS THE BUILT-IN SAMPLE" in result.stderr
    assert "Traceback" not in result.stderr
    # the loss beside that of a guesser, four lines with a hidden word, and what to do next
    assert re.search(r"a hidden piece costs the model \d\.\d\d nats, and \d\.\d\d to a guesser", result.stdout)
    assert result.stdout.count("[MASK]") == result.stdout.count("    was: ") == 4
    assert "Next, on text of your own" in result.stdout
    splits = [json.loads(line)["split"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert {"train", "eval", "ledger"} == set(splits)
    assert {path.name for path in (workdir / "plots").iterdir()} >= {"loss.png", "accuracy.png"}
