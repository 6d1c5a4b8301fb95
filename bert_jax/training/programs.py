"""The training step of a config with everything that belongs to it: for the loop, and for whoever takes steps again."""

import logging
from typing import NamedTuple

import jax
import optax
from flax import nnx
from jaxtyping import Array, Key
from ml_collections import ConfigDict

from bert_jax.sharding import Mesh, make_mesh, place
from bert_jax.tasks.task import Constants, Task
from bert_jax.training import step as steps
from bert_jax.training.memory import check_fits
from bert_jax.training.muon import matrices
from bert_jax.training.observer import Observer
from bert_jax.training.optimizer import frozen_names, learning_rate_multipliers, make_optimizer, make_schedule
from bert_jax.training.parameters import structure


class Programs(NamedTuple):
    """The training step, and what belongs to it."""

    mesh: Mesh
    graphdef: nnx.GraphDef
    optimizer: optax.GradientTransformation
    abstract: steps.TrainState  # shapes
    frozen: frozenset[str]
    constants: Constants
    key: Key[Array, ""]  # of the seed
    launch: steps.TrainStep


def make_programs(task: Task, config: ConfigDict, watch: Observer) -> Programs:
    """Returns the training step of a config, which is compiled when it is first launched. Raises UserError if it cannot
    fit the memory."""
    mesh = make_mesh(config.mesh)
    graphdef, shapes = structure(task.init)
    multipliers = learning_rate_multipliers(config.optimizer, {name: x.shape for name, x in shapes.items()})
    if config.optimizer.name == "muon":
        taken = matrices(config.optimizer, {name: x.shape for name, x in shapes.items()})
        logging.info("Muon takes %s; Adam the other %d parameters", ", ".join(taken), len(shapes) - len(taken))
    schedule = make_schedule(config.optimizer, config.train.steps)
    optimizer = make_optimizer(config.optimizer, schedule, multipliers, config.model.dtype)
    abstract = steps.abstract_state(task, optimizer)[1]
    check_fits(task, abstract, mesh)
    key, constants = jax.random.key(config.seed), place(mesh, task.constants())
    accumulation, frozen = config.train.accumulation, frozen_names(multipliers)
    train_step = steps.make_train_step(task, graphdef, optimizer, schedule, mesh, accumulation, frozen)
    launch = steps.TrainStep(train_step, mesh, watch)
    return Programs(mesh, graphdef, optimizer, abstract, frozen, constants, key, launch)
