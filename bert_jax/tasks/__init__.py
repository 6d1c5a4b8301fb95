"""What is learned: examples to features, a head, a loss, metrics. One file a task family, one interface (`task.py`)."""

import importlib
from typing import Any

# A new task family is a file beside this one and a line here.
TASKS = {
    "pretraining": "bert_jax.tasks.pretraining.Pretraining",
    "classification": "bert_jax.tasks.classification.Classification",
    "tagging": "bert_jax.tasks.tagging.Tagging",
    "span_qa": "bert_jax.tasks.span_qa.SpanQA",
    "multiple_choice": "bert_jax.tasks.multiple_choice.MultipleChoice",
}


def task_class(name: str) -> Any:
    """Imported when it is asked for: the families need JAX, which takes a while."""
    module, attribute = TASKS[name].rsplit(".", 1)
    return getattr(importlib.import_module(module), attribute)
