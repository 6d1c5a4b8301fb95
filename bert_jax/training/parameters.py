"""Parameters as a flat dict {name: array}: as they are trained, saved, matched by rules and converted.

A parameter of the trunk is called as in the trunk (`encoder/layers/attention/query/kernel`), one of a head
`heads/<name>/…`. Layers are stacked along the first axis of their parameters.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from bert_jax.config import UserError
from bert_jax.models.bert import Model

Parameters = dict[str, Array]
_TRUNK, _HEADS = "trunk/", "heads/"
_TRUNK_PARTS = ("embeddings/", "encoder/", "pooler/")


LAYERS = "encoder/layers/"


def is_stacked(name: str) -> bool:
    """Returns True for a parameter, or its optimizer state, that has one slice per layer along its first axis."""
    return name.startswith(LAYERS)


def flatten(model: nnx.Module) -> Parameters:
    """Returns the parameters by name: attribute paths joined by "/", of a trunk without `trunk`."""
    _, state = nnx.split(model)
    return {"/".join(map(str, path)).removeprefix(_TRUNK): x.get_value() for path, x in nnx.to_flat_state(state)}


def unflatten(graphdef: nnx.GraphDef, parameters: Parameters) -> Model:
    """Returns the model with these parameters; `graphdef` comes from `nnx.split` of one like it."""
    paths = {name: name if name.startswith(_HEADS) else _TRUNK + name for name in parameters}
    flat = [(tuple(paths[name].split("/")), nnx.Param(value)) for name, value in parameters.items()]
    return nnx.merge(graphdef, nnx.from_flat_state(flat))


def name_of_format_1(name: str) -> str:
    """Returns what checkpoints without a `format` call a parameter: their heads stood beside the trunk."""
    return name.removeprefix(_HEADS)


def name_since_format_2(name: str) -> str:
    """Returns today's name for one of either format."""
    return name if name.startswith((*_TRUNK_PARTS, _HEADS)) else _HEADS + name


def rename(tree: Any, rule: Callable[[str], str]) -> Any:
    """Applies a rule to the keys of every innermost dict: of parameters, or of an optimizer's state for them."""

    def is_named(x: Any) -> bool:
        return isinstance(x, dict) and not any(isinstance(value, dict) for value in x.values())

    return jax.tree.map(lambda x: {rule(k): v for k, v in x.items()} if is_named(x) else x, tree, is_leaf=is_named)


def global_norm(gradients: Mapping[str, Array]) -> Float[Array, ""]:
    """Returns the square root of the sum of squares of all arrays, added up in the order of the names of format 1.

    The order decides the last digits of the norm, and by clipping those of every update: this one keeps the metrics of
    runs the same as they were when heads stood beside the trunk.
    """
    names = sorted(gradients, key=name_of_format_1)
    return jnp.sqrt(sum(jnp.sum(jnp.square(gradients[name])) for name in names))


@dataclass(frozen=True)
class WarmStart:
    """What became of every name when parameters were taken over from elsewhere."""

    loaded: list[str]
    missing: list[str]  # left as initialised
    unexpected: list[str]  # left behind

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} parameters loaded"]
        parts += [f"{len(self.missing)} left as initialised: {', '.join(self.missing)}"] if self.missing else []
        parts += [f"{len(self.unexpected)} not used: {', '.join(self.unexpected)}"] if self.unexpected else []
        return "; ".join(parts)


def take_over(
    target: Parameters, source: Parameters, *, new: str, dropped: str, origin: str
) -> tuple[Parameters, WarmStart]:
    """`target` with every value that `source` has.

    `new` and `dropped` are regular expressions (matched at the start of a name; "" = none) of names that may
    be missing in the source, or left behind. Any other name without a counterpart is a UserError, and so is a
    shape that differs.
    """
    missing = [name for name in target if name not in source]
    unexpected = [name for name in source if name not in target]
    problems = [f"{n} is not in it" for n in missing if not (new and re.match(new, n))]
    problems += [f"{n} has no place here" for n in unexpected if not (dropped and re.match(dropped, n))]
    problems += [
        f"{name} is {tuple(source[name].shape)} there, {tuple(target[name].shape)} here"
        for name in target
        if name in source and source[name].shape != target[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"cannot start from {origin}: {'; '.join(problems[:3])}{more}; the two models must be alike")
    loaded = [name for name in target if name in source]
    return target | {name: source[name] for name in loaded}, WarmStart(loaded, missing, unexpected)
