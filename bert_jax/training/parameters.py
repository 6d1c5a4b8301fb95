"""Parameters as a flat dict {name: array}: as they are trained, saved, matched by rules and converted."""

import re
from dataclasses import dataclass

from flax import nnx
from jaxtyping import Array

from bert_jax.config import UserError

Parameters = dict[str, Array]


def flatten(model: nnx.Module) -> Parameters:
    """Names are attribute paths joined by "/", as in `encoder/layers/attention/query/kernel`."""
    _, state = nnx.split(model)
    return {"/".join(map(str, path)): parameter.get_value() for path, parameter in nnx.to_flat_state(state)}


def unflatten(graphdef: nnx.GraphDef, parameters: Parameters) -> nnx.Module:
    """The model with these parameters; `graphdef` comes from `nnx.split` of one like it."""
    flat = [(tuple(name.split("/")), nnx.Param(value)) for name, value in parameters.items()]
    return nnx.merge(graphdef, nnx.from_flat_state(flat))


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
