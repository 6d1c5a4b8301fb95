"""How well tags of words can be read from each layer by a linear classifier, and how much of that is memory."""

import logging
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int64

from bert_jax.config import UserError
from bert_jax.data.labelled.conll import text_and_spans
from bert_jax.data.labelled.examples import TaggedExample
from bert_jax.data.labelled.windows import char_span_to_tokens
from bert_jax.inference.loaded import LoadedModel
from bert_jax.lab.inspect.reading import hidden_states, insides

_HELD_OUT = 0.25  # of the sentences
_FEWEST = 20  # sentences


class Probes(NamedTuple):
    """Accuracies on held-out words of probes of the embeddings (0) and of layers 1 to N.

    `control` is that of the same probe for a tag that was drawn at random for each word of the vocabulary: what a probe
    can reach by remembering words. `majority` always says the most frequent tag, `memory` that of the word in training.
    """

    accuracy: Float64[np.ndarray, " N1"]
    control: Float64[np.ndarray, " N1"]
    majority: float
    memory: float
    train_words: int
    test_words: int
    tags: tuple[str, ...]

    @property
    def selectivity(self) -> Float64[np.ndarray, " N1"]:
        """What the tags have over random ones (Hewitt & Liang 2019)."""
        return self.accuracy - self.control


def probe_layers(
    model: LoadedModel, sentences: Sequence[TaggedExample], *, seed: int = 0, most_words: int = 5000
) -> Probes:
    """Fits a logistic regression to the frozen vectors of words at each layer, the first piece for the word, and
    returns its accuracy on a quarter of the sentences, which `seed` chooses.

    Sentences are used until they have `most_words` words. Raises UserError for too few of them, or a single tag.
    """
    generator = np.random.default_rng(seed)
    chosen = _up_to([sentences[i] for i in generator.permutation(len(sentences))], most_words)
    if bare := next((sentence for sentence in chosen if sentence.tags is None), None):
        raise UserError(f"{bare.origin}: no tags; name their column (--tags)")
    if len(chosen) < _FEWEST:
        raise UserError(f"{len(chosen)} tagged sentences are too few for a probe; give {_FEWEST} or more")
    vectors, words, tags, numbers = _words(model, chosen)
    names = sorted(set(tags))
    is_test = numbers < round(_HELD_OUT * len(chosen))
    train_tags = [tag for tag, test in zip(tags, is_test, strict=True) if not test]
    if len(set(train_tags)) < 2:
        only = next(iter(train_tags), "none")
        raise UserError(f"what the probe would learn from has one tag only, {only}: give more sentences, or other tags")
    gold = np.asarray([names.index(tag) for tag in tags])
    control = _control(words, gold[~is_test], generator)
    found = np.asarray([[_accuracy(layer, labels, is_test, seed) for labels in (gold, control)] for layer in vectors])
    majority = np.bincount(gold[~is_test]).argmax()
    remembered = _by_word(words, gold, ~is_test)
    said = np.asarray([remembered.get(word, majority) for word in words])
    held_out = int(is_test.sum())
    by_majority, by_memory = (float(np.mean(gold[is_test] == guess)) for guess in (majority, said[is_test]))
    accuracy, of_control = found.T
    return Probes(accuracy, of_control, by_majority, by_memory, len(tags) - held_out, held_out, tuple(names))


def _up_to(sentences: Sequence[TaggedExample], most_words: int) -> list[TaggedExample]:
    ends = np.cumsum([len(sentence.words) for sentence in sentences])
    return list(sentences[: int(np.searchsorted(ends, most_words, side="right"))])


def _words(
    model: LoadedModel, sentences: Sequence[TaggedExample]
) -> tuple[Float[np.ndarray, "N1 W D"], list[str], list[str], Int64[np.ndarray, " W"]]:
    """Returns vectors, words, tags and numbers of the sentences of all words that the model reads."""
    longest = insides(model).opened.bert_config.max_position_embeddings
    vectors, words, tags, numbers, lost = [], [], [], [], 0
    texts, spans = zip(*map(text_and_spans, sentences), strict=True)
    rows = model.tokenizer.encode(texts, max_length=longest)
    states = hidden_states(model, [row.part for row in rows])
    for number, (sentence, row, state) in enumerate(zip(sentences, rows, states, strict=True)):
        for word, tag, span in zip(sentence.words, sentence.tags or (), spans[number], strict=True):
            tokens = char_span_to_tokens(row.offsets, *span)
            if tokens is None:  # it was cut off, or leaves no token
                lost += 1
                continue
            vectors.append(state[:, tokens[0]])
            words.append(word)
            tags.append(tag)
            numbers.append(number)
    if lost:
        logging.warning(
            "%d of %d words are past the end of what the model reads, or have no token", lost, lost + len(words)
        )
    if not words:
        raise UserError("the tagged sentences have no words that the model reads")
    return np.stack(vectors, axis=1), words, tags, np.asarray(numbers)


def _control(
    words: Sequence[str], gold: Int64[np.ndarray, " W"], generator: np.random.Generator
) -> Int64[np.ndarray, " V"]:
    """Returns a tag for each word, the same wherever it occurs, drawn from the distribution of the tags."""
    drawn = {word: generator.choice(gold) for word in dict.fromkeys(words)}
    return np.asarray([drawn[word] for word in words])


def _by_word(words: Sequence[str], gold: Int64[np.ndarray, " W"], chosen: np.ndarray) -> dict[str, int]:
    counts: dict[str, Counter[int]] = {}
    for word, tag in zip(np.asarray(words, object)[chosen], gold[chosen].tolist(), strict=True):
        counts.setdefault(word, Counter())[tag] += 1
    return {word: tags.most_common(1)[0][0] for word, tags in counts.items()}


def _accuracy(
    vectors: Float[np.ndarray, "W D"], labels: Int64[np.ndarray, " W"], is_test: np.ndarray, seed: int
) -> float:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    train = vectors[~is_test]
    mean, spread = train.mean(axis=0, keepdims=True), np.maximum(train.std(axis=0, keepdims=True), 1e-6)
    scaled = (vectors - mean) / spread
    if len(set(labels[~is_test].tolist())) < 2:  # random tags of few words may be all alike
        return float(np.mean(labels[is_test] == labels[~is_test][0]))
    probe = LogisticRegression(C=0.1, max_iter=100, tol=1e-3, random_state=seed)
    # Several threads wait for each other actively: beside other work that took 15 times as long. And of equally
    # regularised probes the last digits of the loss are of no interest.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit(scaled[~is_test], labels[~is_test])
    return float(probe.score(scaled[is_test], labels[is_test]))
