"""BERT-large (24 layers, 1024 wide, 336 M parameters) with the paper's recipe, at length 128.

    python -m bert_jax.main --config=experiments/large.py --config.data.corpus=text --config.data.files='corpus/*.txt'

Hardware and time: published on 64 TPU chips in 4 days. On few accelerators a step of 256 sequences wants to be taken
in parts, as here: `train.accumulation` micro-batches, and only the matrix products kept for the backward pass.
Expect: not trained with this code yet; the paper's figures after fine-tuning are GLUE 82.1 (test) and SQuAD 1.1 F1
90.9 (development set).
"""

from experiments import base


def get_config(arg=None):
    config = base.get_config(arg or "large")
    config.model.remat = "dots"
    config.train.accumulation = 4
    return config
