"""The walk over the name map, in both directions, and the report of what became of every name."""

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from bert_jax.config import Json, UserError
from bert_jax.convert.names import TRUNK, Name, part_of
from bert_jax.data.text.json_files import JsonObject, read_object
from bert_jax.data.tokenizers.tokenizer import Tokenizer
from bert_jax.models.bert import Bert, Model
from bert_jax.models.config import BertConfig
from bert_jax.models.decoder import Decoder
from bert_jax.models.heads import LinearHead, MaskedLMHead
from bert_jax.training.parameters import first_names, matching, structure

Arrays = dict[str, np.ndarray]
Tensors = Mapping[str, Callable[[], np.ndarray]]  # their name → reads the tensor
FETCH_AGAIN = "fetch the checkpoint again"
_NUMBER = (int, float)
_KINDS: dict[str, Any] = dict.fromkeys(("hidden_dropout", "attention_dropout"), _NUMBER)  # of other fields: int
_KINDS |= dict.fromkeys(("initializer_range", "layer_norm_eps"), _NUMBER) | {"causal": bool}
_LARGEST = {"num_hidden_layers": 10_000}  # what a list is made of before any tensor is looked at
_MODULE = re.compile(r"(?:heads/)?[^./]*[./]?")  # the beginning of a name, theirs or ours


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
            lines += [f"{what}: {first_names(names, 12)}"] if names else []
        return "\n".join([*lines, *self.notes])


@dataclass
class Loaded:
    """A model from elsewhere, or for elsewhere."""

    config: BertConfig
    parameters: Arrays
    tokenizer: Tokenizer
    task: str  # as in config.task
    description: Json  # what the task learned of its data, such as names of labels
    report: Report


def read_settings(path: Path) -> JsonObject:
    """Returns the JSON object in a file, in which null is as good as absent. Raises UserError."""
    return filled(read_object(path, FETCH_AGAIN))


def filled(settings: JsonObject) -> JsonObject:
    """Returns the object without its fields that are null."""
    return replace(settings, content={name: value for name, value in settings.content.items() if value is not None})


def shape_of(
    settings: JsonObject, fields: dict[str, str], required: Collection[str], activations: dict[str, str]
) -> BertConfig:
    """Returns the shape that a config.json or bert_config.json describes, in float32. `fields` are {ours: theirs},
    `activations` {theirs: ours}. Raises UserError that names file and field."""
    if absent := [name for name in required if name not in settings]:
        raise UserError(f"{settings.origin} has no {', '.join(absent)}; is it the config of a BERT?")
    activation = settings.get("hidden_act", str, default=None)
    if activation not in activations:
        listed = ", ".join(activations)
        raise UserError(f"{settings.origin}: hidden_act is {activation!r}; it can be {listed}")
    given: Json = {"hidden_act": activations[activation]}
    for ours, theirs in fields.items():
        if theirs not in settings:
            continue
        value = settings.get(theirs, _KINDS.get(ours, int))
        given[ours] = float(value) if _KINDS.get(ours) == _NUMBER else value
        if ours not in _KINDS and not 0 < value <= _LARGEST.get(ours, 2**31 - 1):
            settings.refuse(theirs, value, f"from 1 to {_LARGEST.get(ours, 2**31 - 1)}")
        if not 0 <= value < math.inf:
            settings.refuse(theirs, value, "a finite number from 0 on")
    try:
        return BertConfig(**given, embedding_size=given["hidden_size"], dtype="float32")
    except (UserError, TypeError) as error:
        raise UserError(f"{settings.origin}: {error}") from None


def check_vocabulary(config: BertConfig, tokenizer: Tokenizer, origin: Path) -> None:
    """Raises UserError unless the vocabulary has one token per row of the word embeddings."""
    if tokenizer.vocab_size != config.vocab_size:
        raise UserError(
            f"{origin}: the vocabulary has {tokenizer.vocab_size:,} tokens, the word embeddings {config.vocab_size:,} "
            "rows; put the vocabulary there that the model was trained with"
        )


def from_tensors(
    tensors: Tensors, names: list[Name], config: BertConfig, *, num_labels: int, origin: Path, allow: str
) -> tuple[Arrays, Report]:
    """Returns our parameters, in float32, of their tensors.

    `names`: what the model may have; `num_labels`: of its classifier; `origin` is for messages; `allow` is a pattern of
    their names that may be left behind. Raises UserError for a tensor that no name explains, a shape that differs, and
    a module of which only a part is there.
    """
    shapes = parameter_shapes(config, num_labels)
    report, parameters, left = Report(), {}, dict(tensors)
    for name in names:
        theirs = name.layers(config.num_hidden_layers)
        found = [their for their in theirs if their in left]
        if not found:
            report.missing.append(name.ours)
            continue
        if len(found) < len(theirs):
            raise UserError(f"{origin} has {len(found)} of {len(theirs)} layers of {name.theirs}; fetch it again")
        sources = {their: left.pop(their) for their in theirs}
        parameters[name.ours] = _read(sources, name, shapes[name.ours], origin, report)
        _note(report, name)
    _check_explained(left, allow, f"{origin} has tensors with no place here:")
    report.unexpected = list(left)
    # The trunk must be whole; pooler and heads may be missing, but not by halves.
    present = {part_of(name) for name in parameters} | set(TRUNK)
    for name in names:
        if name.ours in report.missing and name.part in present:
            raise UserError(f"{origin} has no {name.theirs.format(0)}; the checkpoint is not whole")
    return parameters, report


def to_tensors(
    parameters: Mapping[str, object], names: list[Name], num_layers: int, *, what: str, allow: str
) -> tuple[Arrays, Report]:
    """Returns their tensors under `names`, one per layer, contiguous.

    What another architecture has is left out and reported. Raises UserError for a parameter that `what` needs and that
    is not there, and for one that no architecture has unless the pattern `allow` matches its name.
    """
    left, tensors, report = dict(parameters), {}, Report()
    for name in names:
        if name.ours not in left:
            raise UserError(f"a {what} needs {name.ours}, which is not among the parameters; choose --architecture")
        value = np.asarray(left.pop(name.ours))
        if name.stacked and len(value) != num_layers:
            raise UserError(f"{name.ours} has {len(value)} layers, the config {num_layers}")
        for their, part in zip(name.layers(num_layers), value if name.stacked else value[None], strict=True):
            tensors[their] = np.ascontiguousarray(part.T if name.transposed else part)
        _note(report, name)
    report.left_out = list(left)
    foreign = [name for name in left if part_of(name) in (*TRUNK, "window_query")]
    _check_explained(foreign, allow, f"a {what} has no place for")
    return tensors, report


def parameter_shapes(config: BertConfig, num_labels: int) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the trunk and of every head."""

    def build(rngs: nnx.Rngs) -> Model:
        sizes = {"nsp": 2, "classifier": num_labels, "span": 2}
        heads = {name: LinearHead(config, size, rngs=rngs) for name, size in sizes.items()}
        writing = {"mlm": MaskedLMHead(config, rngs=rngs), "decoder": Decoder(config, rngs=rngs)}
        return Model(Bert(config, rngs=rngs), writing | heads)

    return {name: tuple(x.shape) for name, x in structure(build)[1].items()}


def _note(report: Report, name: Name) -> None:
    report.loaded[name.ours] = name.theirs
    report.reshaped += [name.ours] if name.transposed or name.stacked else []


def _read(sources: Tensors, name: Name, shape: tuple[int, ...], origin: Path, report: Report) -> np.ndarray:
    """Reads straight into the array that is kept, so that no more than one tensor is in memory twice."""
    one = shape[1:] if name.stacked else shape
    wanted = one[::-1] if name.transposed else one
    value = np.empty(0)
    for i, (their, read) in enumerate(sources.items()):
        tensor = read()
        if tensor.shape != wanted:
            raise UserError(f"{origin}: {their} is {tensor.shape}, but by the config {wanted}")
        if tensor.dtype.kind not in "fV":  # V: bfloat16
            raise UserError(f"{origin}: {their} is of {tensor.dtype}; weights must be floating-point numbers")
        if i == 0:  # not before a tensor has shown that there is so much to hold
            value = np.empty(shape, np.float32)
        target = value[i] if name.stacked else value
        target[...] = tensor.T if name.transposed else tensor
        if not np.isfinite(target).all():
            raise UserError(f"{origin}: {their} has values that are not finite; fetch or train it again")
        report.widened += [their] if tensor.dtype != np.float32 else []
    return value


def _check_explained(names: Iterable[str], allow: str, problem: str) -> None:
    """Raises UserError, beginning with `problem`, for names that the pattern `allow` does not match."""
    allowed = matching("--allow", allow, names)
    if unexplained := [name for name in names if name not in allowed]:
        modules = "|".join(sorted({re.escape(_MODULE.findall(name)[0]) for name in unexplained}))
        raise UserError(f"{problem} {first_names(unexplained, 3)}; to leave them behind: --allow='{modules}'")
