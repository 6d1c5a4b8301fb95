"""One training step and one evaluation step, compiled once per shape of a batch."""

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.stages import Wrapped
from jaxtyping import Array, Key, PyTree

from bert_jax.config import UserError
from bert_jax.heap import release_free_memory
from bert_jax.sharding import Mesh, as_placed, gathered, tree_shardings
from bert_jax.tasks.task import Batch, Constants, Rows, Sums, Task
from bert_jax.training.memory import check_program_fits
from bert_jax.training.observer import Observer
from bert_jax.training.optimizer import Schedule
from bert_jax.training.parameters import Parameters, flatten, global_norm, matching, structure, unflatten

MASKING, DROPOUT = 0, 1  # what a key folded from (seed, step) is for


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a step changes. `step` counts finished updates; `optimizer` is the state of an optax chain;
    `average` is the moving average of the parameters, None without `train.ema_decay`."""

    step: Array  # an integer
    parameters: Parameters
    optimizer: PyTree[Array]
    average: Parameters | None = None

    @property
    def learned(self) -> Parameters:
        """The parameters that are evaluated and used."""
        return self.parameters if self.average is None else self.average


def abstract_state(task: Task, optimizer: optax.GradientTransformation) -> tuple[nnx.GraphDef, TrainState]:
    """Returns the model without its parameters, and the shapes of a state."""
    return structure(task.init)[0], jax.eval_shape(partial(_fresh, task, optimizer), jax.random.key(0), {})


def init_state(
    task: Task, optimizer: optax.GradientTransformation, seed: int, mesh: Mesh, known: Parameters | None = None
) -> TrainState:
    """Returns a fresh state, created where it will live: no device ever holds what it need not. Values of `known`
    parameters, which must be on the mesh, are taken over; of stacked layers these may be the lower ones only."""
    init, arguments = partial(_fresh, task, optimizer), (jax.random.key(seed), known or {})
    return jax.jit(init, out_shardings=tree_shardings(mesh, jax.eval_shape(init, *arguments)))(*arguments)


def make_train_step(
    task: Task,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    mesh: Mesh,
    accumulation: int = 1,
    frozen: Collection[str] = (),
) -> Callable[[TrainState, Constants, Batch, Key[Array, ""]], tuple[TrainState, Sums]]:
    """Returns a jitted function of (state, constants, global batch, key of the run's seed) to (state, sums of the
    metrics), for the devices of `mesh`. The old state's memory is given to the new one, which is split alike.

    All randomness is a function of (seed, step). The seed is not part of the program, so that runs with other seeds
    share it. Gradients of `accumulation` micro-batches are added up; because every objective is divided by the weight
    of the whole batch, their sum is the gradient of the whole batch. For the `frozen` parameters no gradient is
    computed, and the optimizer does not see them.

    With `train.ema_decay` d an update, the t-th from 0, ends with average ← average + (1 − dₜ) (parameters − average),
    where dₜ = min(d, (1 + t) / (10 + t)): the average begins as the initial parameters, which it soon forgets.
    """
    decay = task.config.train.ema_decay

    def step(state: TrainState, constants: Constants, batch: Batch, key: Key[Array, ""]) -> tuple[TrainState, Sums]:
        key = jax.random.fold_in(key, state.step)
        batch = task.features(batch, jax.random.fold_in(key, MASKING))
        weights = task.weights(batch)
        dropout_key = jax.random.fold_in(key, DROPOUT)
        trained = {name: x for name, x in state.parameters.items() if name not in frozen}

        def loss(trained, micro_batch, key):
            parameters = gathered(mesh, state.parameters | trained)
            sums = task.sums(unflatten(graphdef, parameters), micro_batch, key, constants)
            return weighted_loss(task, sums, weights), sums

        grads, sums = _gradients(loss, trained, batch, dropout_key, accumulation, mesh)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, trained)
        parameters = state.parameters | cast(Parameters, optax.apply_updates(trained, updates))
        if idle := matching("idle_parameters", task.idle_parameters(batch), trained):
            parameters |= {name: state.parameters[name] for name in idle}
            optimizer_state = _with_old(optimizer_state, state.optimizer, idle)
        observed = {"grad_norm": global_norm(cast(Parameters, grads)), "learning_rate": schedule(state.step)}
        sums |= {name: (value, jnp.float32(1)) for name, value in observed.items()}
        average = None
        if state.average is not None:
            share = jnp.maximum(1 - decay, 9 / (10 + state.step))  # 1 − dₜ
            average = {name: x + share * (parameters[name] - x) for name, x in state.average.items()}
        return as_placed(mesh, TrainState(state.step + 1, parameters, optimizer_state, average)), sums

    return jax.jit(mesh.traced(step), donate_argnums=0, compiler_options=dict(mesh.backend.compiler_options))


def weighted_loss(task: Task, sums: Sums, weights: Mapping[str, Array]) -> Array:
    """Returns the loss of a batch, which may have some of the task's objectives only."""
    present = ((name, share) for name, share in task.objectives.items() if name in sums)
    return cast(Array, sum(share * (sums[name][0] / weights[name]) for name, share in present))


class TrainStep:
    """The training step as the loop launches it. It is compiled before the first batch of each shape, and no more than
    two steps are in flight."""

    def __init__(self, step: Callable[..., Any], mesh: Mesh, watch: Observer):
        self.step, self.mesh, self.watch = cast(Wrapped, step), mesh, watch
        # A CPU allocates temporary memory when a step is launched, not when it starts: two in flight would hold it
        # twice.
        self.runs_alone = mesh.backend.steps_in_flight == 1
        self.shapes: set[frozenset] = set()
        self.since_compiled = 0  # steps
        self.running: Sums = {}
        self.ahead: threading.Thread | None = None

    def compile_ahead(self, batch: Callable[[], Batch], state: TrainState, constants: Constants, key: Key[Array, ""]):
        """Begins to compile in a thread, for a state and a batch that may be shapes with shardings; the first launch
        waits for it. What goes wrong there shows at that launch, which compiles what is not there."""

        def compile_it() -> None:
            with contextlib.suppress(Exception):
                self.step.lower(state, constants, batch(), key).compile()

        self.ahead = threading.Thread(target=compile_it, name="compiler", daemon=True)
        self.ahead.start()

    def close(self) -> None:
        """Waits for the compiler."""
        if self.ahead is not None:
            self.ahead.join()

    def __call__(
        self, state: TrainState, constants: Constants, batch: Batch, key: Key[Array, ""]
    ) -> tuple[TrainState, Sums]:
        """Launches a step, which may still run when this returns; the step before it has ended then."""
        is_new = (shape := batch_shape(batch)) not in self.shapes
        if self.runs_alone or is_new:
            jax.block_until_ready(self.running)
        if is_new:
            start = time.perf_counter()
            if self.ahead is not None:
                self.watch.compiling()
                self.ahead.join()  # jax finds its program below
            lowered = self.step.lower(state, constants, batch, key)
            self.watch.compiling()
            program = lowered.compile()
            check_program_fits(program, self.mesh)
            self.watch.compiled(batch, program, time.perf_counter() - start)
            self.shapes.add(shape)
            self.since_compiled = 0
        # The heap gets holes when a program is compiled and while the first steps settle: these steps and every 64th
        # start without them. No more than these, since each has to get its memory from the kernel again.
        if self.runs_alone and (self.since_compiled in (0, 4, 16) or self.since_compiled % 64 == 0):
            release_free_memory()
        self.since_compiled += 1
        state, sums = self.step(state, constants, batch, key)  # finds the program that was compiled above
        jax.block_until_ready(self.running)
        self.running = sums
        return state, sums


def batch_shape(batch: Batch) -> frozenset:
    """Returns what a program is compiled for: names, shapes and dtypes of a batch."""
    return frozenset((name, x.shape, str(x.dtype)) for name, x in batch.items())


class Diverged(UserError):
    """A loss or a parameter that is not finite."""


def means(task: Task, sums: list[Sums], step: int) -> dict[str, float]:
    """Returns the metrics of several steps, the last of which is `step`; waits for it. Raises Diverged."""
    host = jax.device_get(sums)
    names = dict.fromkeys(name for one in host for name in one)  # steps may have different metrics
    added = {name: [one[name] for one in host if name in one] for name in names}
    totals = {name: jax.tree.map(lambda *x: np.sum(np.asarray(x, np.float64), axis=0), *x) for name, x in added.items()}
    metrics = task.means(totals)
    check_finite(metrics, step)
    return metrics


def check_finite(metrics: Mapping[str, float], step: int) -> None:
    """Raises Diverged if the loss is not finite."""
    if "loss" in metrics and not np.isfinite(metrics["loss"]):
        raise Diverged(f"the loss is {metrics['loss']} at step {step}")


def make_eval_step(
    task: Task, graphdef: nnx.GraphDef, seed: int, mesh: Mesh
) -> Callable[[Parameters, Constants, Batch], tuple[Sums, Rows]]:
    """Returns a jitted function of (parameters, constants, batch) to the sums of the metrics and what is kept of every
    row, on every process."""

    def step(parameters: Parameters, constants: Constants, batch: Batch) -> tuple[Sums, Rows]:
        key = jax.random.fold_in(jax.random.key(seed), MASKING)
        model = unflatten(graphdef, gathered(mesh, parameters))
        sums, rows = task.evaluate(model, task.features(batch, key), constants)
        return sums, jax.lax.with_sharding_constraint(rows, mesh.sharding())

    return jax.jit(mesh.traced(step), compiler_options=dict(mesh.backend.compiler_options))


def _fresh(task: Task, optimizer: optax.GradientTransformation, key: Key[Array, ""], known: Parameters) -> TrainState:
    parameters = flatten(task.init(nnx.Rngs(params=key)))
    for name, value in known.items():  # a drawn value that is replaced is dead code
        drawn = parameters[name]
        parameters[name] = value if value.shape == drawn.shape else drawn.at[: value.shape[0]].set(value)
    # A copy, because a step gives the memory of both away.
    average = jax.tree.map(jnp.copy, parameters) if task.config.train.ema_decay else None
    return TrainState(jnp.int32(0), parameters, optimizer.init(parameters), average)


def _with_old(new: PyTree[Array], old: PyTree[Array], names: Collection[str]) -> PyTree[Array]:
    """Returns the optimizer's new state with the old one of the parameters of these names."""

    def chosen(path, x, before):
        keys = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        return before if keys and keys[-1] in names else x

    return jax.tree_util.tree_map_with_path(chosen, new, old)


def _gradients(
    loss: Callable, parameters: Parameters, batch: Batch, key: Key[Array, ""], accumulation: int, mesh: Mesh
) -> tuple[Parameters, Sums]:
    def value_and_grad(*arguments):
        value, grads = jax.value_and_grad(loss, has_aux=True)(*arguments)
        return value, as_placed(mesh, grads)

    if accumulation == 1:
        (_, sums), grads = value_and_grad(parameters, batch, key)
        return grads, sums
    # Micro-batch a takes groups a, a + A, a + 2A, …: each device's rows then split evenly, and none has to move. A
    # group has one row, or several that belong together (`data/batching/batches.py`).
    groups = min(x.shape[0] for x in jax.tree.leaves(batch))

    def split(x):
        parts = x.reshape(groups // accumulation, accumulation, x.shape[0] // groups, *x.shape[1:]).swapaxes(0, 1)
        return parts.reshape(accumulation, -1, *x.shape[1:])

    micro, keys = jax.tree.map(split, batch), jax.random.split(key, accumulation)

    def body(total, inputs):
        (_, sums), grads = value_and_grad(parameters, *inputs)
        return jax.tree.map(jnp.add, total, (grads, sums)), None

    first = jax.tree.map(lambda x: x[0], (micro, keys))
    (_, sums), grads = jax.eval_shape(lambda: value_and_grad(parameters, *first))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (grads, sums))
    return jax.lax.scan(body, zeros, (micro, keys))[0]
