"""BERT-large (24 layers, 1024 wide, 336 M parameters) with the paper's recipe, at length 128.

    python -m bert_jax.main --config=experiments/large.py --config.data.corpus=text --config.data.files='corpus/*.txt'

Hardware and time: published on 64 TPU chips in 4 days. On few accelerators a step of 256 sequences has to be
split, as here: `train.accumulation` micro-batches, and the backward pass keeps the matrix products only. Expect: not
trained with this code yet; the paper reports GLUE 82.1 (test) and SQuAD 1.1 F1 90.9 (development set) after
fine-tuning.
"""

from ml_collections import ConfigDict

from experiments import base


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config with the model size `arg`."""
    config = base.get_config(arg or "large")
    config.model.remat = "dots"
    config.train.accumulation = 4
    return config
