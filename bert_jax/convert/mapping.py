"""The walk over the name map, in both directions, and the report of what became of every name."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from flax import nnx

from bert_jax.config import UserError
from bert_jax.convert.names import TRUNK, Name, part_of
from bert_jax.data.tokenizers.tokenizer import Tokenizer
from bert_jax.models.bert import Bert, Model
from bert_jax.models.config import BertConfig
from bert_jax.models.heads import LinearHead, MaskedLMHead
from bert_jax.training.parameters import flatten

Arrays = dict[str, np.ndarray]
_MODULE = re.compile(r"(?:heads/)?[^./]*[./]?")  # the beginning of a name, theirs or ours
Tensors = Mapping[str, Callable[[], np.ndarray]]  # their name → reads the tensor


@dataclass
class Report:
    """What became of every name: `loaded` is ours → theirs (of layers the pattern), the lists hold what is special."""

    loaded: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)  # ours, not in the checkpoint: a head or the pooler
    unexpected: list[str] = field(default_factory=list)  # theirs, left behind because the caller said so
    optimizer: list[str] = field(default_factory=list)  # theirs: moments and step counts
    copies: list[str] = field(default_factory=list)  # theirs, equal to another tensor or no parameter
    reshaped: list[str] = field(default_factory=list)  # ours, transposed or stacked
    widened: list[str] = field(default_factory=list)  # theirs, not stored in float32
    left_out: list[str] = field(default_factory=list)  # ours, not part of the architecture that is written
    notes: list[str] = field(default_factory=list)  # whatever else differs from the source

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} parameters, {len(self.reshaped)} of them transposed or stacked"]
        for what, names in (
            ("missing (not in the checkpoint; new heads start as initialised)", self.missing),
            ("unexpected (left behind)", self.unexpected),
            ("of the optimizer (left behind)", self.optimizer),
            ("copies (not needed)", self.copies),
            ("converted to float32", self.widened),
            ("left out (not part of the architecture)", self.left_out),
        ):
            lines += [f"{what}: {_listed(names)}"] if names else []
        return "\n".join([*lines, *self.notes])


@dataclass
class Loaded:
    """A model from elsewhere, or for elsewhere."""

    config: BertConfig
    parameters: Arrays
    tokenizer: Tokenizer
    task: str  # as in config.task
    description: dict[str, Any]  # what the task learned of its data, such as names of labels
    report: Report


def from_tensors(
    tensors: Tensors, names: list[Name], config: BertConfig, *, num_labels: int, origin: str, allow: str
) -> tuple[Arrays, Report]:
    """Their tensors → our parameters in float32.

    `names`: what the model may have; `num_labels`: of its classifier; `origin` is for messages; `allow` is a regular
    expression (matched at the start) of their names that may be left behind. Raises UserError for a tensor that no
    name explains, a shape that differs, and a module of which only a part is there.
    """
    shapes = parameter_shapes(config, num_labels)
    report, parameters, left = Report(), {}, dict(tensors)
    for name in names:
        theirs = name.layers(config.num_hidden_layers)
        found = [their for their in theirs if their in left]
        if not found:
            report.missing.append(name.ours)
        elif len(found) < len(theirs):
            raise UserError(f"{origin} has {len(found)} of {len(theirs)} layers of {name.theirs}; fetch it again")
        else:
            sources = {their: left.pop(their) for their in theirs}
            parameters[name.ours] = _read(sources, name, shapes[name.ours], origin, report)
            report.loaded[name.ours] = name.theirs
            report.reshaped += [name.ours] if name.transposed or name.stacked else []
    unexplained = [name for name in left if not (allow and re.search(allow, name))]
    if unexplained:
        more = f" and {len(unexplained) - 3} more" if len(unexplained) > 3 else ""
        raise UserError(
            f"{origin} has tensors with no place here: {', '.join(unexplained[:3])}{more}; "
            f"to leave them behind: --allow='{_allowing(unexplained)}'"
        )
    report.unexpected = list(left)
    _check_parts(parameters, names, report.missing, origin)
    return parameters, report


def to_tensors(
    parameters: Mapping[str, Any], names: list[Name], num_layers: int, *, what: str, allow: str
) -> tuple[Arrays, Report]:
    """Our parameters → their tensors under `names`, one a layer, contiguous.

    What another architecture has is left out and reported. Raises UserError for a parameter that `what` needs and that
    is not there, and for one that no architecture has unless `allow` (a regular expression) matches its name.
    """
    left, tensors, report = dict(parameters), {}, Report()
    for name in names:
        value = left.pop(name.ours, None)
        if value is None:
            raise UserError(f"a {what} needs {name.ours}, which is not among the parameters; choose --architecture")
        value = np.asarray(value)
        if name.stacked and len(value) != num_layers:
            raise UserError(f"{name.ours} has {len(value)} layers, the config {num_layers}")
        for their, part in zip(name.layers(num_layers), value if name.stacked else value[None], strict=True):
            tensors[their] = np.ascontiguousarray(part.T if name.transposed else part)
        report.loaded[name.ours] = name.theirs
        report.reshaped += [name.ours] if name.transposed or name.stacked else []
    report.left_out = list(left)
    foreign = [name for name in left if part_of(name) in (*TRUNK, "window_query")]
    unexplained = [name for name in foreign if not (allow and re.search(allow, name))]
    if unexplained:
        raise UserError(
            f"a {what} has no place for {', '.join(unexplained[:3])}; "
            f"to leave them behind: --allow='{_allowing(unexplained)}'"
        )
    return tensors, report


def parameter_shapes(config: BertConfig, num_labels: int) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the trunk and of every head."""

    def build() -> Model:
        rngs, sizes = nnx.Rngs(params=0), {"nsp": 2, "classifier": num_labels, "span": 2}
        heads = {name: LinearHead(config, size, rngs=rngs) for name, size in sizes.items()}
        return Model(Bert(config, rngs=rngs), {"mlm": MaskedLMHead(config, rngs=rngs)} | heads)

    return {name: tuple(x.shape) for name, x in flatten(nnx.eval_shape(build)).items()}


def to_host(parameters: Mapping[str, jax.Array]) -> Arrays:
    """As NumPy arrays; on a CPU these are the same memory."""
    return {name: np.asarray(value) for name, value in parameters.items()}


def _read(sources: Tensors, name: Name, shape: tuple[int, ...], origin: str, report: Report) -> np.ndarray:
    """Straight into the array that is kept, so that no more than one tensor is in memory twice."""
    one = shape[1:] if name.stacked else shape
    wanted = one[::-1] if name.transposed else one
    value = None
    for i, (their, read) in enumerate(sources.items()):
        tensor = read()
        if tensor.shape != wanted:
            raise UserError(f"{origin}: {their} is {_shape(tensor.shape)}, but by the config {_shape(wanted)}")
        if tensor.dtype.kind not in "fV":  # V: bfloat16
            raise UserError(f"{origin}: {their} is of {tensor.dtype}; weights must be floating-point numbers")
        if value is None:  # not before a tensor has shown that there is so much to hold
            value = np.empty(shape, np.float32)
        target = value[i] if name.stacked else value
        target[...] = tensor.T if name.transposed else tensor
        if not np.isfinite(target).all():
            raise UserError(f"{origin}: {their} has values that are not finite; fetch or train it again")
        report.widened += [their] if tensor.dtype != np.float32 else []
    assert value is not None
    return value


def _check_parts(parameters: Arrays, names: list[Name], missing: list[str], origin: str) -> None:
    """The trunk must be whole; pooler and heads may be missing, but not by halves."""
    present = {part_of(name) for name in parameters} | set(TRUNK)
    for name in names:
        if name.ours in missing and name.part in present:
            raise UserError(f"{origin} has no {name.theirs.format(0)}; the checkpoint is not whole")


def _allowing(names: list[str]) -> str:
    """A regular expression for the modules that the names belong to."""
    return "|".join(sorted({re.escape(_MODULE.findall(name)[0]) for name in names}))


def _shape(shape: tuple[int, ...]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return ", ".join(names[:12]) + more
