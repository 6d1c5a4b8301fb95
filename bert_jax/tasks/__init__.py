"""What is learned: examples to features, a head, a loss, metrics. One file a task family, one interface (`task.py`)."""

import importlib
from typing import Any

from bert_jax.config import UserError

# A new task family is a file beside this one and a line here.
TASKS = {
    "pretraining": "bert_jax.tasks.pretraining.Pretraining",
    "classification": "bert_jax.tasks.classification.Classification",
    "tagging": "bert_jax.tasks.tagging.Tagging",
    "span_qa": "bert_jax.tasks.span_qa.SpanQA",
    "multiple_choice": "bert_jax.tasks.multiple_choice.MultipleChoice",
}


def task_class(name: str) -> Any:
    """Of a name in `TASKS`, or of a class of your own as "module.Class". Imported when it is asked for: the families
    need JAX, which takes a while. Raises UserError."""
    module, _, attribute = TASKS.get(name, name).rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"task is '{name}'; it can be {', '.join(TASKS)}, or the path of a class such as my_task.MyTask ({error})"
        ) from error
