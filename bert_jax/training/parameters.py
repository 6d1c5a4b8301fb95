"""Parameters as a flat dict {name: array}: as they are trained, saved, matched by rules and converted.

A parameter of the trunk is called as in the trunk (`encoder/layers/attention/query/kernel`), one of a head
`heads/<name>/…`. Layers are stacked along the first axis of their parameters.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PyTree

from bert_jax.config import UserError, pattern
from bert_jax.models.bert import Model
from bert_jax.sharding import LAYERS

T = TypeVar("T")
Parameters = dict[str, Array]
_TRUNK, _HEADS = "trunk/", "heads/"
_TRUNK_PARTS = ("embeddings/", "encoder/", "pooler/")


def is_stacked(name: str) -> bool:
    """Returns True for a parameter, or its optimizer state, that has one slice per layer along its first axis."""
    return name.startswith(LAYERS)


def flatten(model: nnx.Module) -> Parameters:
    """Returns the parameters by name: attribute paths joined by "/", of a trunk without `trunk`."""
    _, state = nnx.split(model)
    return {"/".join(map(str, path)).removeprefix(_TRUNK): x.get_value() for path, x in nnx.to_flat_state(state)}


def structure(build: Callable[[nnx.Rngs], nnx.Module]) -> tuple[nnx.GraphDef, Parameters]:
    """Returns the model that `build` makes without its parameters, and in their place shapes."""
    model = nnx.eval_shape(lambda: build(nnx.Rngs(params=0)))
    return nnx.split(model)[0], flatten(model)


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


def rename(tree: PyTree, rule: Callable[[str], str]) -> PyTree:
    """Applies a rule to the keys of every innermost dict: of parameters, or of an optimizer's state for them."""

    def is_named(x: object) -> bool:
        return isinstance(x, dict) and not any(isinstance(value, dict) for value in x.values())

    return jax.tree.map(lambda x: {rule(k): v for k, v in x.items()} if is_named(x) else x, tree, is_leaf=is_named)


def of_one_task(parameters: Parameters, name: str) -> Parameters:
    """Returns the trunk and the heads of one of several tasks, as that task alone calls them; all if `name` is ""."""
    begin = f"{_HEADS}{name}/"
    own = {_HEADS + key.removeprefix(begin): x for key, x in parameters.items() if key.startswith(begin)}
    return {key: x for key, x in parameters.items() if not key.startswith(_HEADS)} | own if name else parameters


def global_norm(gradients: Mapping[str, Array]) -> Float[Array, ""]:
    """Returns the square root of the sum of squares of all arrays, added up in the order of the names of format 1.

    The order decides the last digits of the norm, and by clipping those of every update: this one keeps the metrics of
    runs the same as they were when heads stood beside the trunk.
    """
    names = sorted(gradients, key=name_of_format_1)
    return jnp.sqrt(sum(jnp.sum(jnp.square(gradients[name])) for name in names))


def matching(option: str, text: str, names: Iterable[str]) -> set[str]:
    """Returns the names that a pattern matches, by the rule of `config.pattern`; "" matches none. Raises UserError."""
    compiled = pattern(option, text)
    return {name for name in names if text and compiled.search(name)}


def first_names(names: Sequence[str], count: int) -> str:
    """Returns up to `count` names, and how many more there are."""
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


@dataclass(frozen=True)
class WarmStart:
    """What became of every name when parameters were taken over from elsewhere."""

    loaded: list[str]
    missing: list[str]  # left as initialised
    unexpected: list[str]  # left behind
    copied: Mapping[str, int] = field(default_factory=dict)  # how many of those loaded have another name in the source

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} parameters loaded"]
        parts += [f"{count} of them {where}" for where, count in self.copied.items()]
        parts += [f"{len(self.missing)} left as initialised: {', '.join(self.missing)}"] if self.missing else []
        parts += [f"{len(self.unexpected)} not used: {', '.join(self.unexpected)}"] if self.unexpected else []
        return "; ".join(parts)


def with_copies(source: Mapping[str, T], copies: Mapping[str, str]) -> tuple[dict[str, T], dict[str, int]]:
    """Returns the parameters and those that `copies`, {begin of a name: begin of another one}, make of them, where they
    are not there; and the number of each, in words."""
    found, counts = dict(source), dict[str, int]()
    for copy, original in copies.items():
        if not any(name.startswith(copy) for name in source):
            new = {copy + name.removeprefix(original): x for name, x in source.items() if name.startswith(original)}
            found |= new
            counts |= {f"{copy}… from {original}…": len(new)} if new else {}
    return found, counts


def take_over(
    target: Parameters, source: Parameters, *, new: str, dropped: str, origin: str
) -> tuple[Parameters, WarmStart]:
    """Returns `target` with every value that `source` has.

    `new` and `dropped` are patterns (see `config.pattern`; "" = none) of names that may be missing in the source, or
    left behind. Raises UserError for any other name without a counterpart, and for a shape that differs.
    """
    loaded = [name for name in target if name in source]
    missing = [name for name in target if name not in source]
    unexpected = [name for name in source if name not in target]
    may_miss = matching("new_parameters", new, missing)
    may_stay = matching("dropped_parameters", dropped, unexpected)
    problems = [f"{name} is not in it" for name in missing if name not in may_miss]
    problems += [f"{name} has no counterpart here" for name in unexpected if name not in may_stay]
    shapes = ((name, tuple(source[name].shape), tuple(target[name].shape)) for name in loaded)
    problems += [f"{name} is {there} there, {here} here" for name, there, here in shapes if there != here]
    if problems:
        listed = first_names(problems, 3)
        raise UserError(f"cannot start from {origin}: {listed}; the two models must be alike")
    return target | {name: source[name] for name in loaded}, WarmStart(loaded, missing, unexpected)
