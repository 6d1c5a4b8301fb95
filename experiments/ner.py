"""Tags of words: named entities and chunks, or with `:plain` tags that are not entities, such as parts of speech.

    python -m bert_jax.main --config=experiments/ner.py --config.init_from=ckpts/bert-base-cased \\
        --config.data.train=train.conll --config.data.validation=dev.conll --config.data.test=test.conll
    python -m bert_jax.main --config=experiments/ner.py:plain --config.data.label=1 …

CoNLL columns: `data.text` and `data.label` are their numbers, -1 the last one. Tags may be BIO, IOB1, BIOES, BILOU or
BMES; scores and predictions are BIO. JSONL and Parquet with lists of words and tags, or a text and its spans as in
CLUENER, have names there: --config.data.text=text --config.data.label=label. Sentences over `data.sequence_length`
become overlapping windows, so every word is scored. A type of entity that only validation or test has is an error,
unless `data.labels` names all types. Where tags are numbers it lists all tags in their order: O,B-PER,I-PER.

Hardware and time: BERT-base on CoNLL-2003 needs a GPU of 16 GB and has not been timed with this code; an epoch of
WNUT 2017 with MiniLM takes 2 minutes on two cores, compilation and evaluation included. Expect entity F1 on the
CoNLL-2003 test set: BERT-base 92.4 in the paper (cased, document context, mean of five runs), 91.2 to 91.7 in
replications with one sentence per row, as here. Small models need learning rates of 1e-4 to 3e-4.
"""

from ml_collections import ConfigDict

from bert_jax.config import choose
from experiments import finetune

METRICS = {"entities": "entity_f1", "plain": "accuracy"}


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config for tags of the kind `arg`: entities or plain."""
    kind = choose(arg, METRICS, "ner")
    config = finetune.get_config("tagging", METRICS[kind])
    config.data.text, config.data.label = "0", "-1"
    config.data.long_texts = "windows"
    return config
