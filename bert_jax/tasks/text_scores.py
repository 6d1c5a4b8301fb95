"""Scores of written texts by the field's own tools, sacrebleu and rouge-score, times 100 as papers print them.

Both are of the extra `generate` and are imported at their first use.
"""

import importlib.util
import logging
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from bert_jax.config import UserError
from bert_jax.data.text.sentences import split_text
from bert_jax.extras import install

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
KINDS = {"none": (), "translation": ("bleu", "chrf"), "summary": ROUGE}  # of seq2seq.scores: the names of the metrics
_PACKAGES = {"translation": "sacrebleu", "summary": "rouge_score"}


class TextScores(NamedTuple):
    """Scores of a set of texts by name, and what somebody needs to know to compare them with others'."""

    scores: dict[str, float]
    signature: str


class Scorer:
    """Scores texts against one reference each.

    `kind` is one of KINDS. translation: corpus BLEU and chrF2 by sacrebleu, BLEU with its `tokenizer` (13a, intl, zh,
    char, none); with `lowercase` BLEU does not see case. summary: means of `rouge_of_each`. Raises UserError if the
    package is missing.
    """

    def __init__(self, kind: str, *, tokenizer: str = "13a", lowercase: bool = False):
        self.kind, self.names = kind, KINDS[kind]
        check_package(kind)
        if kind == "translation":
            from sacrebleu.metrics.bleu import BLEU
            from sacrebleu.metrics.chrf import CHRF

            self._bleu, self._chrf = BLEU(tokenize=tokenizer, lowercase=lowercase), CHRF(lowercase=lowercase)

    def __call__(self, texts: Sequence[str], references: Sequence[str]) -> TextScores:
        """Returns the scores of the texts together. Raises UserError for no texts, and unless each has a reference."""
        _check(texts, references)
        if self.kind == "translation":
            found = {"bleu": self._bleu, "chrf": self._chrf}
            scores = {name: metric.corpus_score(texts, [references]).score for name, metric in found.items()}
            signature = "; ".join(f"{name} {metric.get_signature()}" for name, metric in found.items())
            return TextScores(scores, signature)
        if self.kind == "summary":
            signature = f"rouge-score {_version('rouge_score')}, F1, with stemmer, sentences on lines"
            return TextScores(rouge(texts, references), signature)
        return TextScores({}, "")

    def of_each(self, texts: Sequence[str], references: Sequence[str]) -> list[float]:
        """Returns a score of every text on its own, to sort them by: chrF, or ROUGE-L; BLEU of a sentence says little
        (sacrebleu). Of kind none 100 where it equals the reference, else 0."""
        _check(texts, references)
        pairs = list(zip(texts, references, strict=True))
        if self.kind == "translation":
            return [self._chrf.sentence_score(text, [reference]).score for text, reference in pairs]
        if self.kind == "summary":
            return rouge_of_each(texts, references, ("rougeL",))[:, 0].tolist()
        return [100.0 * (text == reference) for text, reference in pairs]


def rouge(texts: Sequence[str], references: Sequence[str], names: tuple[str, ...] = ROUGE) -> dict[str, float]:
    """Returns the mean of each of `names` over pairs of texts, as `rouge_of_each`."""
    return dict(zip(names, rouge_of_each(texts, references, names).mean(axis=0).tolist(), strict=True))


def rouge_of_each(
    texts: Sequence[str], references: Sequence[str], names: tuple[str, ...] = ROUGE
) -> Float64[np.ndarray, "N M"]:
    """Returns each of `names` (columns), which are among ROUGE, of each pair of texts: F1 by rouge-score with Porter's
    stemmer, which sees a–z and 0–9 only (Lin 2004).

    rougeL compares two texts as one sequence of words each; rougeLsum, "ROUGE-L" in papers on summaries, compares
    sentence by sentence: each text is split into its sentences unless it has lines. Raises UserError if the package is
    missing.
    """
    scorer, found = _rouge_scorer(names), np.zeros((len(references), len(names)))
    for row, text, reference in zip(found, texts, references, strict=True):
        scores = scorer.score(sentences_on_lines(reference), sentences_on_lines(text))
        row[:] = [100 * scores[name].fmeasure for name in names]
    return found


def rouge_words(text: str) -> list[str]:
    """Returns the words of a text as ROUGE compares them: in lower case, stemmed, without punctuation."""
    return _rouge_tokenizer().tokenize(text)


def check_has_words(text: str, what: str) -> None:
    """Raises UserError for a text in which ROUGE finds no word, such as a Chinese one; `what` begins the message."""
    if not rouge_words(text):
        raise UserError(
            f"{what} has no word of the letters a-z or digits, which ROUGE compares ('{text[:40]}'): leave it out, or "
            "score texts of this language in another way"
        )


def sentences_on_lines(text: str) -> str:
    """Returns the text with one sentence per line, which ROUGE-Lsum needs; a text that has lines is not changed."""
    text = text.strip()
    return text if "\n" in text else "\n".join(split_text(text))


def check_package(kind: str) -> None:
    """Raises UserError if the package is missing that scores of this kind need."""
    package = _PACKAGES.get(kind, "numpy")
    if importlib.util.find_spec(package) is None:
        raise UserError(f"scores of a {kind} need the extra generate: {install('generate')}")


def warn_of_letters(references: Sequence[str]) -> None:
    """Warns of references that rouge-score cannot read, most of whose letters are none of a–z."""
    letters = [letter for reference in references for letter in reference if letter.isalpha()]
    unread = sum(not letter.isascii() for letter in letters)
    if letters and unread > len(letters) / 2:
        share = 100 * unread / len(letters)
        logging.warning("%.0f %% of the references' letters are not a–z: ROUGE by rouge-score leaves them out", share)


@cache
def _rouge_scorer(names: tuple[str, ...]) -> Any:
    tokenizer = _rouge_tokenizer()
    from rouge_score.rouge_scorer import RougeScorer  # takes two seconds to import

    return RougeScorer(list(names), tokenizer=tokenizer)


@cache
def _rouge_tokenizer() -> Any:
    check_package("summary")
    from rouge_score.tokenizers import DefaultTokenizer

    return DefaultTokenizer(use_stemmer=True)


def _check(texts: Sequence[str], references: Sequence[str]) -> None:
    if len(texts) != len(references) or not texts:
        raise UserError(f"{len(texts):,} texts and {len(references):,} references: give each text one reference")


def _version(package: str) -> Any:
    from importlib.metadata import version

    return version(package)
