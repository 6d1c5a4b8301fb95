"""How the study of several tasks fine-tunes one small BERT on all of them; the folder of the data is behind the colon.

    python -m bert_jax.main --config=experiments/study_multitask.py:study_data --config.init_from=runs/small

`benchmarks/study_data.py` makes the folder. Each task is as in study_finetuning.py; the learning rate is between the
two that it has for classes and for tags.
"""

from pathlib import Path

from ml_collections import ConfigDict

from bert_jax.entries import add_entry
from experiments import finetune, study_finetuning

TASKS = ("mrpc", "sst2_5000", "sts", "trec", "wnut17")


def get_config(arg: str = "study_data") -> ConfigDict:
    """Returns the config of TASKS, with the data in the folder `arg`."""
    config = finetune.get_config("multitask", "mean")
    config.model.pooling, config.model.dtype = "mean", "float32"
    config.data.sequence_length = 64
    config.optimizer.learning_rate = 1e-3
    config.eval.batch_size = 64
    for name in TASKS:
        alone = study_finetuning.get_config(str(Path(arg) / name))
        own = {key: value for key, value in alone.data.items() if value != config.data[key]}
        train = {"class_weights": alone.train.class_weights}
        metric = alone.checkpoint.best_metric
        add_entry(config, f"tasks.{name}", task=alone.task, data=own, train=train, metric=metric)
    return config
