"""Log-likelihoods of texts by a masked language model (Salazar et al. 2020; Kauf and Ivanova 2023).

The pseudo-log-likelihood of a text is the sum of log p(token | all other tokens) over its tokens, each hidden in turn.
That is the method "original" of METHODS. The later pieces of a word give away an earlier one; by the method
"within_word", the default, the later pieces of its word are hidden too while a piece is scored. [CLS] and [SEP] are not
scored.

In a left-to-right model (model.causal) no token sees what follows it. The same sum is then the log-likelihood of the
text by the chain rule.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int, Int32

from bert_jax import backend
from bert_jax.config import UserError
from bert_jax.data.labelled.minimal_pairs import Accuracies, MinimalPair, accuracies
from bert_jax.data.tokenizers.tokenizer import Tokenizer
from bert_jax.models.bert import Model, TrunkInputs
from bert_jax.models.heads import padded_decoder, vocabulary_logits

HostBatch = dict[str, np.ndarray]
METHODS = ("within_word", "original")


def hidden_token_batches(
    texts: Sequence[Int32[np.ndarray, " _"]],
    tokenizer: Tokenizer,
    lengths: Sequence[int],
    rows: Callable[[int], int],
    method: str = "within_word",
) -> Iterator[HostBatch]:
    """Yields batches of copies of the texts, one copy for each token, which is hidden in it; short texts come first.

    `texts` are token ids with [CLS] and [SEP]. A batch is as wide as the smallest fitting one of `lengths`, which
    ascend, and has `rows(length)` rows: what a trunk reads; `masked_positions` and `masked_labels` [B, 1]; and
    `text_ids` [B], the number of the text, where −1 is a row that fills up the batch.
    """
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for shorter, length in zip([0, *lengths], lengths, strict=False):
        fitting = (i for i in order if shorter < len(texts[i]) <= length)
        copies = (_copies(texts[i], i, tokenizer, length, method) for i in fitting)
        yield from _cut(copies, rows(length))


def token_log_probabilities(model: Model, batch: dict[str, Array]) -> Float[Array, "B P"]:
    """Returns log p(label) at each row's masked positions, in float32."""
    hidden = model.trunk.encode(TrunkInputs.from_batch(batch), places=batch["masked_positions"]).hidden
    mlm = model.heads["mlm"]
    table, bias = mlm.table_and_bias(model.trunk.embeddings.word.embedding[...])
    decoder = padded_decoder(table, bias, backend.current().vocabulary_multiple)
    logits = vocabulary_logits(mlm.vectors(hidden), *decoder, model.trunk.config.dtype)
    of_label = jnp.take_along_axis(logits, batch["masked_labels"][..., None], axis=-1)[..., 0]
    return of_label - jax.nn.logsumexp(logits, axis=-1)


def token_log_likelihoods(
    found: Iterable[tuple[Int[np.ndarray, " B"], Float[np.ndarray, "B P"]]], count: int
) -> list[Float64[np.ndarray, " _"]]:
    """Returns the log-probabilities of the tokens of each of `count` texts, in their order, from the `text_ids` and the
    log-probabilities of every batch."""
    parts: list[list[np.ndarray]] = [[] for _ in range(count)]
    for text_ids, log_probabilities in found:
        for number in np.unique(text_ids[text_ids >= 0]):
            parts[number].append(log_probabilities[text_ids == number].reshape(-1).astype(np.float64))
    return [np.concatenate(own) if own else np.zeros(0) for own in parts]


def text_log_likelihoods(
    found: Iterable[tuple[Int[np.ndarray, " B"], Float[np.ndarray, "B P"]]], count: int
) -> Float64[np.ndarray, " N"]:
    """Returns the sums of `token_log_likelihoods`."""
    return np.asarray([own.sum() for own in token_log_likelihoods(found, count)])


class EncodedPairs:
    """Minimal pairs as token ids. Sentences of the same tokens, such as two that differ in unknown words, are one text
    of `texts` and have one score, to the last bit.

    Raises UserError, with file and line, for a sentence that has no tokens or more than `most`, with [CLS] and [SEP].
    """

    def __init__(self, pairs: Sequence[MinimalPair], tokenizer: Tokenizer, most: int):
        self.pairs, self.tokenizer, self.most = pairs, tokenizer, most
        sentences = [(pair, text) for pair in pairs for text in (pair.good, pair.bad)]
        numbers: dict[tuple[int, ...], int] = {}
        of_sentence = []
        for (pair, text), ids in zip(sentences, tokenizer.encode_words([text for _, text in sentences]), strict=True):
            if not 0 < len(ids) <= most - 2:
                size = f"{len(ids) + 2} tokens, over {most}, the model's positions" if ids else "no tokens"
                raise UserError(f"{pair.origin}: '{text[:60]}' has {size}; leave out this line")
            of_sentence.append(numbers.setdefault(tuple(ids), len(numbers)))
        self.texts = [tokenizer.row(ids).ids for ids in numbers]
        self.good, self.bad = np.reshape(of_sentence, (-1, 2)).T

    def batches(self, rows: int, length: int) -> Iterator[HostBatch]:
        """Yields batches with a row per token of the texts, each with about as many tokens as `rows` of `length`."""
        lengths = row_lengths(self.most)
        return hidden_token_batches(self.texts, self.tokenizer, lengths, lambda width: rows * max(1, length // width))

    def accuracies(self, scores: Float64[np.ndarray, " N"]) -> Accuracies:
        """Returns the shares of right pairs from the scores of the texts. A pair is right if its good sentence scores
        higher; equal scores are wrong."""
        return accuracies(self.pairs, scores[self.good] > scores[self.bad])


def row_lengths(most: int) -> list[int]:
    """Returns 8, 12, 16, 24, 32, 48, … and `most`: the widths of batches, each of which has a program."""
    every = (size << power for power in range(2, 20) for size in (2, 3))
    return [*itertools.takewhile(lambda length: length < most, every), most]


def _copies(ids: Int32[np.ndarray, " N"], number: int, tokenizer: Tokenizer, length: int, method: str) -> HostBatch:
    """Returns one row for each token but [CLS] and [SEP]."""
    size, places = len(ids), np.arange(1, len(ids) - 1)
    word = np.cumsum(~tokenizer.is_continuation[ids]) if method == "within_word" else np.arange(size)
    is_hidden = (word[places, None] == word[None]) & (np.arange(size)[None] >= places[:, None])
    rows = np.full((len(places), length), tokenizer.pad_id, np.int32)
    rows[:, :size] = np.where(is_hidden, tokenizer.mask_id, ids[None])
    return {
        "input_ids": rows,
        "sequence_ids": np.broadcast_to((np.arange(length) < size).astype(np.int32), rows.shape),
        "masked_positions": places[:, None].astype(np.int32),
        "masked_labels": ids[places, None],
        "text_ids": np.full(len(places), number, np.int32),
    }


def _cut(parts: Iterable[HostBatch], size: int) -> Iterator[HostBatch]:
    """Yields the rows of all parts in batches of `size`."""
    waiting: list[HostBatch] = []
    count = 0
    for part in parts:
        waiting.append(part)
        count += len(part["text_ids"])
        if count >= size:
            whole, begin = _joined(waiting), count - count % size
            for start in range(0, begin, size):
                yield _complete({name: x[start : start + size] for name, x in whole.items()})
            waiting, count = [{name: x[begin:] for name, x in whole.items()}], count - begin
    if count:
        last, missing = _joined(waiting), size - count
        filled = {name: np.pad(x, ((0, missing), *((0, 0),) * (x.ndim - 1))) for name, x in last.items()}
        filled["text_ids"][count:] = -1
        yield _complete(filled)


def _joined(parts: Sequence[HostBatch]) -> HostBatch:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _complete(batch: HostBatch) -> HostBatch:
    """Adds positions and token types, which are alike in all rows."""
    ids = batch["input_ids"]
    positions = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
    return batch | {"position_ids": positions, "token_type_ids": np.zeros_like(ids)}
