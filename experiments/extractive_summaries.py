"""Extractive summaries: the sentences of a document that stand for it.

    python -m bert_jax.main --config=experiments/extractive_summaries.py --config.init_from=ckpts/bert-base \\
        --config.data.train=train.jsonl --config.data.validation=dev.jsonl

A row has `document`, a text or a list of sentences, and `summary`: a text, a list of sentences, or the numbers of
sentences of the document, from 0. Summaries that copy sentences are recognised; for others an oracle finds the
sentences to learn. `config.extractive` says how long a summary is.
"""

from ml_collections import ConfigDict

from experiments import finetune


def get_config() -> ConfigDict:
    config = finetune.get_config("extractive", "rouge2")
    config.data.text, config.data.label = "document", "summary"
    config.data.sequence_length = 512
    config.data.long_texts = "windows"
    return config
