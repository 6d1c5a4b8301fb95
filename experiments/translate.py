"""Translations, from pairs of sentences: two files whose lines belong together, or a table with two columns.

    python -m bert_jax.main --config=experiments/translate.py --workdir=runs/en-de \\
        --config.data.train=train.en+train.de --config.data.validation=val.en+val.de --config.data.test=test.en+test.de
"""

from ml_collections import ConfigDict

from experiments import finetune


def get_config() -> ConfigDict:
    config = finetune.get_config("seq2seq", "bleu")
    config.seq2seq.scores = "translation"
    config.data.text, config.data.label = "source", "target"
    config.data.tokenizer, config.data.vocab_size = "unigram", 8_000
    config.data.lowercase = False
    config.train.label_smoothing = 0.1
    config.train.batch_size = 128
    config.eval.batch_size = 128
    return config
