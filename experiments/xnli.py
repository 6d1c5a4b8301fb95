"""XNLI (Conneau et al. 2018): inference in 15 languages, trained on English or on translations of it.

    awk -F'\\t' 'NR == 1 || $1 != "-"' multinli_1.0_train.txt > train.en.tsv
    python -m bert_jax.main --config=experiments/xnli.py --config.init_from=ckpts/bert-base-multilingual-cased \\
        --config.data.train=train.en.tsv --config.data.validation=xnli.dev.tsv --config.data.test=xnli.test.tsv

`xnli.dev.tsv` and `xnli.test.tsv` hold all languages, which their column `language` tells apart: the report and the
metrics have a line for each, as `de/accuracy`, and their mean. The best checkpoint is chosen on English alone, as
zero-shot means.

`:translate_train` is for training data in several languages. Those of XNLI-MT have other names of columns:

    for l in en de fr; do
        sed '1s/.*/sentence1\\tsentence2\\tgold_label/; s/\\tcontradictory$/\\tcontradiction/' \\
            multinli.train.$l.tsv > train.$l.tsv
    done
    python -m bert_jax.main --config=experiments/xnli.py:translate_train --config.init_from=… \\
        --config.data.train=en=train.en.tsv,de=train.de.tsv,fr=train.fr.tsv …

Hardware and time: a GPU of 16 GB; not run with this code yet. Expect of multilingual BERT (base), as published with it:
zero-shot en 81.4, de 70.5, zh 63.8 accuracy on test (uncased); translate-train de 75.9, zh 76.6 (cased).
"""

from ml_collections import ConfigDict

from bert_jax.config import choose
from experiments import finetune

BEST = {"zero_shot": "en/accuracy", "translate_train": "mean/accuracy"}


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config for the setting `arg`: zero_shot or translate_train."""
    config = finetune.get_config("classification", BEST[choose(arg, BEST, "xnli")])
    config.data.text, config.data.text_pair, config.data.label = "sentence1", "sentence2", "gold_label"
    config.data.language = "language"
    config.data.labels = "contradiction,entailment,neutral"
    config.data.lowercase = False
    config.train.epochs = 3.0
    return config
