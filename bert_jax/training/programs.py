"""The training steps of a config with everything that belongs to them: for the loop, and for whoever takes them again.

Each phase of a run has a program and batches of its own. Batches are counted through all phases, by updates and those
left out (`guard.py`), so that an update takes a batch that depends on its number alone.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import optax
from flax import nnx
from jaxtyping import Array, Key
from ml_collections import ConfigDict

from bert_jax.data.batching.reader import TrainBatches
from bert_jax.sharding import Mesh, make_mesh, place, to_mesh, tree_shardings
from bert_jax.tasks.task import Batch, Constants, Task
from bert_jax.training import step as steps
from bert_jax.training.memory import check_fits
from bert_jax.training.muon import matrices
from bert_jax.training.observer import Observer
from bert_jax.training.optimizer import frozen_names, learning_rate_multipliers, make_optimizer, make_schedule
from bert_jax.training.parameters import structure
from bert_jax.training.processes import SeveralParts, parts_of_batch


class PhaseSteps(NamedTuple):
    """The steps before number `end`: their task and their program, which is compiled when it is first launched."""

    end: int
    task: Task
    launch: steps.TrainStep


class Programs(NamedTuple):
    """The training steps, and what belongs to them."""

    mesh: Mesh
    graphdef: nnx.GraphDef
    optimizer: optax.GradientTransformation
    abstract: steps.TrainState  # shapes
    frozen: frozenset[str]
    constants: Constants
    key: Key[Array, ""]  # of the seed
    phases: tuple[PhaseSteps, ...]

    def phase(self, step: int) -> PhaseSteps:
        """Returns the phase of the step after `step` updates; steps after the last phase belong to it."""
        return next((phase for phase in self.phases if step < phase.end), self.phases[-1])

    def enter(self, step: int, number: int) -> tuple[PhaseSteps, TrainBatches]:
        """Returns the phase of the step after `step` updates, and this process's rows of its batches from `number`
        on."""
        phase = self.phase(step)
        numbers, count = parts_of_batch(self.mesh.rows())
        readers = [phase.task.train_batches(number, part, count) for part in numbers]
        return phase, readers[0] if len(readers) == 1 else SeveralParts(readers)

    def compile_ahead(self, step: int) -> Callable[[], None]:
        """Begins to compile the program of the step after about `step` updates, in a thread that reads a batch for its
        shapes, unless it was begun before. Returns a function that waits for it, without which no process may end."""
        launch = self.phase(step).launch
        if launch.ahead is not None:
            return launch.close
        # Opened here and not in the thread: while TFDS and Grain are imported, `import` gives every thread lazy modules
        # in place of what it asks for (etils.epy.lazy_imports), so no other thread may be at work.
        batches = self.enter(step, step)[1]

        def batch() -> Batch:
            try:
                return to_mesh(self.mesh, next(batches))
            finally:
                batches.close()

        shardings = tree_shardings(self.mesh, self.abstract)
        state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), self.abstract, shardings)
        launch.compile_ahead(batch, state, self.constants, self.key)
        return launch.close


def make_programs(task: Task, config: ConfigDict, watch: Observer) -> Programs:
    """Returns the training steps of a config. Raises UserError if they cannot fit the memory."""
    mesh = make_mesh(config.mesh)
    graphdef, shapes = structure(task.init)
    multipliers = learning_rate_multipliers(config.optimizer, {name: x.shape for name, x in shapes.items()})
    if config.optimizer.name == "muon":
        taken = matrices(config.optimizer, {name: x.shape for name, x in shapes.items()})
        logging.info("Muon takes %s; Adam the other %d parameters", ", ".join(taken), len(shapes) - len(taken))
    schedule = make_schedule(config.optimizer, config.train.steps)
    optimizer = make_optimizer(config.optimizer, schedule, multipliers, config.model.dtype)
    abstract = steps.abstract_state(task, optimizer)[1]
    phases = task.phases()
    for phase in phases:
        check_fits(phase.task, abstract, mesh)
    key, constants = jax.random.key(config.seed), place(mesh, task.constants())
    accumulation, frozen = config.train.accumulation, frozen_names(multipliers)
    make_step = partial(steps.make_train_step, accumulation=accumulation, frozen=frozen)
    made = (
        PhaseSteps(end, one, steps.TrainStep(make_step(one, graphdef, optimizer, schedule, mesh), mesh, watch))
        for end, one in phases
    )
    return Programs(mesh, graphdef, optimizer, abstract, frozen, constants, key, tuple(made))
