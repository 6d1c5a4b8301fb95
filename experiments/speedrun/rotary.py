"""small_en's loss in a fourteenth of its steps: rotary positions, pre-norm and Muon, no NSP, float32.

    taskset -c 0,1 python -m bert_jax.lab.speedrun run experiments/speedrun/rotary.py:corpus --seeds=5

The name behind the colon is the folder of the corpus. Hardware: two CPU cores. Expect: MLM loss 4.24 or less
with every seed after 2,500 steps and 5 to 6 minutes of training, where small_en needs 36,000 steps of the same size.
After 2,200 steps one of two seeds was above it (4.198, 4.264).
"""

from ml_collections import ConfigDict

from bert_jax.lab.speedrun.entries import Entry
from experiments.speedrun import common


def get_entry(folder: str | None = None) -> Entry:
    return Entry("cpu2-target", "rotary positions, pre-norm, Muon, no NSP, float32")


def get_config(folder: str | None = None) -> ConfigDict:
    """Returns the config with the corpus in a folder."""
    config = common.start(folder)
    config.model.position_embedding = "rotary"
    config.model.norm = "pre"
    config.model.dtype = "float32"  # as fast as bfloat16 on a CPU without AMX
    config.data.pairing = "none"
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 5e-3
    config.optimizer.warmup_steps = 200
    config.train.steps = 2_500
    return config
