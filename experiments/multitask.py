"""Several tasks that share one encoder: SST-2, MRPC and STS-B of GLUE, or your own list.

    python -m bert_jax.main --config=experiments/multitask.py --config.init_from=ckpts/bert-base
    python -m bert_jax.main --config=experiments/multitask.py --config.init_from=ckpts/bert-base \\
        --config.tasks.sst2.data.train=mine.tsv --config.tasks.sst2.data.validation=dev.tsv --workdir=runs/mt
    python -m bert_jax.main --config=experiments/multitask.py --workdir=runs/mt --mode=predict --task_name=sst2 \\
        --input=new.tsv
    python -m bert_jax.main --config=experiments/classify.py --config.init_from=runs/mt --config.init_task=sst2 …

A task is an entry of `config.tasks`: its kind, and what of `data` and `head` differs from the run's. Copy this file and
change the list, or add a task on the command line: --config.tasks.NAME.task=tagging --config.tasks.NAME.data.train=…
Which task a batch is of: `multitask.sampling`. docs/several_tasks.md explains all of it.

The recipe is that of fine-tuning one task; an epoch is one of all tasks together. Hardware and time: as the tasks one
after another. Expect small sets to gain most (Liu et al. 2019, MT-DNN). Not run to its end with this code.
"""

from ml_collections import ConfigDict

from bert_jax.entries import add_entry
from experiments import finetune, glue

TASKS = ("sst2", "mrpc", "stsb")


def get_config() -> ConfigDict:
    """Returns the config; the best checkpoint is the one with the highest mean over the tasks."""
    config = finetune.get_config("multitask", "mean")
    for name in TASKS:
        alone = glue.get_config(name)
        own = {key: value for key, value in alone.data.items() if value != config.data[key]}
        add_entry(config, f"tasks.{name}", task=alone.task, data=own, metric=alone.checkpoint.best_metric)
    return config
