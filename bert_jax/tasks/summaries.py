"""Which sentences make a summary: by scores, by position, by chance, or knowing the reference (an oracle)."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random

from ml_collections import ConfigDict

from bert_jax.data.labelled.documents import has_words
from bert_jax.data.labelled.examples import DocumentExample
from bert_jax.tasks.text_scores import rouge_words


@dataclass(frozen=True)
class Budget:
    """How long a summary is: a number of sentences, a share of the document's, or a number of words."""

    sentences: int
    share: float | None = None
    words: int | None = None

    @classmethod
    def from_options(cls, options: ConfigDict) -> "Budget":
        return cls(options.sentences, options.share, options.words)

    def most_sentences(self, count: int) -> int:
        """Returns how many of `count` sentences may be chosen. A share is rounded up."""
        if self.words is not None:
            return count
        return self.sentences if self.share is None else math.ceil(round(self.share * count, 6))

    def has_room(self, chosen: Sequence[str], sentence: str) -> bool:
        """Returns whether another sentence keeps to the number of words; one sentence is always allowed."""
        if self.words is None or not chosen:
            return True
        return sum(len(one.split()) for one in [*chosen, sentence]) <= self.words


def select(
    sentences: Sequence[str],
    order: Iterable[int],
    budget: Budget,
    tokens: Sequence[Sequence[object]] | None = None,
) -> list[int]:
    """Returns the numbers of the sentences of a summary, in the order of the document: the first ones of `order` that
    the budget has room for and that have words.

    With the `tokens` of every sentence, one that has three consecutive tokens in common with a chosen one is left out
    (trigram blocking, Paulus et al. 2018).
    """
    chosen: list[int] = []
    seen: set[tuple[object, ...]] = set()
    most = budget.most_sentences(len(sentences))
    for number in order:
        if len(chosen) == most:
            break
        own = set() if tokens is None else _trigrams(tokens[number])
        fits = budget.has_room([sentences[i] for i in chosen], sentences[number])
        if has_words(sentences[number]) and fits and not own & seen:
            chosen.append(number)
            seen |= own
    return sorted(chosen)


def oracle(sentences: Sequence[str], summary: Sequence[str], budget: Budget) -> list[int]:
    """Returns the numbers of the sentences that are added one after the other, each the one that raises ROUGE-1 +
    ROUGE-2 most, while it rises and the budget has room (Nallapati et al. 2017, section 4).

    Pairs of words are counted within sentences. Of equal sentences the first is taken.
    """
    words, referring = [rouge_words(x) for x in sentences], [rouge_words(x) for x in summary]
    parts = [
        _Overlap([_grams(one, size) for one in words], [_grams(one, size) for one in referring]) for size in (1, 2)
    ]
    best, chosen = 0.0, list[int]()
    while len(chosen) < budget.most_sentences(len(sentences)):
        taken, found = [sentences[i] for i in chosen], None
        for number, sentence in enumerate(sentences):
            if number in chosen or not words[number] or not budget.has_room(taken, sentence):
                continue
            score = sum(part.f_measure(number) for part in parts)
            if score > best + 1e-12:
                best, found = score, number
        if found is None:
            break
        chosen.append(found)
        for part in parts:
            part.add(found)
    return sorted(chosen)


def baselines(examples: Sequence[DocumentExample], budget: Budget, seed: int) -> dict[str, list[list[int]]]:
    """Returns the numbers of the sentences of each example by name of the method: `lead` takes the first ones, `random`
    any, by the seed and the number of the example, and `oracle` knows the reference. All have the same budget."""
    found: dict[str, list[list[int]]] = {"lead": [], "random": [], "oracle": []}
    for number, example in enumerate(examples):
        order = list(range(len(example.sentences)))
        found["lead"].append(select(example.sentences, order, budget))
        Random(f"{seed} {number}").shuffle(order)
        found["random"].append(select(example.sentences, order, budget))
        found["oracle"].append(oracle(example.sentences, example.summary or (), budget))
    return found


class _Overlap:
    """The n-grams that chosen sentences have in common with a summary, each at most as often as it has them."""

    def __init__(self, sentences: Sequence[list[tuple[str, ...]]], summary: Sequence[list[tuple[str, ...]]]):
        self._reference = Counter(gram for one in summary for gram in one)
        self._of_sentences = [Counter(gram for gram in one if gram in self._reference) for one in sentences]
        self._sizes, self._reference_size = [len(one) for one in sentences], self._reference.total()
        self._chosen: Counter[tuple[str, ...]] = Counter()
        self._common = self._size = 0

    def f_measure(self, number: int) -> float:
        """Returns the F-measure once a sentence has been added."""
        common, size = self._common + self._gain(number), self._size + self._sizes[number]
        return 2 * common / (size + self._reference_size) if common else 0.0

    def add(self, number: int) -> None:
        self._common, self._size = self._common + self._gain(number), self._size + self._sizes[number]
        self._chosen.update(self._of_sentences[number])

    def _gain(self, number: int) -> int:
        have, most = self._chosen, self._reference
        return sum(max(0, min(n, most[gram] - have[gram])) for gram, n in self._of_sentences[number].items())


def _grams(words: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[i:] for i in range(size)), strict=False))


def _trigrams(tokens: Sequence[object]) -> set[tuple[object, ...]]:
    return set(zip(tokens, tokens[1:], tokens[2:], strict=False))
