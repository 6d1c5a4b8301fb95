"""Which tokens are hidden, decided on the device (Devlin et al. 2018, 3.1 and A.1; SpanBERT for spans).

All three units are one mechanism: every token gets a rank, and the tokens of lowest rank are predicted, as many as
the budget of their sequence. The ranks are random by token, by word, or by the first random span that covers a token.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from bert_jax.data.pretraining.packing import Packing, prediction_budgets

MAX_SPAN = 10  # SpanBERT (Joshi et al. 2020): lengths from a geometric distribution, p = 0.2, cut off at 10
SPAN_P = 0.2


@dataclass(frozen=True)
class Masking:
    """Numbers of the procedure; `special_ids`, [CLS] and [SEP], are never predicted."""

    rate: float
    mask_share: float
    random_share: float
    max_predictions: int
    unit: str  # token | word | span
    mask_id: int
    special_ids: tuple[int, ...]
    vocab_size: int


def mask_tokens(
    input_ids: Int[Array, "B L"],
    sequence_ids: Int[Array, "B L"],
    is_continuation: Bool[np.ndarray, " V"],
    masking: Masking,
    key: Key[Array, ""],
    *,
    packing: Packing | None = None,
) -> dict[str, Array]:
    """Hides tokens of each row; padding is where `sequence_ids` is 0.

    Without `packing` a row is one sequence and P is `max_predictions` or L; with it, there are up to
    `packing.sequences` in a row, and P is `packing.predictions`.

    Returns `input_ids` [B, L] as the model sees them, and of at most P predictions a row, in order of position,
    `masked_positions`, `masked_labels` [B, P] int32 and `masked_weights` [B, P] float32; unused places are 0, 0, 0.

    A sequence's budget is round(rate × its tokens, special ones included), at least 1 and at most `max_predictions`, as
    in the original; it is the same whatever else is in the row. Words are taken whole or not at all, so a budget may
    not be used up; if all are over it, one is cut to fit.
    """
    rank_key, show_key, random_key = jax.random.split(key, 3)
    batch, length = input_ids.shape
    sequences, predictions = 1, min(masking.max_predictions, length)
    if packing is not None:
        sequences, predictions = packing.sequences, packing.predictions
    special = jnp.isin(input_ids, jnp.asarray(masking.special_ids)) | (sequence_ids == 0)
    ordinary = _count(jnp.where(special, 0, sequence_ids), sequences)
    budgets = prediction_budgets(masking.rate, masking.max_predictions, length)
    budget = jnp.minimum(jnp.take(jnp.asarray(budgets), _count(sequence_ids, sequences)), ordinary)

    unit = _units(input_ids, special, jnp.asarray(is_continuation), masking.unit)
    rank = _ranks(unit, sequence_ids, masking.unit, rank_key)
    own = jnp.maximum(sequence_ids - 1, 0)  # its own sequence, from 0
    if masking.unit == "word":  # words over the budget come last: they are cut, and only where there is nothing else
        rank += _size(unit) > jnp.take_along_axis(budget, own, axis=1)
    # By sequence, then by rank; stable, so that the pieces of a word stay together. What is special comes last.
    places = jnp.broadcast_to(jnp.arange(length)[None], unit.shape)
    keys = (jnp.where(special, sequences, own), rank, places)
    sequence, _, order = jax.lax.sort(keys, dimension=1, is_stable=True, num_keys=2)
    pad = ((0, 0), (0, 1))  # for what is special: budget 0
    first = jnp.take_along_axis(jnp.pad(jnp.cumsum(ordinary, axis=1) - ordinary, pad), sequence, axis=1)
    chosen = places - first < jnp.take_along_axis(jnp.pad(budget, pad), sequence, axis=1)
    if masking.unit == "word":
        chosen &= _whole(unit, order, chosen, first)
    # A row's chosen places come first, in order of position; the rest is filled up with place 0.
    positions = jnp.sort(jnp.where(chosen, order, length), axis=1)[:, :predictions]
    weights = positions < length
    positions = jnp.where(weights, positions, 0)
    labels = jnp.where(weights, jnp.take_along_axis(input_ids, positions, axis=1), 0)

    u = jax.random.uniform(show_key, labels.shape)
    randoms = jax.random.randint(random_key, labels.shape, 0, masking.vocab_size, jnp.int32)
    shown = jnp.where(u < masking.mask_share, masking.mask_id, labels)
    shown = jnp.where((u >= masking.mask_share) & (u < masking.mask_share + masking.random_share), randoms, shown)
    rows = jnp.arange(batch)[:, None]
    # Unused places are written past the end, which `mode="drop"` leaves out.
    masked = input_ids.at[rows, jnp.where(weights, positions, length)].set(shown, mode="drop")
    return {
        "input_ids": masked,
        "masked_positions": positions.astype(jnp.int32),
        "masked_labels": labels,
        "masked_weights": weights.astype(jnp.float32),
    }


def _units(input_ids, special, is_continuation, unit) -> Int[Array, "B L"]:
    """Number of the unit that a token belongs to: its place, or the place of its word's first piece."""
    places = jnp.broadcast_to(jnp.arange(input_ids.shape[1])[None], input_ids.shape)
    if unit == "token":
        return places
    # After a special token a word begins, whatever the piece: a truncated second part may start inside a word.
    after_special = jnp.pad(special, ((0, 0), (1, 0)), constant_values=True)[:, :-1]
    starts = ~jnp.take(is_continuation, input_ids) | special | after_special
    return jax.lax.cummax(jnp.where(starts, places, 0), axis=1)


def _count(sequence_ids: Int[Array, "B L"], sequences: int) -> Int[Array, "B S"]:
    """Tokens of each sequence."""
    return jnp.sum(sequence_ids[:, :, None] == jnp.arange(1, sequences + 1)[None, None], axis=1)


def _ranks(
    unit: Int[Array, "B L"], sequence_ids: Int[Array, "B L"], kind: str, key: Key[Array, ""]
) -> Float[Array, "B L"]:
    score_key, length_key = jax.random.split(key)
    scores = jax.random.uniform(score_key, unit.shape)
    scores = jnp.take_along_axis(scores, unit, axis=1)  # one score a unit
    if kind != "span":
        return scores
    # A span starts at every word; of the spans that cover a word, the one with the lowest score decides.
    u = jax.random.uniform(length_key, unit.shape, minval=1e-7)
    lengths = jnp.clip(jnp.ceil(jnp.log(u) / np.log(1 - SPAN_P)), 1, MAX_SPAN)
    starts = unit == jnp.arange(unit.shape[1])[None]
    word = jnp.cumsum(starts, axis=1)  # words are counted, so that spans are lengths in words
    ends = jnp.where(starts, word + lengths, 0)
    covers = (word[:, :, None] <= word[:, None, :]) & (word[:, None, :] < ends[:, :, None])  # [B, start, covered]
    covers &= sequence_ids[:, :, None] == sequence_ids[:, None, :]
    return jnp.min(jnp.where(covers & starts[:, :, None], scores[:, :, None], jnp.inf), axis=1)


def _size(unit: Int[Array, "B L"]) -> Int[Array, "B L"]:
    """For each token, how many tokens its unit has."""
    rows = jnp.arange(unit.shape[0])[:, None]
    return jnp.take_along_axis(jnp.zeros_like(unit).at[rows, unit].add(1), unit, axis=1)


def _whole(unit, order, chosen, first) -> Bool[Array, "B L"]:
    """Of the chosen pieces, those whose word is chosen with all its pieces, and those of the sequence's first word."""
    rows = jnp.arange(unit.shape[0])[:, None]
    words = jnp.take_along_axis(unit, order, axis=1)
    taken = jnp.zeros_like(unit).at[rows, words].add(chosen.astype(unit.dtype))
    complete = jnp.take_along_axis(taken, words, axis=1) == jnp.take_along_axis(_size(unit), order, axis=1)
    return complete | (words == jnp.take_along_axis(words, jnp.minimum(first, words.shape[1] - 1), axis=1))
