"""The instances of create_pretraining_data.py (google-research/bert), bit for bit: REFERENCE.md §2.1.

One `random.Random` drives everything, so the order of the draws is part of the contract: do not reorder what a comment
calls a draw. All documents must fit into memory, as in the original.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from random import Random
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from bert_jax.data.tokenizers.encoding import CONTINUATION

CLS, SEP, MASK = "[CLS]", "[SEP]", "[MASK]"
_TRIES = 10  # to draw another document before the original gives up and takes the same one

Document = Sequence[Sequence[str]]  # sentences of tokens


class Instance(NamedTuple):
    """One finished row, unpadded; `positions` ascend and `labels` are the tokens that stood there."""

    tokens: list[str]
    segment_ids: list[int]
    is_random_next: bool
    positions: list[int]
    labels: list[str]


@dataclass(frozen=True)
class OriginalSettings:
    """The options of the script, named as in our config; the comments give the script's flags."""

    sequence_length: int  # max_seq_length
    max_predictions: int  # max_predictions_per_seq
    dupe_factor: int
    short_sequence_rate: float  # short_seq_prob
    mask_rate: float  # masked_lm_prob
    whole_word: bool  # do_whole_word_mask
    continuation_prefix: str = CONTINUATION
    random_next_rate: float = 0.5
    mask_share: float = 0.8
    keep_share_of_rest: float = 0.5  # of the predicted tokens that are not shown as [MASK]

    @classmethod
    def from_config(cls, data: ConfigDict, continuation_prefix: str = CONTINUATION) -> "OriginalSettings":
        sizes = data.sequence_length, data.max_predictions_per_sequence, data.dupe_factor
        rest = data.keep_share + data.random_share
        kept = data.keep_share / rest if rest else 0.5
        masking = data.mask_rate, data.mask_unit == "word", continuation_prefix
        return cls(*sizes, data.short_sequence_rate, *masking, data.random_next_rate, data.mask_share, kept)


def create_instances(
    documents: Sequence[Document],
    vocabulary: Sequence[str],
    rng: Random,
    settings: OriginalSettings,
    store: Callable[[Instance], Any] = lambda instance: instance,
) -> list[Any]:
    """Returns all instances in their final order. `documents` is not changed; those without tokens are skipped.

    `store` turns each instance into what is kept of it (bytes, say), since the final shuffle needs them all.
    """
    shuffled = [document for document in documents if len(document)]
    rng.shuffle(shuffled)
    script = _Script(shuffled, vocabulary, rng, settings)
    instances = (
        instance
        for _ in range(settings.dupe_factor)
        for index in range(len(shuffled))
        for instance in script.document_instances(index)
    )
    stored = [store(instance) for instance in instances]
    rng.shuffle(stored)
    return stored


@dataclass(frozen=True)
class _Script:
    """What the functions of the script share."""

    documents: Sequence[Document]
    vocabulary: Sequence[str]
    rng: Random
    settings: OriginalSettings

    def document_instances(self, index: int) -> list[Instance]:
        document, rng = self.documents[index], self.rng
        limit = self.settings.sequence_length - 3
        target = limit
        if rng.random() < self.settings.short_sequence_rate:  # once a document, not once an instance
            target = rng.randint(2, limit)
        instances = []
        chunk: list[Sequence[str]] = []
        position = length = 0
        while position < len(document):
            chunk.append(document[position])
            length += len(document[position])
            if position == len(document) - 1 or length >= target:
                a, b, is_random_next, unused = self._pair(chunk, index, target)
                position -= unused
                self._truncate(a, b, limit)
                tokens = [CLS, *a, SEP, *b, SEP]
                segment_ids = [0] * (len(a) + 2) + [1] * (len(b) + 1)
                masked, positions, labels = self._mask(tokens)
                instances.append(Instance(masked, segment_ids, is_random_next, positions, labels))
                chunk, length = [], 0
            position += 1
        return instances

    def _pair(self, chunk: Sequence[Sequence[str]], index: int, target: int) -> tuple[list[str], list[str], bool, int]:
        """Returns A, B, whether B is random, and how many sentences of the chunk are to be used again."""
        rng = self.rng
        a_end = rng.randint(1, len(chunk) - 1) if len(chunk) >= 2 else 1
        a = list(chain.from_iterable(chunk[:a_end]))
        # A single sentence takes no draw: the order of the two conditions matters.
        if len(chunk) > 1 and rng.random() >= self.settings.random_next_rate:
            return a, list(chain.from_iterable(chunk[a_end:])), False, 0
        other = index
        for _ in range(_TRIES):
            other = rng.randint(0, len(self.documents) - 1)
            if other != index:
                break
        document = self.documents[other]  # the same one after ten bad draws, and still labelled random
        b: list[str] = []
        for sentence in document[rng.randint(0, len(document) - 1) :]:
            b.extend(sentence)
            if len(b) >= target - len(a):
                break
        return a, b, True, len(chunk) - a_end

    def _truncate(self, a: list[str], b: list[str], limit: int) -> None:
        """Removes the first or the last token of the longer part (B if equal), one draw per token, until both fit.

        The lengths are those of `pair_lengths`, but each draw decides an end of the part that is longer at that moment,
        so the two parts cannot be cut one after the other.
        """
        while len(a) + len(b) > limit:
            longer = a if len(a) > len(b) else b
            del longer[0 if self.rng.random() < 0.5 else -1]

    def _mask(self, tokens: list[str]) -> tuple[list[str], list[int], list[str]]:
        """Returns (masked tokens, positions, labels). The number predicted counts [CLS] and [SEP], and rounds half to
        even."""
        settings = self.settings
        candidates: list[list[int]] = []
        for position, token in enumerate(tokens):
            if token in (CLS, SEP):
                continue
            # The last candidate may end before a [SEP]: as in the original, a B that starts inside a word joins A's
            # last word.
            if settings.whole_word and candidates and token.startswith(settings.continuation_prefix):
                candidates[-1].append(position)
            else:
                candidates.append([position])
        self.rng.shuffle(candidates)
        wanted = min(settings.max_predictions, max(1, round(len(tokens) * settings.mask_rate)))
        shown = list(tokens)
        chosen: list[int] = []
        for candidate in candidates:
            if len(chosen) >= wanted:
                break
            if len(chosen) + len(candidate) > wanted:
                continue
            for position in candidate:
                chosen.append(position)
                shown[position] = self._replacement(tokens[position])
        chosen.sort()
        return shown, chosen, [tokens[position] for position in chosen]

    def _replacement(self, token: str) -> str:
        rng = self.rng
        if rng.random() < self.settings.mask_share:
            return MASK
        if rng.random() < self.settings.keep_share_of_rest:
            return token
        return self.vocabulary[rng.randint(0, len(self.vocabulary) - 1)]  # specials and [unusedN] included
