"""Your own texts with one class each, or with another kind of label behind a colon.

    python -m bert_jax.main --config=experiments/classify.py --config.init_from=ckpts/bert-base \\
        --config.data.train=train.csv --config.data.validation=dev.csv \\
        --config.data.text=review --config.data.label=stars

`classify.py:multi` is for several labels per text (a column of labels joined by "|", or several columns of 0 and 1),
`classify.py:regression` for a number. CSV, TSV, JSONL, Parquet, plain or compressed. For pairs, `data.text_pair` names
the second column.

Hardware and time: MiniLM-L6 on 20,000 sentences takes minutes on two cores; BERT-base minutes on a GPU. Expect:
docs/RESULTS.md has measured examples.
"""

from ml_collections import ConfigDict

from bert_jax.config import choose
from experiments import finetune

METRICS = {"single": "accuracy", "multi": "micro_f1", "regression": "pearson"}


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config for labels of the kind `arg`: single, multi or regression."""
    kind = choose(arg, METRICS, "classify")
    config = finetune.get_config("classification", METRICS[kind])
    config.data.label_kind = kind
    return config
