"""Which heads and layers a model needs, what it is without the others, and a checkpoint that no longer has them.

Heads are ordered inside their layer by the gradient of the loss (Michel et al. 2019), and every layer keeps equally
many: layers are one stack of arrays. Layers are left out one after another, each time the one without which the loss is
lowest. What is left is not trained: fine-tune it again.
"""

import copy
import logging
import re
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float64

import bert_jax
from bert_jax.config import Json, UserError
from bert_jax.convert.conversion import check_target, open_source, replacing
from bert_jax.inference.loaded import LoadedModel
from bert_jax.inference.open import open_model
from bert_jax.lab.inspect.heads import LabelledExamples, head_gradients
from bert_jax.models.config import BertConfig
from bert_jax.training.checkpoint import write_checkpoint
from bert_jax.training.parameters import is_stacked, structure, unflatten

_COLUMNS = re.compile(r"^encoder/layers/attention/(query|key|value)/(kernel|bias)$")  # heads are their last axis
_ROWS = re.compile(r"^encoder/layers/attention/output/kernel$")  # heads are the axis before the last one
_MULTIHEAD = re.compile(r"attention/(query|key|value)/kernel$")


class Left(NamedTuple):
    """A point of a curve: how many heads or layers are left, which, and what the model is with them."""

    number: int
    share: float  # of all that is left out
    kept: tuple[Any, ...]  # numbers from 0: of layers, or of the heads of each layer
    metrics: dict[str, float]


class Pruning(NamedTuple):
    """What is known of a model's heads and layers. Curves begin with the whole model."""

    examples: str  # how many of which file
    spec: str  # that file
    metric: str  # the name of the one that counts
    importance: Float64[np.ndarray, "N H"]
    heads: list[Left]
    layers: list[Left]


class Chosen(NamedTuple):
    """What a smaller model keeps."""

    heads: tuple[tuple[int, ...], ...]  # of each layer that is kept, in order
    layers: tuple[int, ...]


def measure(model: LoadedModel, examples: str = "", limit: int = 256) -> Pruning:
    """Returns importances and curves on labelled examples. Raises UserError as `LabelledExamples`, and for a model
    whose heads attend elsewhere than in the layers of its encoder."""
    on = LabelledExamples(model, examples, limit)
    _check_prunable(on)
    importance = head_gradients(on)
    whole = on.with_heads(np.ones(importance.shape, np.float32))
    heads, layers = _curve_of_heads(on, importance, whole), _curve_of_layers(on, whole)
    return Pruning(on.name, on.spec, on.metric(whole), importance, heads, layers)


def choose(found: Pruning, *, heads: float = 0.0, layers: float = 0.0, take_layers: Sequence[int] = ()) -> Chosen:
    """Returns what a model keeps without such shares of its heads and layers; of layers, those that `take_layers`
    names instead. Raises UserError for a share that leaves nothing, or leaves nothing out."""
    depth, count = found.importance.shape
    kept, least = tuple(take_layers), found.layers[-1].number
    left = len(kept) or _left("layers", layers, depth, "layers")
    if left < least:
        raise UserError(f"{left} of {depth} layers would be left, and the model's head reads {least}; keep more")
    kept = kept or next(point.kept for point in found.layers if point.number == left)
    left = _left("heads", heads, count, "heads per layer")
    by_layer = next(point.kept for point in found.heads if point.number == left)
    return Chosen(tuple(by_layer[layer] for layer in kept), kept)


def check_shares(config: BertConfig, heads: float, layers: float) -> None:
    """Raises UserError for shares of a model of this shape that leave nothing, or leave nothing out."""
    _left("layers", layers, config.num_hidden_layers, "layers")
    _left("heads", heads, config.num_attention_heads, "heads per layer")


def metrics_of(path: str, examples: str, limit: int) -> dict[str, float]:
    """Returns the metrics of a model on labelled examples, as the curves have them."""
    on = LabelledExamples(bert_jax.load(path, dtype="float32"), examples, limit)
    config = on.opened.bert_config
    return on.with_heads(np.ones((config.num_hidden_layers, config.num_attention_heads), np.float32))


def write_pruned(path: str, to: str, chosen: Chosen, *, overwrite: bool = False) -> Json:
    """Writes a checkpoint of the model at `path` with what is chosen, and returns what there is to say of it: shapes
    and numbers of parameters. Raises UserError if the folder cannot be made."""
    target = Path(to)
    check_target(target, path, overwrite)
    source = open_source(path)
    config = source.model.config
    heads = config.num_attention_heads
    before = source.model.parameters
    parameters = pruned_parameters(before, chosen, config.head_width)
    model = source.run["config"]["model"] | asdict(config) | {"size": None, "num_hidden_layers": len(chosen.layers)}
    model["num_attention_heads"] = len(chosen.heads[0])
    model["head_size"] = None if len(chosen.heads[0]) == heads and config.head_size is None else config.head_width
    run = source.run | {"config": source.run["config"] | {"model": model}}
    run["pruned"] = {"layers": list(chosen.layers), "heads": [list(one) for one in chosen.heads]}
    after, whole = (int(sum(x.size for x in one.values())) for one in (parameters, before))
    with replacing(target) as folder:
        write_checkpoint(folder, parameters, run, source.model.tokenizer)
    shapes = {"shape": f"{len(chosen.layers)} × {len(chosen.heads[0])}"}
    shapes |= {"shape_before": f"{config.num_hidden_layers} × {heads}"}
    return shapes | {"to": to, "parameters": after, "parameters_before": whole}


def pruned_parameters(parameters: dict[str, Any], chosen: Chosen, width: int) -> dict[str, Any]:
    """Returns the parameters of the layers and heads that are kept; a head has `width` columns."""
    layers = np.asarray(chosen.layers)
    columns = np.asarray(chosen.heads)[:, :, None] * width + np.arange(width)
    columns = columns.reshape(len(layers), -1)  # of each layer

    def cut(name: str, x: object) -> Any:
        if not is_stacked(name):
            return x
        x = np.asarray(x)[layers]
        if _COLUMNS.match(name):
            return np.take_along_axis(x, columns[:, None] if x.ndim == 3 else columns, axis=-1)
        return np.take_along_axis(x, columns[:, :, None], axis=-2) if _ROWS.match(name) else x

    return {name: cut(name, x) for name, x in parameters.items()}


def _check_prunable(on: LabelledExamples) -> None:
    names = [name for name in on.opened.parameters if _MULTIHEAD.search(name) and not is_stacked(name)]
    if names:
        raise UserError(
            f"{on.opened.path} has attention outside its encoder ({names[0]}), which pruning does not know: prune the "
            "encoder of another task, and start from that"
        )


def _curve_of_heads(on: LabelledExamples, importance: np.ndarray, whole: dict[str, float]) -> list[Left]:
    depth, count = importance.shape
    order = np.argsort(-importance, axis=1, kind="stable")  # of the heads of each layer, the most important one first
    points = []
    for left in range(count, 0, -1):
        kept = tuple(tuple(sorted(row[:left].tolist())) for row in order)
        mask = np.zeros((depth, count), np.float32)
        for layer, numbers in enumerate(kept):
            mask[layer, list(numbers)] = 1
        points.append(Left(left, 1 - left / count, kept, whole if left == count else on.with_heads(mask)))
    return points


def _curve_of_layers(on: LabelledExamples, whole: dict[str, float]) -> list[Left]:
    depth = on.opened.bert_config.num_hidden_layers
    opened = open_model(on.opened.path)  # the model at work has its layers in a list, and no more than those
    parameters = opened.fit(opened.task.init, absent="^(?!embeddings/|encoder/)", dropped="^heads/")[1]
    kept = tuple(range(depth))
    points = [Left(depth, 0.0, kept, whole)]
    while len(kept) > 1:
        try:
            program = partial(_with_depth(on, len(kept) - 1), parameters)
        except UserError as problem:  # its head reads more layers
            logging.warning("the curve of layers ends at %d of %d: %s", len(kept), depth, problem)
            break
        tried = [tuple(layer for layer in kept if layer != out) for out in kept]
        found = [on.metrics(partial(program, np.asarray(layers))) for layers in tried]
        best = min(range(len(tried)), key=lambda i: found[i]["loss"])
        kept = tried[best]
        points.append(Left(len(kept), 1 - len(kept) / depth, kept, found[best]))
    return points


def _with_depth(on: LabelledExamples, depth: int) -> Any:
    """Returns a program of (parameters, layers, batch) to what `LabelledExamples.evaluate` does, of a model with so
    many layers. Raises UserError if its head reads more."""
    opened = on.opened
    config = copy.deepcopy(opened.config)
    # A loop is compiled as one layer, whatever the depth, and there is a program for each depth and shape of a batch.
    config.model.update(num_hidden_layers=depth, layers="scan")
    task = type(opened.task)(config, opened.tokenizer, opened.run["task"])
    graphdef = structure(task.init)[0]

    def evaluate(parameters, layers, batch):
        own = {name: x[layers] if is_stacked(name) else x for name, x in parameters.items()}
        return on.evaluate(unflatten(graphdef, own), batch)

    return jax.jit(evaluate)


def _left(flag: str, share: float, count: int, what: str) -> int:
    if not 0 <= share < 1:
        raise UserError(f"--{flag} is {share:g}; it must be a share of 0 or more and under 1")
    left = count - round(share * count)
    if left < 1:
        raise UserError(f"--{flag}={share:g} would leave none of the {count} {what}; lower it")
    if share and left == count:
        raise UserError(f"--{flag}={share:g} would leave out none of the {count} {what}; raise it to {1 / count:.3g}")
    return left
