"""Evaluation of parameters on a split, and which metric of it makes a checkpoint the best."""

import difflib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from bert_jax.config import UserError
from bert_jax.sharding import Mesh, to_mesh
from bert_jax.tasks.task import LOWER_IS_BETTER, Constants, Description, Evaluation, HostSums, Task
from bert_jax.training.checkpoint import best_modes
from bert_jax.training.observer import EVALUATION, Observer
from bert_jax.training.parameters import Parameters
from bert_jax.training.processes import joined, parts_of_batch
from bert_jax.training.step import make_eval_step

Evaluate = Callable[[Parameters, str, Description], Evaluation]


def make_evaluation(
    task: Task,
    graphdef: nnx.GraphDef,
    config: ConfigDict,
    mesh: Mesh,
    constants: Constants,
    watch: Observer | None = None,
) -> Evaluate:
    """Returns a function of (parameters, split, the description that belongs to them) to the evaluation over every
    example of the split. Parameters and constants must be on the mesh. `watch` is told of every batch."""
    eval_step = make_eval_step(task, graphdef, config.eval.seed, mesh)
    watch = watch or Observer()
    runs_alone = mesh.backend.steps_in_flight == 1

    def evaluate(parameters: Parameters, split: str, description: Description) -> Evaluation:
        totals: HostSums | None = None
        kept = []
        for sums, rows in results(parameters, split):
            # float64 on the host: the sums of many batches outgrow float32
            sums = jax.tree.map(lambda x: np.asarray(x, np.float64), sums)
            before = totals or {}  # batches of one split may have different metrics
            added = {name: jax.tree.map(np.add, before[name], x) for name, x in sums.items() if name in before}
            totals = before | sums | added
            kept += [rows] if rows else []
        watch.pause(EVALUATION)  # the metrics of many examples take longer than a batch
        return Evaluation(split) if totals is None else task.evaluation(split, totals, kept, description)

    def results(parameters: Parameters, split: str) -> Iterator[Any]:
        """Yields what each batch gives, on the host, while the device works on the next one."""
        running = None
        numbers, count = parts_of_batch(mesh.rows())
        for parts in zip(*(task.eval_batches(split, number, count) for number in numbers), strict=True):
            placed = to_mesh(mesh, joined(parts))
            watch.before_evaluation_batch(placed)
            if runs_alone:  # two in flight would hold their temporary memory twice
                jax.block_until_ready(running)
            launched = eval_step(parameters, constants, placed)
            if running is not None:
                yield jax.device_get(running)
            running = launched
        if running is not None:
            yield jax.device_get(running)

    return evaluate


def check_best_metric(config: ConfigDict, task: Task) -> None:
    """Raises UserError if no evaluation of the task gives checkpoint.best_metric or a metric of checkpoint.also_best;
    warns of a mode that looks wrong."""
    names, modes = task.metric_names("validation"), best_modes(config.checkpoint)
    for wanted in modes if names else ():
        if wanted not in names:
            option = "best_metric" if wanted == config.checkpoint.best_metric else "also_best"
            near = ", ".join(difflib.get_close_matches(wanted, names, n=len(names), cutoff=0.0))
            raise UserError(f"checkpoint.{option} is '{wanted}'; of task={config.task} it can be {near}")
    name, mode = config.checkpoint.best_metric, config.checkpoint.best_mode
    right = "min" if name.endswith(LOWER_IS_BETTER) else "max"
    if names and mode != right:
        kind = {"min": "lowest", "max": "highest"}[mode]
        text = "checkpoint.best_mode is %s, so the best checkpoint is the one with the %s %s; usual is %s"
        logging.warning(text, mode, kind, name, right)
