"""One training step and one evaluation step, compiled once each."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Key

from bert_jax.tasks.task import Batch, Rows, Sums, Task
from bert_jax.training.optimizer import Schedule
from bert_jax.training.parameters import Parameters, flatten, unflatten
from bert_jax.training.sharding import tree_shardings

MASKING, DROPOUT = 0, 1  # what a key folded from (seed, step) is for


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a step changes. `step` counts finished updates."""

    step: Int[Array, ""]
    parameters: Parameters
    optimizer: Any


def abstract_state(task: Task, optimizer: optax.GradientTransformation) -> tuple[nnx.GraphDef, TrainState]:
    """The model without its parameters, and the shapes of a state."""
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: task.init(nnx.Rngs(params=0))))
    return graphdef, jax.eval_shape(partial(_fresh, task, optimizer), jax.random.key(0), {})


def init_state(
    task: Task, optimizer: optax.GradientTransformation, seed: int, mesh: Mesh, known: Parameters | None = None
) -> TrainState:
    """A fresh state, created where it will live: no device ever holds what it need not. Values of `known` parameters
    are taken over, and none are drawn for them."""
    init, arguments = partial(_fresh, task, optimizer), (jax.random.key(seed), known or {})
    shardings = tree_shardings(mesh, jax.eval_shape(init, *arguments))
    return jax.jit(init, out_shardings=shardings)(*arguments)


def make_train_step(
    task: Task,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    accumulation: int,
    frozen: Collection[str] = (),
) -> Callable[[TrainState, Batch, Key[Array, ""]], tuple[TrainState, Sums]]:
    """(state, global batch, key of the run's seed) → (state, sums of the metrics), with the old state's memory given to
    the new.

    All randomness is a function of (seed, step); the seed is no part of the program, which runs with other seeds share.
    Gradients of `accumulation` micro-batches are added up; because every objective is divided by the weight of the
    whole batch, their sum is the gradient of the whole batch. Of the `frozen` parameters none is computed.
    """

    def step(state: TrainState, batch: Batch, key: Key[Array, ""]) -> tuple[TrainState, Sums]:
        constants = task.constants()
        key = jax.random.fold_in(key, state.step)
        batch = task.features(batch, jax.random.fold_in(key, MASKING))
        weights = task.weights(batch)
        dropout_key = jax.random.fold_in(key, DROPOUT)

        def loss(parameters, micro_batch, key):
            parameters = {n: jax.lax.stop_gradient(x) if n in frozen else x for n, x in parameters.items()}
            sums = task.sums(unflatten(graphdef, parameters), micro_batch, key, constants)
            return sum(share * (sums[name][0] / weights[name]) for name, share in task.objectives.items()), sums

        grads, sums = _gradients(loss, state.parameters, batch, dropout_key, accumulation)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.parameters)
        parameters = cast(Parameters, optax.apply_updates(state.parameters, updates))
        one = jnp.float32(1)
        sums |= {"grad_norm": (optax.tree.norm(grads), one), "learning_rate": (schedule(state.step), one)}
        return TrainState(state.step + 1, parameters, optimizer_state), sums

    return jax.jit(step, donate_argnums=0, compiler_options=compiler_options())


def make_eval_step(
    task: Task, graphdef: nnx.GraphDef, seed: int, mesh: Mesh
) -> Callable[[Parameters, Batch], tuple[Sums, Rows]]:
    """(parameters, batch) → sums of the metrics, and what is kept of every row, on every process."""
    everywhere = NamedSharding(mesh, PartitionSpec())

    def step(parameters: Parameters, batch: Batch) -> tuple[Sums, Rows]:
        key = jax.random.fold_in(jax.random.key(seed), MASKING)
        sums, rows = task.evaluate(unflatten(graphdef, parameters), task.features(batch, key), task.constants())
        return sums, jax.lax.with_sharding_constraint(rows, everywhere)

    return jax.jit(step, compiler_options=compiler_options())


def compiler_options() -> dict[str, Any]:
    """On a CPU, LLVM's second and third level of optimisation take a quarter of the time to compile and gain nothing:
    the time of a step is in products, which come compiled."""
    return {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else {}


def _fresh(task: Task, optimizer: optax.GradientTransformation, key: Key[Array, ""], known: Parameters) -> TrainState:
    parameters = flatten(task.init(nnx.Rngs(params=key))) | known  # what `known` replaces is dead code
    return TrainState(jnp.int32(0), parameters, optimizer.init(parameters))


def _gradients(loss, parameters, batch, key, accumulation) -> tuple[Float[Array, "..."], Sums]:
    value_and_grad = jax.value_and_grad(loss, has_aux=True)
    if accumulation == 1:
        (_, sums), grads = value_and_grad(parameters, batch, key)
        return grads, sums
    # Micro-batch a takes groups a, a + A, a + 2A, …: each device's rows then split evenly, and none has to move. A
    # group has one row, or several that belong together (`data/batching/batches.py`).
    groups = min(x.shape[0] for x in jax.tree.leaves(batch))

    def split(x):
        parts = x.reshape(groups // accumulation, accumulation, x.shape[0] // groups, *x.shape[1:]).swapaxes(0, 1)
        return parts.reshape(accumulation, -1, *x.shape[1:])

    micro = jax.tree.map(split, batch)
    keys = jax.random.split(key, accumulation)
    add = lambda a, b: jax.tree.map(jnp.add, a, b)  # noqa: E731

    def body(total, inputs):
        (_, sums), grads = value_and_grad(parameters, *inputs)
        return add(total, (grads, sums)), None

    first = jax.tree.map(lambda x: x[0], (micro, keys))
    shapes = jax.eval_shape(lambda: value_and_grad(parameters, *first))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (shapes[1], shapes[0][1]))
    return jax.lax.scan(body, zeros, (micro, keys))[0]
