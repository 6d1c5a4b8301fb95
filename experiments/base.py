"""BERT-base with the recipe of the paper: every option at its default.

    python -m bert_jax.main --config=experiments/base.py

Devlin et al. (arXiv:1810.04805, appendix A.2): 256 sequences per step, Adam at 1e-4 with 10,000 steps of warm-up and
linear decay over 1,000,000 steps; the first 90 % of the steps at length 128 (this file), the rest at length 512
(`phase2_512.py`). Another size stands behind a colon: tiny, mini, small, medium, base, large (`base.py:small`).

Hardware and time: published on 16 TPU chips, 4 days. Expect: not trained to its end with this code yet; the paper
reports GLUE 79.6 (test) and SQuAD 1.1 F1 88.5 (development set) after fine-tuning. Without options it runs on the
built-in sample of 7 MB: a trial, not a BERT.

Every option is declared in `bert_jax/options.py`, with its default, its range and its meaning; docs/options.md is the
same as a table. The other experiments start from these defaults and change a few of them. The config is locked, so that
a misspelt key is an error; `--config.train.steps=1000` changes an option for one run.
"""

from ml_collections import ConfigDict

from bert_jax.options import default_config


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the defaults with the model size `arg`."""
    config = default_config()
    if arg:
        config.model.size = arg
    return config
