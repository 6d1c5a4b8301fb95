"""Chooses and hides the tokens to predict, on the device (Devlin et al. 2018, 3.1 and A.1; SpanBERT for spans).

All three units use one mechanism: every token gets a rank, and in each sequence the tokens of lowest rank are
predicted, as many as the sequence's budget. The ranks are random per token, per word, or per span that covers a token.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key
from ml_collections import ConfigDict

from bert_jax.data.pretraining.packing import Packing, prediction_budgets
from bert_jax.data.tokenizers.tokenizer import Tokenizer

# SpanBERT (Joshi et al. 2020): lengths from a geometric distribution, cut off at the maximum
MAX_SPAN = 10  # words
# Of each language, its tokens in the first entries of a row, and their number.
WordsOfLanguages = tuple[Int[np.ndarray, "K V"], Int[np.ndarray, " K"]]
SPAN_P = 0.2


def mask_tokens(
    input_ids: Int[Array, "B L"],
    sequence_ids: Int[Array, "B L"],
    data: ConfigDict,
    tokenizer: Tokenizer,
    key: Key[Array, ""],
    *,
    packing: Packing | None = None,
    languages: tuple[Int[Array, "B L"], WordsOfLanguages] | None = None,
) -> dict[str, Array]:
    """Hides tokens of each row as `data`, the group of the config, says; padding is where `sequence_ids` is 0.

    Without `packing` a row is one sequence and P is min(data.max_predictions_per_sequence, L). With `packing` a row has
    up to `packing.sequences` of them, and P is `packing.predictions`. With `languages`, the numbers of the tokens'
    languages and the words of each, a random token is one of the words of the language of the token that it replaces.

    Returns `input_ids` [B, L] as the model sees them and up to P predictions per row in order of position:
    `masked_positions` and `masked_labels` [B, P] int32, `masked_weights` [B, P] float32; unused entries are 0.

    A sequence's budget is round(rate × its tokens, special ones included), at least 1 and at most
    data.max_predictions_per_sequence, as in the original; it does not depend on the rest of the row. Words are taken
    whole or not at all, so a budget may not be used up; if every word is larger than the budget, one is cut to fit.
    """
    # One key per decision: which tokens, what is shown in their place, which random token. The shapes of the draws do
    # not depend on the data, so that a step is compiled once.
    rank_key, show_key, random_key = jax.random.split(key, 3)
    batch, length = input_ids.shape
    most = data.max_predictions_per_sequence
    sequences, predictions = 1, min(most, length)
    if packing is not None:
        sequences, predictions = packing.sequences, packing.predictions
    special = jnp.isin(input_ids, jnp.asarray((tokenizer.cls_id, tokenizer.sep_id))) | (sequence_ids == 0)
    ordinary = _count(jnp.where(special, 0, sequence_ids), sequences)
    budgets = prediction_budgets(data.mask_rate, most, length)
    budget = jnp.minimum(jnp.take(jnp.asarray(budgets), _count(sequence_ids, sequences)), ordinary)

    unit = _units(input_ids, special, jnp.asarray(tokenizer.is_continuation), data.mask_unit)
    rank = _ranks(unit, sequence_ids, data.mask_unit, rank_key)
    own = jnp.maximum(sequence_ids - 1, 0)  # number of a token's sequence, from 0
    if data.mask_unit == "word":  # ranks are below 1, so words over the budget come last: cut only if nothing else fits
        rank += (_size(unit) > jnp.take_along_axis(budget, own, axis=1)).astype(rank.dtype)
    order, first, chosen = _chosen(rank, special, own, ordinary, budget)
    if data.mask_unit == "word":
        chosen &= _whole(unit, order, chosen, first)
    # The chosen positions in ascending order. What is not chosen is L, which sorts behind them and then becomes 0.
    positions = jnp.sort(jnp.where(chosen, order, length), axis=1)[:, :predictions]
    weights = positions < length
    positions = jnp.where(weights, positions, 0)
    labels = jnp.where(weights, jnp.take_along_axis(input_ids, positions, axis=1), 0)

    own = None if languages is None else (jnp.take_along_axis(languages[0], positions, axis=1), languages[1])
    shown = _shown(labels, _randoms(labels, own, tokenizer, random_key), data, tokenizer, show_key)
    # Unused entries are written past the end, which `mode="drop"` ignores; at position 0 they would overwrite [CLS].
    places = jnp.arange(batch)[:, None], jnp.where(weights, positions, length)
    return {
        "input_ids": input_ids.at[places].set(shown, mode="drop"),
        "masked_positions": positions.astype(jnp.int32),
        "masked_labels": labels,
        "masked_weights": weights.astype(jnp.float32),
    }


def _chosen(
    rank: Float[Array, "B L"],
    special: Bool[Array, "B L"],
    own: Int[Array, "B L"],
    ordinary: Int[Array, "B S"],
    budget: Int[Array, "B S"],
) -> tuple[Int[Array, "B L"], Int[Array, "B L"], Bool[Array, "B L"]]:
    """Returns the positions of each row by sequence and rank; where in this order the sequence of each begins; and
    whether it is among the first of its sequence, as many as the budget."""
    # One sort serves all sequences of a row: by sequence, then by rank. It is stable, so that the pieces of a word,
    # which have the same rank, stay together and in order. Special tokens come last: they get the number of a sequence
    # that does not exist.
    every_position = jnp.broadcast_to(jnp.arange(rank.shape[1])[None], rank.shape)
    keys = (jnp.where(special, ordinary.shape[1], own), rank, every_position)
    sequence, _, order = jax.lax.sort(keys, dimension=1, is_stable=True, num_keys=2)
    pad = ((0, 0), (0, 1))  # the sequence of special tokens: it begins at the end and has budget 0
    # Where each sequence begins in the sorted row; its first `budget` tokens from there are chosen.
    first = jnp.take_along_axis(jnp.pad(jnp.cumsum(ordinary, axis=1) - ordinary, pad), sequence, axis=1)
    return order, first, every_position - first < jnp.take_along_axis(jnp.pad(budget, pad), sequence, axis=1)


def _randoms(
    labels: Int[Array, "B P"],
    languages: tuple[Int[Array, "B P"], WordsOfLanguages] | None,
    tokenizer: Tokenizer,
    key: Key[Array, ""],
) -> Int[Array, "B P"]:
    """Returns a random token for each place: any one, or one of the words of its language."""
    if languages is None:
        return jax.random.randint(key, labels.shape, 0, tokenizer.vocab_size, jnp.int32)
    own, (table, counts) = languages
    places = jax.random.randint(key, own.shape, 0, jnp.take(jnp.asarray(counts), own), jnp.int32)
    return jnp.asarray(table)[own, places]


def _shown(
    labels: Int[Array, "B P"],
    randoms: Int[Array, "B P"],
    data: ConfigDict,
    tokenizer: Tokenizer,
    key: Key[Array, ""],
) -> Int[Array, "B P"]:
    """Returns what the model sees in place of the chosen tokens: [MASK], a random token, or the token itself."""
    u = jax.random.uniform(key, labels.shape)
    shown = jnp.where(u < data.mask_share, tokenizer.mask_id, labels)
    return jnp.where((u >= data.mask_share) & (u < data.mask_share + data.random_share), randoms, shown)


def _units(input_ids, special, is_continuation, unit) -> Int[Array, "B L"]:
    """Returns the number of each token's unit: the token's position, or that of its word's first piece."""
    positions = jnp.broadcast_to(jnp.arange(input_ids.shape[1])[None], input_ids.shape)
    if unit == "token":
        return positions
    # A word begins after a special token even with a continuation piece: a truncated second part may start inside a
    # word, and its piece must not join a word of the first part.
    after_special = jnp.pad(special, ((0, 0), (1, 0)), constant_values=True)[:, :-1]
    starts = ~jnp.take(is_continuation, input_ids) | special | after_special
    return jax.lax.cummax(jnp.where(starts, positions, 0), axis=1)


def _count(sequence_ids: Int[Array, "B L"], sequences: int) -> Int[Array, "B S"]:
    """Returns the number of tokens of each sequence."""
    return jnp.sum(sequence_ids[:, :, None] == jnp.arange(1, sequences + 1)[None, None], axis=1)


def _ranks(
    unit: Int[Array, "B L"], sequence_ids: Int[Array, "B L"], kind: str, key: Key[Array, ""]
) -> Float[Array, "B L"]:
    """Returns ranks in [0, 1), equal within a unit; tokens that no span covers have rank infinity."""
    score_key, length_key = jax.random.split(key)
    scores = jax.random.uniform(score_key, unit.shape)
    scores = jnp.take_along_axis(scores, unit, axis=1)  # one score per unit
    if kind != "span":
        return scores
    # A span starts at every word, with a random length and a random score; of the spans that cover a word, the one with
    # the lowest score gives the rank. So spans are taken in random order until the budget is used up, without a loop.
    u = jax.random.uniform(length_key, unit.shape, minval=1e-7)
    # The inverse of the geometric distribution's cumulative function; `minval` keeps log(u) finite.
    lengths = jnp.clip(jnp.ceil(jnp.log(u) / np.log(1 - SPAN_P)), 1, MAX_SPAN)
    starts = unit == jnp.arange(unit.shape[1])[None]
    word = jnp.cumsum(starts, axis=1)  # words are counted, so that spans are lengths in words
    ends = jnp.where(starts, word.astype(lengths.dtype) + lengths, 0)
    covers = word[:, :, None] <= word[:, None, :]  # [B, start, covered]
    covers &= word[:, None, :].astype(ends.dtype) < ends[:, :, None]
    covers &= sequence_ids[:, :, None] == sequence_ids[:, None, :]
    return jnp.min(jnp.where(covers & starts[:, :, None], scores[:, :, None], jnp.inf), axis=1)


def _size(unit: Int[Array, "B L"]) -> Int[Array, "B L"]:
    """Returns for each token how many tokens its unit has."""
    rows = jnp.arange(unit.shape[0])[:, None]
    return jnp.take_along_axis(jnp.zeros_like(unit).at[rows, unit].add(1), unit, axis=1)


def _whole(unit, order, chosen, first) -> Bool[Array, "B L"]:
    """Returns which chosen pieces remain: those whose word is chosen with all of its pieces, and those of the
    sequence's first word, so that every sequence predicts something."""
    rows = jnp.arange(unit.shape[0])[:, None]
    words = jnp.take_along_axis(unit, order, axis=1)
    taken = jnp.zeros_like(unit).at[rows, words].add(chosen.astype(unit.dtype))
    complete = jnp.take_along_axis(taken, words, axis=1) == jnp.take_along_axis(_size(unit), order, axis=1)
    return complete | (words == jnp.take_along_axis(words, jnp.minimum(first, words.shape[1] - 1), axis=1))
