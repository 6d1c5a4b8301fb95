"""The state that training begins with: this workdir's, a warm start's, or a fresh one."""

import logging
from collections.abc import Mapping
from typing import Any

import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bert_jax.config import UserError, pattern
from bert_jax.tasks.task import Task
from bert_jax.training.checkpoint import choose_checkpoint, on_mesh, read_checkpoint
from bert_jax.training.parameters import Parameters, is_stacked, take_over
from bert_jax.training.saving import Checkpoints
from bert_jax.training.step import TrainState, init_state


def first_state(
    shapes: TrainState,
    task: Task,
    optimizer: optax.GradientTransformation,
    config: ConfigDict,
    checkpoints: Checkpoints,
    mesh: Mesh,
) -> tuple[TrainState, dict[str, Any] | None]:
    """Returns the state to begin with and, if it is a resumed one, the checkpoint's `run` item. It comes from

    1. the newest whole checkpoint of this workdir,
    2. `init_from`,
    3. random initialisation.
    """
    restored = checkpoints.restore_latest(shapes, mesh, task.tokenizer.content_hash)
    if restored is not None:
        state, run = restored
        logging.info("resuming %s at step %d", checkpoints.directory.parent, int(state.step))
        return state, run
    known = _warm_start(shapes.parameters, task, config, mesh) if config.init_from else {}
    return init_state(task, optimizer, config.seed, mesh, known), None


def _warm_start(shapes: Parameters, task: Task, config: ConfigDict, mesh: Mesh) -> Parameters:
    """Returns the parameters that are taken from `init_from`, on the mesh."""
    folder = choose_checkpoint(config.init_from)
    saved = read_checkpoint(folder, shardings=on_mesh(mesh))
    if saved.tokenizer.content_hash != task.tokenizer.content_hash:
        raise UserError(
            f"init_from: {folder} was trained with another vocabulary than this run's data has; "
            "prepare the data with its vocabulary (data.vocab_file)"
        )
    renewed = pattern("renewed_parameters", task.renewed_parameters or r"(?!)")
    source = {name: value for name, value in saved.parameters.items() if not renewed.search(name)}
    _, report = take_over(shapes, source, new=task.new_parameters, dropped=task.dropped_parameters, origin=str(folder))
    logging.info("warm start from %s: %s", folder, report)
    known = {name: source[name] for name in report.loaded}
    return _without_top_layers(known, config.train.reinitialise_layers)


def _without_top_layers(known: Mapping[str, Any], top: int) -> Parameters:
    """Leaves out the `top` layers and the pooler, which then start as initialised (Zhang et al. 2021, arXiv:2006.05987,
    section 4). Raises UserError if there are fewer layers."""
    if not top:
        return dict(known)
    stacked = [name for name in known if is_stacked(name)]
    depth = known[stacked[0]].shape[0]
    if top > depth:
        raise UserError(f"train.reinitialise_layers is {top}; the model has {depth} layers")
    kept = {name: x for name, x in known.items() if not name.startswith("pooler/")}
    if top == depth:
        return {name: x for name, x in kept.items() if name not in stacked}
    return {name: x[: depth - top] if name in stacked else x for name, x in kept.items()}
