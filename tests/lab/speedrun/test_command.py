"""An entry end to end, as a user makes one: two seeds on a few kB, scored, continued, and refused as a record."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
ENTRY = """
from bert_jax.lab.speedrun.entries import Entry
from experiments import base


def get_entry(folder): return Entry("cpu2-30min", "two layers of 32")


def get_config(folder):
    config = base.get_config("tiny")
    config.model.update(hidden_size=32, num_attention_heads=2, intermediate_size=64)
    config.data.update(corpus="text", files=folder, prepared=folder + ".prepared", vocab_size=600, workers=1)
    config.data.update(sequence_length=32, max_predictions_per_sequence=5)
    config.optimizer.update(learning_rate=1e-3, warmup_steps=2)
    config.train.update(steps=8, batch_size=16, log_every=4, peak_tflops=1.0)
    config.eval.update(every=8, batch_size=16)
    config.checkpoint.update(every=8)
    config.mesh.data = 1
    return config
"""


def speedrun(*words: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "bert_jax.lab.speedrun", *map(str, words)]
    environment = os.environ | {"XLA_FLAGS": ""}  # one device, as a user has
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)


@pytest.mark.slow
@pytest.mark.optimized
def test_an_entry_is_made_scored_and_judged(topics: Path, tmp_path: Path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_bytes(topics.read_bytes())
    (tmp_path / "mine.py").write_text(ENTRY)
    entry, runs, records = f"{tmp_path / 'mine.py'}:{corpus}", tmp_path / "runs", tmp_path / "records.json"
    made = speedrun("run", entry, "--seeds=2", f"--workdir={runs}")
    assert made.returncode == 0, made.stderr[-2000:]
    scores = [json.loads((runs / f"train/seed={seed}/speedrun.json").read_text()) for seed in range(2)]
    assert [f"{score['nats_per_character']:.4f} nats per character" in made.stdout for score in scores] == [True, True]
    assert made.stdout.count("s of compiling") == 2 and f"record {entry}" in made.stdout.splitlines()[-1]
    assert scores[0]["model"] != scores[1]["model"] and scores[0]["held_out"] == scores[1]["held_out"]
    # The same command has nothing left to do, and scores nothing again.
    (runs / "train/seed=1/speedrun.json").unlink()
    again = speedrun("run", entry, "--seeds=2", f"--workdir={runs}")
    assert again.returncode == 0 and "2 complete" in again.stdout
    assert again.stderr.count("hidden words in") == 1
    assert json.loads((runs / "train/seed=1/speedrun.json").read_text()) == scores[1]
    records.write_text(json.dumps({"held_out": scores[0]["held_out"], "records": []}))
    judged = speedrun("record", entry, f"--workdir={runs}", f"--records={records}")
    assert judged.returncode == 2 and judged.stderr.count("error:") == 1
    assert "mine has 2 complete runs; a record needs 5 seeds" in judged.stderr
