"""Readers beside a run that trains: its checkpoints appear and disappear while they are read."""

import os
import subprocess
import time
from pathlib import Path

import pytest

import bert_jax
from bert_jax.training.checkpoint import steps

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def test_a_run_that_trains_can_be_read_at_any_moment(small_config, command_line, tmp_path):
    """Each save deletes the checkpoint before, so a reader that is slower than two saves loses its files."""
    small_config.train.update(steps=100_000, log_every=1000)
    small_config.eval.every = 100_000
    small_config.checkpoint.update(every=1, keep=1)
    workdir = tmp_path / "run"
    with open(tmp_path / "output", "w") as output:
        process = subprocess.Popen(command_line(small_config, workdir), cwd=ROOT, env=os.environ, stderr=output)
    try:
        deadline = time.time() + 240
        while not steps(workdir / "checkpoints") and time.time() < deadline:
            time.sleep(0.05)
        seen = []
        while len(seen) < 25 or (len(set(seen)) < 5 and time.time() < deadline):
            seen.append(bert_jax.load(str(workdir)).step)
        assert process.poll() is None, (tmp_path / "output").read_text()[-2000:]
    finally:
        process.kill()
        process.wait()
    assert len(set(seen)) >= 5 and seen == sorted(seen)
