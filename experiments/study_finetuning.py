"""How the studies fine-tune their small BERTs: the folder of a task stands behind the colon.

    python -m bert_jax.main --config=experiments/study_finetuning.py:study_data/trec --config.init_from=runs/small

`benchmarks/study_data.py` makes the folders. The vector of a text is the mean of its tokens, also where there was no
next sentence prediction to train [CLS]; in a left-to-right model [CLS] sees nothing.
"""

from pathlib import Path

from ml_collections import ConfigDict

from bert_jax.config import choose
from experiments import finetune

# Family, the metric of the best checkpoint, epochs
TASKS = {
    "sst2_500": ("classification", "accuracy", 8.0),
    "sst2_5000": ("classification", "accuracy", 3.0),
    "mrpc": ("classification", "accuracy", 3.0),
    "trec": ("classification", "accuracy", 3.0),
    "sts": ("classification", "pearson", 3.0),
    "wnut17": ("tagging", "entity_f1", 4.0),
    "bbc_100": ("classification", "accuracy", 20.0),
    "bbc_500": ("classification", "accuracy", 6.0),
}


def get_config(arg: str = "study_data/sst2_500") -> ConfigDict:
    """Returns the config of the task in the folder `arg`, whose last name is one of TASKS."""
    name = choose(Path(arg).name, TASKS, "study_finetuning")
    family, metric, epochs = TASKS[name]
    config = finetune.get_config(family, metric)
    config.model.pooling = "mean"
    config.model.dtype = "float32"  # as in study_pretraining.py
    for split in ("train", "validation", "test"):
        config.data[split] = str(Path(arg) / f"{split}.jsonl")
    config.data.sequence_length = 64
    if family == "tagging":
        config.data.text, config.data.label, config.data.long_texts = "words", "tags", "windows"
        config.train.class_weights = "balanced"  # else such small models find no entity at all
        config.data.labels = "corporation,creative-work,group,location,person,product"
    if name in ("mrpc", "sts"):
        config.data.text_pair = "text_pair"
    if name == "sts":
        config.data.label_kind = "regression"
    config.optimizer.learning_rate = 2e-3 if family == "tagging" else 5e-4
    config.train.epochs = epochs
    config.eval.batch_size = 64
    return config
