"""Where the speedrun starts: small_en as it stands, 2 layers of 128, 36,000 steps of 32 rows of 128 tokens.

    python -m bert_jax.lab.speedrun run experiments/speedrun/small_en.py:corpus --seeds=5

The name behind the colon is the folder of the corpus. Hardware: two CPU cores. Time: half an hour per seed. Expect: MLM
loss 4.24 (one seed, docs/RESULTS.md); five seeds have not been measured, so it is no record.
"""

from ml_collections import ConfigDict

from bert_jax.lab.speedrun.entries import Entry
from experiments.speedrun import common


def get_entry(folder: str | None = None) -> Entry:
    return Entry("cpu2-30min", "the start: post-norm, MLM and NSP, AdamW")


def get_config(folder: str | None = None) -> ConfigDict:
    """Returns the config with the corpus in a folder."""
    return common.start(folder)
