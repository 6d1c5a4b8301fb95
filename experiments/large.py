"""BERT-large with the paper's recipe (24 layers, 1024 wide, 336 M parameters).

    python -m bert_jax.main --config=experiments/large.py --config.data.corpus=text --config.data.files='corpus/*.txt'

Published on 64 TPU chips: 4 days. On one 80 GB card a step of 256 sequences wants accumulation, as here.
"""

from experiments import base


def get_config(arg=None):
    config = base.get_config(arg or "large")
    config.model.remat = "dots"
    config.train.accumulation = 4
    return config
