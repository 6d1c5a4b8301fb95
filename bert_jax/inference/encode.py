"""What the trunk computes for texts: hidden states of every layer, attention weights, the pooler's output."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int32

from bert_jax.config import UserError
from bert_jax.data.batching.items import Item
from bert_jax.data.text.text_files import is_unicode
from bert_jax.data.tokenizers.encoding import Encoding
from bert_jax.data.tokenizers.tokenizer import Tokenizer
from bert_jax.inference.batching import Batching
from bert_jax.inference.open import Opened
from bert_jax.models.attention import Angles, attention_mask
from bert_jax.models.bert import Model
from bert_jax.models.encoder import rotary_angles
from bert_jax.models.patches import trunk_inputs


class Encoded(NamedTuple):
    """The results for B texts, padded with zeros to the L tokens of the longest one.

    `pooled` is None if the checkpoint has no pooler; `hidden_states` and `attentions` are None if not asked for.
    """

    last_hidden_state: Float32[np.ndarray, "B L D"]
    pooled: Float32[np.ndarray, "B D"] | None
    hidden_states: tuple[Float32[np.ndarray, "B L D"], ...] | None  # of the embeddings, then of each layer
    attentions: tuple[Float32[np.ndarray, "B H L L"], ...] | None  # of each layer; the row of a token sums to 1
    input_ids: Int32[np.ndarray, "B L"]
    attention_mask: Int32[np.ndarray, "B L"]  # 1 for tokens, 0 for padding
    errors: tuple[UserError | None, ...]  # one per text; a text with an error has no tokens


class TextEncoder:
    """Runs the trunk of an opened checkpoint. Threads may share it."""

    def __init__(self, opened: Opened, batch_size: int):
        self._tokenizer, self._config = opened.tokenizer, opened.bert_config
        self._has_pooler = opened.has("pooler/")
        longest, any_shape = self._config.max_position_embeddings, opened.at_work.takes_any_shape
        self._batching = Batching(longest, batch_size, any_shape=any_shape)
        self._programs = {
            (hidden, attentions): opened.at_work.program(partial(trunk_outputs, hidden=hidden, attentions=attentions))
            for hidden in (False, True)
            for attentions in (False, True)
        }

    def __call__(
        self,
        texts: Sequence[Any],
        pairs: Sequence[Any] | None,
        *,
        max_length: int | None,
        hidden_states: bool,
        attentions: bool,
    ) -> Encoded:
        """Raises UserError if texts and pairs are not equally many, or if the model has fewer positions than
        `max_length`; what is wrong with one text is in `errors`."""
        config, limit = self._config, max_length or self._config.max_position_embeddings
        if limit > config.max_position_embeddings:
            raise UserError(f"max_length is {limit}; this model takes up to {config.max_position_embeddings} tokens")
        if pairs is not None and len(pairs) != len(texts):
            raise UserError(f"there are {len(texts)} texts and {len(pairs)} pairs; give one pair per text")
        errors = [
            problem(number, text) or (None if pairs is None else problem(number, pairs[number]))
            for number, text in enumerate(texts)
        ]
        good = [number for number, error in enumerate(errors) if error is None]
        own_pairs = pairs if pairs is None else [pairs[i] for i in good]
        rows = encoded_texts(self._tokenizer, [texts[i] for i in good], own_pairs, limit)
        found = self._batching.run(self._programs[hidden_states, attentions], [Item((row.part,)) for row in rows])
        count, size, longest = len(texts), config.hidden_size, max((len(row.ids) for row in rows), default=0)

        def padded(name: str, shape: tuple[int, ...], own: Callable[[np.ndarray, int], np.ndarray]) -> np.ndarray:
            """Returns the output `name` of all texts in one array; `own` cuts that of a text to its tokens."""
            whole = np.zeros((count, *shape), np.float32)
            for i, row, one in zip(good, rows, found[name], strict=True):
                kept = own(one, len(row.ids))
                whole[(i, *map(slice, kept.shape))] = kept
            return whole

        ids, mask = np.zeros((2, count, longest), np.int32)
        for i, row in zip(good, rows, strict=True):
            ids[i, : len(row.ids)], mask[i, : len(row.ids)] = row.ids, 1
        last, square = config.num_hidden_layers, (config.num_attention_heads, longest, longest)
        layers = range(last + 1) if hidden_states else (last,)
        hidden = [padded(f"hidden {i}", (longest, size), lambda x, n: x[:n]) for i in layers]
        weights = [padded(f"attention {i}", square, lambda x, n: x[:, :n, :n]) for i in range(last) if attentions]
        return Encoded(
            hidden[-1],
            padded("pooled", (size,), lambda x, _: x) if self._has_pooler else None,
            tuple(hidden) if hidden_states else None,
            tuple(weights) if attentions else None,
            ids,
            mask,
            tuple(errors),
        )

    def warm_up(self, lengths: Sequence[int]) -> None:
        """Compiles what is computed by default, as `Batching.warm_up` does."""
        self._batching.warm_up(self._programs[False, False], lengths)


def encoded_texts(
    tokenizer: Tokenizer, texts: Sequence[str], pairs: Sequence[str] | None, limit: int
) -> list[Encoding]:
    """Returns the tokens of texts or pairs of texts, of which long ones are cut to `limit` tokens."""
    rows = tokenizer.encode(texts, pairs)
    long = [i for i, row in enumerate(rows) if len(row.ids) > limit]
    for i in long:
        pair = None if pairs is None else [pairs[i]]
        [rows[i]] = tokenizer.encode([texts[i]], pair, max_length=limit)
    if long:
        logging.warning("%d of %d texts are cut to %d tokens", len(long), len(texts), limit)
    return rows


class InputError(UserError):
    """What is wrong with one of several inputs; it stands in the place of the result. `number` counts from 0."""

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.number = number


def problem(number: int, text: object) -> InputError | None:
    """Returns what makes an input no text, if anything does."""
    if not isinstance(text, str):
        return InputError(number, f"input {number} is {type(text).__name__}, not a text")
    if not is_unicode(text):
        return InputError(number, f"input {number} is not Unicode text: it has half of a surrogate pair")
    return None


def trunk_outputs(
    model: Model, batch: dict[str, Array], *, hidden: bool, attentions: bool
) -> dict[str, Float32[Array, "..."]]:
    """Returns "pooled", "hidden i" of the embeddings (0) and of layer i, of the last one alone unless `hidden`, and
    "attention i" if asked for."""
    inputs, trunk = trunk_inputs(model, batch), model.trunk
    config = trunk.config
    encoded = trunk.encode(inputs, all_layers=True)
    assert encoded.layers is not None
    # The last one as the heads see it, also in a pre-norm model. XLA computes the embeddings once.
    words = trunk.embeddings.word(batch["input_ids"])
    embedded = trunk.embeddings(words, inputs.token_type_ids, inputs.position_ids, given=inputs.given)
    states = [embedded, *encoded.layers[:-1], encoded.hidden]
    outputs = {"pooled": trunk.pool(encoded.hidden)}
    for i, state in enumerate(states):
        if hidden or i == len(states) - 1:
            outputs[f"hidden {i}"] = state.astype(jnp.float32)
    if attentions:
        mask = attention_mask(inputs.sequence_ids, config.causal)
        angles = rotary_angles(config, inputs.position_ids)
        for i, layer in enumerate(trunk.encoder.unstacked()):
            x = layer.attention_layer_norm(states[i], config.dtype) if config.norm == "pre" else states[i]
            of_both = None if angles is None else Angles(angles, angles)
            outputs[f"attention {i}"] = layer.attention.weights(x, x, mask, of_both)
    return outputs
