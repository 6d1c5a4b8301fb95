"""What a written text depends on in its source: what each of its tokens loses when one of the source's is hidden.

That is what the output needs; attention, which is beside it, is what the model reads, needed or not.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bert_jax.config import UserError
from bert_jax.data.batching.batches import collate
from bert_jax.data.batching.items import Item
from bert_jax.data.batching.shapes import Shape
from bert_jax.data.labelled.examples import WritingExample
from bert_jax.data.tokenizers.encoding import Part
from bert_jax.inference.loaded import LoadedModel
from bert_jax.inference.open import Opened
from bert_jax.inference.predictor import all_good
from bert_jax.models.bert import Model, TrunkInputs

_STEP = 16  # lengths are multiples of it, so that texts of like length share a program


class Dependence(NamedTuple):
    """The T tokens of a target, and the R tokens of its source without [CLS] and [SEP]."""

    source: tuple[str, ...]
    target: tuple[str, ...]
    log_probabilities: Float[np.ndarray, " T"]  # given the source and the target before
    losses: Float[np.ndarray, "T R"]  # by how much they fall when the token of the source is [MASK]
    attention: Float[np.ndarray, "T R"]  # to the token of the source, mean of all layers and heads


class _Losses:
    """The program of an opened model: a tool of `LoadedModel.tool`."""

    def __init__(self, opened: Opened, batch_size: int):
        self.opened, self.batch_size = opened, batch_size
        self.program = opened.at_work.program(lambda model, batch: _log_probabilities(opened.task, model, batch))
        self.attention = opened.at_work.program(lambda model, batch: _attention(opened.task, model, batch))


def dependence(model: LoadedModel, text: str, target: str = "") -> Dependence:
    """Returns what a target depends on; without one, what the model itself writes for the text. Raises UserError for a
    model that cannot write."""
    tool = model.tool(_Losses)
    task, tokenizer = tool.opened.task, model.tokenizer
    if not task.makes_texts:
        raise UserError(f"{tool.opened.path} was trained for task={model.config.task} and cannot write")
    written = target or all_good(model.generate([text]))[0]["text"]
    [item] = task.encode([WritingExample("the text", (text,), written)])
    ids = item.parts[0].ids
    places = [i for i, token in enumerate(ids.tolist()) if token not in (tokenizer.cls_id, tokenizer.sep_id)]
    hidden = [np.where(np.arange(len(ids)) == place, tokenizer.mask_id, ids) for place in places]
    items = [Item((Part(one, item.parts[0].type_ids),), target=item.target) for one in (ids, *hidden)]
    found = np.concatenate([_run(tool, items, i) for i in range(0, len(items), tool.batch_size)])
    source, tokens = (tuple(tokenizer.token(int(i)) for i in row) for row in (ids[places], item.target))
    attention = np.asarray(tool.attention(_batch(items, [0])))[0, : len(tokens), places].T
    return Dependence(source, tokens, found[0], (found[0] - found[1:]).T, attention)


def _run(tool: _Losses, items: list[Item], start: int) -> Float[np.ndarray, "B T"]:
    """Returns the log-probabilities of the items of the batch from `start` on."""
    found = np.asarray(tool.program(_batch(items, range(start, start + tool.batch_size))))
    return found[: len(items) - start, : items[0].target_length]


def _batch(items: list[Item], numbers: Sequence[int]) -> dict[str, np.ndarray]:
    """Returns the batch of items which are all of one length; a number that none of them has is an empty row."""
    rows = [[i] if i < len(items) else [] for i in numbers]
    length, targets = (-(-size // _STEP) * _STEP for size in (items[0].length, items[0].target_length))
    return collate(items, rows, Shape(len(rows), 1, length, targets=targets))


def _attention(task: Any, model: Model, batch: dict[str, Array]) -> Float[Array, "B T R"]:
    layers = task.writer(model).attention(TrunkInputs.from_batch(batch), batch["target_ids"])
    return jnp.mean(jnp.stack(layers), axis=(0, 2))


def _log_probabilities(task: Any, model: Model, batch: dict[str, Array]) -> Float[Array, "B T"]:
    writer, targets = task.writer(model), batch["target_ids"]
    hidden = writer.predict(TrunkInputs.from_batch(batch), targets)
    logs = jax.nn.log_softmax(writer.logits(hidden), axis=-1)
    return jnp.take_along_axis(logs, targets[:, :, None], axis=-1)[:, :, 0]
