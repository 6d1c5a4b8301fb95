"""What a written text reads of its source, and what it needs: what each of its tokens loses when one of the source's
is hidden. Attention is what the model looks at; a token that it looks at may change nothing.
"""

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
    attention: Float[np.ndarray, "T R"]  # the mean over layers and heads, of which [CLS] and [SEP] get the rest


class _Programs:
    """The programs of an opened model: a tool of `LoadedModel.tool`."""

    def __init__(self, opened: Opened, batch_size: int):
        self.opened, self.batch_size = opened, batch_size
        program = opened.at_work.program
        self.log_probabilities = program(lambda model, batch: _log_probabilities(opened.task, model, batch))
        self.attention = program(lambda model, batch: _attention(opened.task, model, batch))


def dependence(model: LoadedModel, text: str, target: str = "") -> Dependence:
    """Returns what a target depends on; without one, what the model itself writes for the text. Raises UserError for a
    model that cannot write."""
    tool = model.tool(_Programs)
    task, tokenizer = tool.opened.task, model.tokenizer
    if not task.makes_texts:
        tool.opened.check_single()
        raise UserError(f"{tool.opened.path} was trained for task={model.config.task} and cannot write")
    written = target or all_good(model.generate([text]))[0]["text"]
    [item] = task.encode([WritingExample("the text", (text,), written)])
    ids = item.parts[0].ids
    places = [i for i, token in enumerate(ids.tolist()) if token not in (tokenizer.cls_id, tokenizer.sep_id)]
    hidden = [np.where(np.arange(len(ids)) == place, tokenizer.mask_id, ids) for place in places]
    items = [Item((Part(one, item.parts[0].type_ids),), target=item.target) for one in (ids, *hidden)]
    found = np.concatenate([_run(tool, items, i) for i in range(0, len(items), tool.batch_size)])
    batch = collate(items, [[0]], _shape(items[0], 1))
    attention = np.asarray(tool.attention(batch))[0, : len(item.target), places].T
    source, tokens = (tuple(tokenizer.token(int(i)) for i in row) for row in (ids[places], item.target))
    return Dependence(source, tokens, found[0], (found[0] - found[1:]).T, attention)


def _run(tool: _Programs, items: list[Item], start: int) -> Float[np.ndarray, "B T"]:
    """Returns the log-probabilities of the items of the batch from `start` on, which are all of one length."""
    rows = [[i] if i < len(items) else [] for i in range(start, start + tool.batch_size)]
    found = np.asarray(tool.log_probabilities(collate(items, rows, _shape(items[0], len(rows)))))
    return found[: len(items) - start, : items[0].target_length]


def _shape(item: Item, rows: int) -> Shape:
    length, targets = (-(-size // _STEP) * _STEP for size in (item.length, item.target_length))
    return Shape(rows, 1, length, targets=targets)


def _log_probabilities(task: Any, model: Model, batch: dict[str, Array]) -> Float[Array, "B T"]:
    writer, targets = task.writer(model), batch["target_ids"]
    hidden = writer.predict(TrunkInputs.from_batch(batch), targets)
    logs = jax.nn.log_softmax(writer.logits(hidden), axis=-1)
    return jnp.take_along_axis(logs, targets[:, :, None], axis=-1)[:, :, 0]


def _attention(task: Any, model: Model, batch: dict[str, Array]) -> Float[Array, "B T R"]:
    layers = task.writer(model).attention(TrunkInputs.from_batch(batch), batch["target_ids"])
    return jnp.mean(jnp.stack([jnp.mean(layer, axis=1) for layer in layers]), axis=0)
