"""A text as the functions of this package read it, and the programs that they run on it."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float32, Int32, Int64

from bert_jax.config import UserError
from bert_jax.data.batching.batches import collate
from bert_jax.data.batching.items import Item
from bert_jax.data.batching.shapes import Shape
from bert_jax.data.tokenizers.encoding import Part
from bert_jax.data.tokenizers.rows import row_length
from bert_jax.data.tokenizers.tokenizer import Tokenizer
from bert_jax.inference.batching import Batching
from bert_jax.inference.encode import problem, trunk_outputs
from bert_jax.inference.fill_mask import ids_with_masks
from bert_jax.inference.loaded import LoadedModel
from bert_jax.inference.open import Opened
from bert_jax.models.bert import Model, TrunkInputs

STEP = 16  # lengths of rows are multiples of it, so that texts of like length share a program
_HELD = 128  # texts whose hidden states of all layers are held at once
_GUESSES = 3  # likeliest tokens that are kept of a masked position


class Reading(NamedTuple):
    """The L tokens of a text or pair, with [CLS] and [SEP]."""

    part: Part
    tokens: tuple[str, ...]
    total: int  # tokens before the row was cut to L
    is_word: tuple[bool, ...]  # not [CLS], [SEP] or [MASK]

    @property
    def note(self) -> str:
        """What was left out, as a sentence; "" if nothing was."""
        length = len(self.tokens)
        return f"Of {self.total:,} tokens the model read {length:,}." if length < self.total else ""


class Insides:
    """The programs of an opened model, compiled once for each length: a tool of `LoadedModel.tool`."""

    def __init__(self, opened: Opened, batch_size: int):
        """Raises UserError for the model of a user's own task that is no BERT inside."""
        if not (opened.has("embeddings/") and opened.has("encoder/")):
            task = opened.config.task
            raise UserError(
                f"{opened.path}: the model of task={task} has no BERT inside to look at; name another model"
            )
        self.opened, self.batch_size = opened, batch_size
        program = opened.at_work.program
        self.states = program(partial(trunk_outputs, hidden=True, attentions=True))
        self.hidden = program(partial(trunk_outputs, hidden=True, attentions=False))
        self.batching = Batching(opened.bert_config.max_position_embeddings, batch_size)
        self.guesses = program(masked_guesses)
        self.word_vectors = program(lambda model, ids: model.trunk.embeddings.word(ids))
        self.table = program(lambda model: model.trunk.embeddings.word.embedding[...])
        self.class_gradient = program(lambda *arguments: _gradient_of_class(opened.task, *arguments))
        self.word_gradient = program(_gradient_of_word)

    def need_mlm_head(self, otherwise: str = "which fills masks; use a pretraining checkpoint") -> None:
        if not self.opened.has("heads/mlm/"):
            self.opened.check_single()
            raise UserError(f"{self.opened.path} has no MLM head, {otherwise}")

    def masked(
        self, part: Part, places: Int64[np.ndarray, " P"], program: Callable[..., Any] | None = None
    ) -> tuple[Float32[np.ndarray, " P"], Float32[np.ndarray, "P 3"], Int32[np.ndarray, "P 3"]]:
        """Runs `masked_guesses`, or the `program` in its place, with each of the places masked in a row of its own.
        Returns the log-probability of the token that stood there, and the likeliest tokens with theirs."""
        mask_id, size = self.opened.tokenizer.mask_id, min(self.batch_size, power_of_two(len(places)))
        longest, here = self.opened.bert_config.max_position_embeddings, np.arange(len(part.ids))
        found = []
        for start in range(0, len(places), size):
            chosen = places[start : start + size]
            masked = [Part(np.where(here == place, mask_id, part.ids), part.type_ids) for place in chosen]
            filled = np.resize(chosen, size).astype(np.int32)  # the last batch repeats some of its rows
            batch = batch_of([masked[i % len(masked)] for i in range(size)], longest)
            outputs = (program or self.guesses)(batch, filled[:, None], part.ids[filled][:, None])
            found.append([np.asarray(x)[: len(chosen)] for x in outputs])
        own, best, tokens = (np.concatenate(x) for x in zip(*found, strict=True))
        return own, best, tokens


def insides(model: LoadedModel) -> Insides:
    """Returns the programs of a model; the same ones each time."""
    return model.tool(Insides)


def read_text(model: LoadedModel, text: str, pair: str | None = None, *, max_length: int | None = None) -> Reading:
    """Returns the tokens of [CLS] text [SEP] (pair [SEP]), cut to `max_length`, by default all that the model takes.
    [MASK] in a text is a masked token. Raises UserError for a text without tokens."""
    tokenizer, most = model.tokenizer, insides(model).opened.bert_config.max_position_embeddings
    if max_length is not None and not 3 <= max_length <= most:
        raise UserError(f"max_length is {max_length}; for this model it can be 3 to {most} tokens")
    texts = [text] if pair is None else [text, pair]
    for name, one in zip(("text", "text_pair"), texts, strict=False):
        if wrong := problem(0, one):
            raise UserError(str(wrong).replace("input 0", f"the {name}"))
    ids = [ids_with_masks(tokenizer, one) for one in texts]
    if not ids[0]:
        raise UserError("the text is empty; give one with at least one word")
    part = tokenizer.row(*ids, max_length=max_length or most)
    return reading_of(part, tokenizer, row_length(len(ids[0]), None if pair is None else len(ids[1])))


def reading_of(part: Part, tokenizer: Tokenizer, total: int | None = None) -> Reading:
    hidden = (tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
    tokens = tuple(tokenizer.token(i) for i in part.ids.tolist())
    return Reading(part, tokens, total or len(tokens), tuple(i not in hidden for i in part.ids.tolist()))


def batch_of(parts: Sequence[Part], longest: int) -> dict[str, np.ndarray]:
    """Returns a batch of one part per row, padded to a length that other batches have too."""
    length = min(-(-max(len(part.ids) for part in parts) // STEP) * STEP, longest)
    return collate([Item((part,)) for part in parts], [[i] for i in range(len(parts))], Shape(len(parts), 1, length))


def states_of(
    model: LoadedModel, reading: Reading
) -> tuple[Float32[np.ndarray, "N1 L D"], Float32[np.ndarray, "N H L L"]]:
    """Returns the hidden states of the embeddings and of each layer, and the attention weights of each layer."""
    inside, length = insides(model), len(reading.tokens)
    count = inside.opened.bert_config.num_hidden_layers
    outputs = inside.states(batch_of([reading.part], inside.opened.bert_config.max_position_embeddings))
    outputs = jax.device_get(outputs)
    hidden = np.stack([outputs[f"hidden {i}"][0, :length] for i in range(count + 1)])
    return hidden, np.stack([outputs[f"attention {i}"][0, :, :length, :length] for i in range(count)])


def hidden_states(model: LoadedModel, parts: Sequence[Part]) -> Iterator[Float32[np.ndarray, "N1 L D"]]:
    """Yields for each part the hidden states of the embeddings and of each layer. Few texts are in memory at once."""
    inside = insides(model)
    names = [f"hidden {i}" for i in range(inside.opened.bert_config.num_hidden_layers + 1)]
    for start in range(0, len(parts), _HELD):
        chunk = parts[start : start + _HELD]
        found = inside.batching.run(inside.hidden, [Item((part,)) for part in chunk])
        for i, part in enumerate(chunk):
            yield np.stack([found[name][i][: len(part.ids)] for name in names])


def id_of(tokenizer: Tokenizer, token: str) -> int:
    """Returns the id of a token. Raises UserError for one that the vocabulary lacks, with the pieces that it has."""
    try:
        return tokenizer.id(token)
    except KeyError:
        [ids] = tokenizer.encode_words([token])
        pieces = " ".join(tokenizer.token(i) for i in ids)
        hint = f"it knows {pieces}" if pieces else "name another"
        raise UserError(f"'{token}' is not a token of the model's vocabulary; {hint}") from None


def power_of_two(number: int) -> int:
    """Returns the lowest power of two that is not under a number."""
    return 1 << (number - 1).bit_length()


def masked_guesses(
    model: Model, batch: dict[str, Array], places: Int32[Array, "B 1"], labels: Int32[Array, "B 1"]
) -> tuple[Float32[Array, " B"], Float32[Array, "B 3"], Int32[Array, "B 3"]]:
    """Returns the log-probability of the label at each row's place, and the likeliest tokens there with theirs."""
    hidden = model.trunk.encode(TrunkInputs.from_batch(batch), places=places).hidden
    logits = model.heads["mlm"](hidden, model.trunk.embeddings.word.embedding[...])[:, 0]
    logs = jax.nn.log_softmax(logits, axis=-1)
    best, tokens = jax.lax.top_k(logs, _GUESSES)
    return jnp.take_along_axis(logs, labels, axis=-1)[:, 0], best, tokens


def _gradient_of_class(
    task: Any, model: Model, batch: dict[str, Array], x: Float32[Array, "R L E"], place: Array, number: Array
) -> tuple[Float32[Array, ""], Float32[Array, "R L E"], Float32[Array, "P C"]]:
    """Returns a logit of a fine-tuned model, its gradient with respect to the word embeddings x, and all logits.

    A task looks its words up in the table. The table is made of x, and each token gets an id of its own.
    """

    def logit(x: Float32[Array, "R L E"]) -> tuple[Array, Array]:
        changed = jax.tree.map(lambda leaf: leaf, model)  # a copy, which may be changed under this trace
        changed.trunk.embeddings.word.embedding = nnx.Param(x.reshape(-1, x.shape[-1]))
        ids = jnp.arange(x.shape[0] * x.shape[1], dtype=jnp.int32).reshape(x.shape[:2])
        outputs = task.outputs(changed, batch | {"input_ids": ids}, None)
        logits = outputs["start_logits" if task.makes_answers else "logits"][0]
        return logits[place, number], logits

    (value, logits), gradient = jax.value_and_grad(logit, has_aux=True)(x)
    return value, gradient, logits


def _gradient_of_word(
    model: Model, batch: dict[str, Array], x: Float32[Array, "R L E"], place: Array, number: Array
) -> tuple[Float32[Array, ""], Float32[Array, "R L E"], Float32[Array, "1 V"]]:
    """Returns the same of a logit of the MLM head at a place, whose decoder keeps its own table."""

    def logit(x: Float32[Array, "R L E"]) -> tuple[Array, Array]:
        inputs = TrunkInputs.from_batch(batch)._replace(input_ids=None, embeddings=x)
        hidden = model.trunk.encode(inputs, places=place.reshape(1, 1)).hidden
        logits = model.heads["mlm"](hidden, model.trunk.embeddings.word.embedding[...])[0]
        return logits[0, number], logits

    (value, logits), gradient = jax.value_and_grad(logit, has_aux=True)(x)
    return value, gradient, logits
