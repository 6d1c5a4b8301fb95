"""The score: nats per character of the hidden words of held-out documents, whatever the vocabulary of the model.

The pieces of all hidden words of a context are [MASK] at the same time, and the score is the sum of −log p of those
pieces over the characters of the words. A piece that also covers what stands beside a word is hidden and counts.
"""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Int32

from bert_jax import backend
from bert_jax.config import UserError
from bert_jax.data.tokenizers.tokenizer import Tokenizer
from bert_jax.inference.open import Opened, open_model
from bert_jax.lab.provenance import digest_of
from bert_jax.lab.speedrun.held_out import Context, halves
from bert_jax.tasks.likelihood import HostBatch, token_log_probabilities

# Nats for a character that the vocabulary does not know: a guess among the 65,536 of Unicode's first plane. Else a
# vocabulary would gain by knowing less.
UNKNOWN_CHARACTER = math.log(1 << 16)
_FEWEST_PLACES = 8  # columns of `masked_positions` that the rows of one width have in common are a multiple of it


@dataclass(frozen=True)
class Score:
    """What a model has on the hidden words."""

    nats_per_character: float
    words: int
    characters: int
    unknown: int  # words that the vocabulary does not know
    step: int
    model: str  # hash of the parameters


@dataclass(frozen=True)
class EncodedContext:
    """A context as token ids, with the places of the pieces that are hidden and scored. `unknown_characters` are those
    of hidden words with a piece that is [UNK], or with none; their pieces are hidden, and not scored."""

    ids: Int32[np.ndarray, " L"]
    hidden: Int32[np.ndarray, " M"]  # the places of all hidden pieces
    scored: Int32[np.ndarray, " P"]
    unknown_characters: int
    unknown_words: int


def score(path: str | Path, contexts: Sequence[Context], *, checkpoint: str = "newest", users_task: str = "") -> Score:
    """Scores a model, computing in float32. Raises UserError for one without an MLM head, or that reads left to
    right."""
    opened = open_model(path, overrides={"model.dtype": "float32"}, which=checkpoint, users_task=users_task)
    check_model(opened)
    most = min(opened.bert_config.max_position_embeddings, opened.config.data.sequence_length)
    start = time.perf_counter()
    encoded = list(encode(contexts, opened.tokenizer, most))
    program = opened.at_work.program(token_log_probabilities)
    tokens = backend.current().tokens_per_batch or 32 * most
    total = UNKNOWN_CHARACTER * sum(context.unknown_characters for context in encoded)
    for batch in batches(encoded, opened.tokenizer, most, tokens):
        weights = batch.pop("masked_weights")
        total -= float(np.sum(np.asarray(jax.device_get(program(batch)), np.float64) * weights))
    words = [word for context in contexts for word in context.hidden]
    characters = sum(stop - begin for begin, stop in words)
    logging.info("%s: %d hidden words in %.1f s", opened.path, len(words), time.perf_counter() - start)
    unknown = sum(context.unknown_words for context in encoded)
    return Score(total / characters, len(words), characters, unknown, opened.step, digest_of(opened.run))


def check_model(opened: Opened) -> None:
    """Raises UserError for a model that cannot be scored."""
    if not opened.fills_masks:
        raise UserError(f"{opened.path} has no MLM head, which is what is scored; give a pretrained model")
    if opened.bert_config.causal:
        raise UserError(f"{opened.path} reads from left to right (model.causal): the score is of masked models")


def encode(contexts: Sequence[Context], tokenizer: Tokenizer, most: int) -> Iterator[EncodedContext]:
    """Yields the contexts as rows of at most `most` tokens; one that is longer in halves, of which each is seen without
    the other. Raises UserError for a single word that is longer."""
    for context, (ids, spans) in zip(contexts, tokenizer.pieces([one.text for one in contexts]), strict=True):
        if len(ids) + 2 <= most:
            yield _encoded(context, ids, np.reshape(spans, (-1, 2)), tokenizer)
        elif len(context.words) < 2:
            raise UserError(
                f"'{context.text[:40]}' has {len(ids)} tokens, over the model's {most}; it cannot be scored"
            )
        else:
            yield from encode([half for half in halves(context) if half.hidden], tokenizer, most)


def batches(encoded: Sequence[EncodedContext], tokenizer: Tokenizer, most: int, tokens: int) -> Iterator[HostBatch]:
    """Yields batches of about so many `tokens`: what a trunk reads, `masked_positions` and `masked_labels` [B, P], and
    `masked_weights`, 0 where a row has fewer. Rows have one of four widths, each with a program."""
    widths = sorted({math.ceil(most * quarter / 4) for quarter in (1, 2, 3, 4)})
    for shorter, width in zip([0, *widths], widths, strict=False):
        fitting = [context for context in encoded if shorter < len(context.ids) <= width]
        longest = max((len(context.scored) for context in fitting), default=0)
        places = _FEWEST_PLACES * math.ceil(longest / _FEWEST_PLACES)
        size = max(1, tokens // width)
        for start in range(0, len(fitting) if places else 0, size):
            yield _batch(fitting[start : start + size], tokenizer, size, width, places)


def _encoded(context: Context, ids: Sequence[int], spans: np.ndarray, tokenizer: Tokenizer) -> EncodedContext:
    tokens = np.asarray(ids, np.int32)
    covers = _overlaps(np.asarray(context.hidden).reshape(-1, 2), spans)  # [words, pieces]
    is_unknown = (covers & (tokens == tokenizer.unk_id)).any(axis=1) | ~covers.any(axis=1)
    hidden = covers.any(axis=0)
    scored = hidden & ~covers[is_unknown].any(axis=0)
    lengths = np.array([stop - begin for begin, stop in context.hidden])
    hidden, scored = (np.flatnonzero(mask).astype(np.int32) + 1 for mask in (hidden, scored))  # + 1 for [CLS]
    characters, words = int(lengths[is_unknown].sum()), int(is_unknown.sum())
    return EncodedContext(tokenizer.row(ids).ids, hidden, scored, characters, words)


def _overlaps(words: np.ndarray, spans: np.ndarray) -> np.ndarray:
    return (spans[None, :, 0] < words[:, None, 1]) & (spans[None, :, 1] > words[:, None, 0])


def _batch(contexts: Sequence[EncodedContext], tokenizer: Tokenizer, size: int, width: int, places: int) -> HostBatch:
    ids = np.full((size, width), tokenizer.pad_id, np.int32)
    positions, labels = np.zeros((2, size, places), np.int32)
    weights, real = np.zeros((size, places)), np.zeros((size, width), np.int32)
    for row, context in enumerate(contexts):
        count = len(context.scored)
        real[row, : len(context.ids)] = 1
        ids[row, : len(context.ids)] = context.ids
        ids[row, context.hidden] = tokenizer.mask_id
        positions[row, :count], weights[row, :count] = context.scored, 1.0
        labels[row, :count] = context.ids[context.scored]
    return {
        "input_ids": ids,
        "sequence_ids": real,
        "position_ids": np.broadcast_to(np.arange(width, dtype=np.int32), ids.shape),
        "token_type_ids": np.zeros_like(ids),
        "masked_positions": positions,
        "masked_labels": labels,
        "masked_weights": weights,
    }
