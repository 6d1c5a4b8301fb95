"""The nine tasks of GLUE (Wang et al. 2018); the name behind the colon chooses one.

    python -m bert_jax.main --config=experiments/glue.py:sst2 --config.init_from=ckpts/bert-base
    python -m bert_jax.main --config=experiments/glue.py:mrpc --config.init_from=ckpts/bert-base --config.seeds=5

By default the data comes from TFDS, which downloads it once. Files of your own: `--config.data.train=…`,
`--config.data.validation=…`, and `data.text`, `data.text_pair`, `data.label` if their columns have other names (numbers
for files without a header, such as CoLA's).

Recipe: batches of 32, three epochs, the learning rate the best of 5e-5, 4e-5, 3e-5, 2e-5 on validation; ten epochs for
RTE and STS-B as in ELECTRA. Hardware and time: BERT-base on one 16 GB GPU, from minutes (RTE) to hours (MNLI). Expect
on the development sets for BERT-base (google-research/bert and the Flax examples, five seeds): CoLA 59.0 MCC,
SST-2 92.2, MRPC 89.0 F1 / 84.4, STS-B 88.9 Pearson, QQP 90.8 / 87.5 F1, MNLI 83.8, QNLI 90.8, RTE 64.8, WNLI 37–56 %.
"""

from ml_collections import ConfigDict

from bert_jax.config import choose
from experiments import finetune

# Columns of TFDS: the text, the second one; the metric; the labels by number (the second is the one F1 is of).
TASKS = {
    "cola": ("sentence", "", "mcc", "unacceptable,acceptable"),
    "sst2": ("sentence", "", "accuracy", "negative,positive"),
    "mrpc": ("sentence1", "sentence2", "f1", "not_equivalent,equivalent"),
    "stsb": ("sentence1", "sentence2", "pearson", ""),
    "qqp": ("question1", "question2", "accuracy", "not_duplicate,duplicate"),
    "mnli": ("premise", "hypothesis", "accuracy", "entailment,neutral,contradiction"),
    "qnli": ("question", "sentence", "accuracy", "entailment,not_entailment"),
    "rte": ("sentence1", "sentence2", "accuracy", "entailment,not_entailment"),
    "wnli": ("sentence1", "sentence2", "accuracy", "not_entailment,entailment"),
}


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config for the task `arg`, a key of TASKS."""
    name = choose(arg or "sst2", TASKS, "glue")
    text, text_pair, metric, labels = TASKS[name]
    config = finetune.get_config("classification", metric)
    config.data.train = f"tfds:glue/{name}@train"
    config.data.validation = f"tfds:glue/{name}@validation" + ("_matched" if name == "mnli" else "")
    config.data.test = f"tfds:glue/{name}@validation_mismatched" if name == "mnli" else ""
    config.data.text, config.data.text_pair = text, text_pair
    config.data.labels = labels
    if name == "stsb":
        config.data.label_kind = "regression"
    if name in ("stsb", "rte"):
        config.train.epochs = 10.0
    return config
