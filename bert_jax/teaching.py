"""The task of a run with its data, and with the teacher that the options distillation.* name."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import cast

import jax
from jaxtyping import Array
from ml_collections import ConfigDict

from bert_jax.config import UserError
from bert_jax.inference.open import Opened, open_model
from bert_jax.models.bert import Model
from bert_jax.sharding import current, gathered, make_mesh
from bert_jax.tasks import task_class
from bert_jax.tasks.distillation import Distillation, Teacher, forward_flops
from bert_jax.tasks.task import Source, Task
from bert_jax.tasks.teacher_cache import TeacherCache, TeachersLogits, about
from bert_jax.training.parameters import unflatten


def trained_task(config: ConfigDict, source: Source | None) -> Task:
    """Returns the task of a run with its data, and with its teacher if it has one. Raises UserError."""
    task = task_class(config.task).with_data(config, source)
    if not config.distillation.teacher:
        return task
    opened = _teacher(config.distillation.teacher)
    graphdef, parameters = opened.fit(opened.task.init, absent="^(pooler|heads)/", dropped="^heads/")

    def model(parameters: Mapping[str, Array]) -> Model:
        mesh = current()
        return unflatten(graphdef, dict(parameters) if mesh is None else gathered(mesh, parameters))

    lacking = tuple(name for name in parameters if name not in opened.parameters)
    teacher = Teacher(opened.task, parameters, model, str(opened.path), lacking)
    distillation = Distillation(task, teacher)  # refuses a teacher before a cache is made for it
    if config.distillation.cache:
        if jax.process_count() > 1:
            raise UserError(f"distillation.cache is for one process, here are {jax.process_count()}: leave it out")
        mesh = make_mesh(config.mesh)
        logits = TeachersLogits(opened.task, model, parameters, mesh)
        cache = TeacherCache(Path(config.distillation.cache), about(opened.task, parameters, mesh), logits)
        distillation = Distillation(task, teacher, cache)
    return cast(Task, distillation)


def flops_of_teacher(config: ConfigDict, task: Task) -> float:
    """Returns the floating-point operations of the teacher that the config names, if any, for a step of the task."""
    return (
        forward_flops(_teacher(config.distillation.teacher).bert_config, task) if config.distillation.teacher else 0.0
    )


def source_of_teacher(config: ConfigDict) -> Source | None:
    """Returns what a student from scratch takes from its teacher: the vocabulary, unless data.vocab_file gives it, and
    with it the names of labels."""
    if not config.distillation.teacher or config.data.vocab_file:
        return None
    opened = _teacher(config.distillation.teacher)
    return Source(opened.tokenizer, opened.config.task, opened.run["task"])


@lru_cache(maxsize=1)
def _teacher(path: str) -> Opened:
    return open_model(path)
