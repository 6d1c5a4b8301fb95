"""What is learned: examples to features, heads, a loss, metrics. One file per family, one interface (`task.py`)."""

import importlib
from typing import TYPE_CHECKING

from bert_jax.config import UserError
from bert_jax.entries import entries

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from bert_jax.tasks.task import Task

# A new task family is a file beside this one and a line here.
TASKS = {
    "pretraining": "bert_jax.tasks.pretraining.Pretraining",
    "classification": "bert_jax.tasks.classification.Classification",
    "tagging": "bert_jax.tasks.tagging.Tagging",
    "span_qa": "bert_jax.tasks.span_qa.SpanQA",
    "multiple_choice": "bert_jax.tasks.multiple_choice.MultipleChoice",
    "seq2seq": "bert_jax.tasks.seq2seq.Seq2Seq",
    "extractive": "bert_jax.tasks.extractive.Extractive",
    "multitask": "bert_jax.tasks.multitask.MultiTask",
    "visual_pretraining": "bert_jax.tasks.visual_pretraining.VisualPretraining",
}


def task_class(name: str) -> "type[Task]":
    """Returns the class of a name in `TASKS`, or a user's own class given as "module.Class".

    `name` must come from the user (config file or flag), because its module is imported; `known_task` is for names in
    files. The import happens here and not at the top, since the families need JAX, which takes a while to import.
    Raises UserError.
    """
    module, _, attribute = TASKS.get(name, name).rpartition(".")
    if name in TASKS:
        return getattr(importlib.import_module(module), attribute)
    known = f"it can be {', '.join(TASKS)}, or the path of a class such as my_task.MyTask"
    if not module:
        raise UserError(f"task is '{name}'; {known}")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # the module is the user's: it may raise anything
        raise UserError(
            f"task is '{name}', which cannot be loaded ({type(error).__name__}: {error}); {known}"
        ) from error
    if not isinstance(found, type):
        raise UserError(f"task is '{name}', which is not a class; {known}")
    return found


def may_import(config: "ConfigDict", users_task: str) -> bool:
    """Returns whether the classes of the tasks that a saved config names may be imported, which executes their modules:
    one outside `TASKS` only if the user's own config names it too."""
    return not _foreign(config, users_task)


def known_task(config: "ConfigDict", users_task: str, origin: str) -> "type[Task]":
    """Returns the class of the task that a saved config names. Raises UserError if it, or that of one of several tasks,
    may not be imported; `origin` is the checkpoint."""
    if foreign := _foreign(config, users_task):
        raise UserError(
            f"{origin}: its task is the class '{foreign[0]}', which is code outside bert_jax; "
            f"if you trust it, name it yourself: --config.task={foreign[0]}"
        )
    return task_class(config.task)


def named_tasks(config: "ConfigDict") -> list[str]:
    """Returns the task of a config, and those that it consists of."""
    return [config.task, *(str(entry.get("task", "")) for entry in entries(config, "tasks").values())]


def _foreign(config: "ConfigDict", users_task: str) -> list[str]:
    return [name for name in named_tasks(config) if name not in TASKS and name != users_task]
