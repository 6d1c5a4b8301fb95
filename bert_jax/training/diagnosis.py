"""Where the first number that is not finite arises in a training step: the step is computed once more, with flags."""

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Key

from bert_jax.models.bert import Model, TrunkInputs
from bert_jax.models.encoder import Layer
from bert_jax.models.layers import dropout_seeds
from bert_jax.models.patches import trunk_inputs
from bert_jax.sharding import Mesh, gathered
from bert_jax.tasks.task import Batch, Constants, Task
from bert_jax.training.checkpoint_format import not_finite
from bert_jax.training.parameters import Parameters, is_stacked, unflatten
from bert_jax.training.step import DROPOUT, MASKING, TrainState, weighted_loss

Flags = dict[str, Bool[Array, ""]]  # what it is → whether it is finite

# From the loss to the input, the order in which gradients are computed: parts of a model, and of its layers.
_ROOMS = ("heads", "pooler", "encoder", "embeddings")
_BACKWARDS = ("output_layer_norm", "output", "intermediate", "gate", "attention_layer_norm", "attention")


def first_not_finite(
    task: Task,
    graphdef: nnx.GraphDef,
    constants: Constants,
    key: Key[Array, ""],
    mesh: Mesh,
    frozen: Collection[str],
    state: TrainState,
    batch: Batch,
) -> str:
    """Returns a sentence that says where the step from `state` on `batch` first has a number that is not finite: a
    parameter, the input, the embeddings, a layer, the loss, or the gradient of a parameter. `key` is of the run's seed.
    """
    if names := not_finite(state.parameters):
        return f"the parameter {names[0]} is not finite before the step"
    examined = mesh.traced(partial(_flags, task, graphdef, frozen, mesh))
    for part in range(task.config.train.accumulation):
        flags = jax.device_get(jax.jit(examined, static_argnums=0)(part, state, constants, batch, key))
        where = f" (micro-batch {part + 1})" if task.config.train.accumulation > 1 else ""
        for stage in flags:
            for name, is_good in _in_order(stage).items():
                if not is_good:
                    return f"the first number that is not finite arises in {name}{where}"
    return (
        "every number is finite when the step is repeated: the fault was the machine's; "
        "--mode=doctor --replay=10 checks whether it computes the same bits twice"
    )


def _flags(
    task: Task,
    graphdef: nnx.GraphDef,
    frozen: Collection[str],
    mesh: Mesh,
    part: int,
    state: TrainState,
    constants: Constants,
    batch: Batch,
    key: Key[Array, ""],
) -> list[Flags]:
    """Returns the flags of the stages of a step on one of its micro-batches, with the masks and dropout of the step."""
    accumulation = task.config.train.accumulation
    key = jax.random.fold_in(key, state.step)
    batch = task.features(batch, jax.random.fold_in(key, MASKING))
    weights = task.weights(batch)
    key = jax.random.fold_in(key, DROPOUT)
    if accumulation > 1:  # the same rows and keys as in `step.py`
        key = jax.random.split(key, accumulation)[part]
        groups = min(x.shape[0] for x in jax.tree.leaves(batch))
        batch = {
            name: x.reshape(groups, -1, *x.shape[1:])[part::accumulation].reshape(-1, *x.shape[1:])
            for name, x in batch.items()
        }

    def loss(trained: Parameters) -> tuple[Array, Any]:
        parameters = gathered(mesh, state.parameters | trained)
        sums = task.sums(unflatten(graphdef, parameters), batch, key, constants)
        return weighted_loss(task, sums, weights), sums

    trained = {name: x for name, x in state.parameters.items() if name not in frozen}
    (_, sums), gradients = jax.value_and_grad(loss, has_aux=True)(trained)
    losses = {f"the head or its loss ({name})": _is_finite(sums[name][0]) for name in task.objectives if name in sums}
    return [
        _input_flags(task, batch),
        _trunk_flags(unflatten(graphdef, gathered(mesh, state.parameters)), batch, key),
        losses,
        _gradient_flags(gradients),
    ]


def _input_flags(task: Task, batch: Batch) -> Flags:
    flags = {f"the input ({name})": _is_finite(x) for name, x in batch.items() if jnp.issubdtype(x.dtype, jnp.floating)}
    if "input_ids" in batch:
        ids = batch["input_ids"]
        flags["the input (input_ids are not in the vocabulary)"] = jnp.all(
            (ids >= 0) & (ids < task.tokenizer.vocab_size)
        )
    return flags


def _trunk_flags(model: object, batch: Batch, key: Key[Array, ""]) -> Flags:
    """Returns none for a task of the user's own whose model or batch is of another kind."""
    if not isinstance(model, Model) or not {*TrunkInputs._fields[:4]} <= batch.keys():
        return {}
    trunk, inputs = model.trunk, trunk_inputs(model, batch)
    seeds = dropout_seeds(key, 1 + Layer.DROPOUTS * trunk.config.num_hidden_layers)
    words = trunk.embeddings.word(batch["input_ids"])
    seed = None if seeds is None else seeds[0]
    types, positions, languages = inputs.token_type_ids, inputs.position_ids, inputs.language_ids
    embedded = trunk.embeddings(words, types, positions, language_ids=languages, seed=seed, given=inputs.given)
    layers = trunk.encode(inputs, key=key, all_layers=True).layers or []
    outputs = {f"layer {i} (of 0 to {len(layers) - 1})": _is_finite(x) for i, x in enumerate(layers)}
    return {"the embeddings": _is_finite(embedded)} | outputs


def _gradient_flags(gradients: Parameters) -> Flags:
    flags: Flags = {}
    for name, x in gradients.items():
        for i in range(x.shape[0]) if is_stacked(name) else ():
            flags[f"the gradient of {name}, layer {i}"] = _is_finite(x[i])
        if not is_stacked(name):
            flags[f"the gradient of {name}"] = _is_finite(x)
    return flags


def _in_order(flags: Mapping[str, object]) -> dict[str, Any]:
    """Returns the flags of a stage in the order in which they are computed (a program returns a dict sorted by name):
    layers from the first to the last, gradients from the heads down to the embeddings."""

    def rank(text: str) -> tuple[int, int, int]:
        if text.startswith("layer "):
            return 1, int(text.split()[1]), 0
        if not text.startswith("the gradient of "):
            return 0, 0, 0
        name, _, layer = text.removeprefix("the gradient of ").partition(", layer ")
        parts = name.split("/")
        room = _ROOMS.index(parts[0]) if parts[0] in _ROOMS else 0
        inside = _BACKWARDS.index(parts[2]) if layer and parts[2] in _BACKWARDS else 0
        return room, -int(layer or 0), inside

    return {name: flags[name] for name in sorted(flags, key=rank)}


def _is_finite(x: Array) -> Bool[Array, ""]:
    return jnp.isfinite(x).all()
