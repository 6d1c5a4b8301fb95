"""Scores of written texts against references: ROUGE (Lin 2004), by the package rouge-score.

ROUGE here is the F-measure in per cent, with Porter's stemmer, on words of the letters a-z and digits: it is made for
English. rougeL compares two texts as one sequence of words each; rougeLsum, "ROUGE-L" in papers on summaries, joins
the longest common subsequences of each reference sentence, and needs to know where sentences end.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Float64

from bert_jax.config import UserError
from bert_jax.data.text.sentences import split_text

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def rouge(predictions: Sequence[str], references: Sequence[str], names: tuple[str, ...] = ROUGE) -> dict[str, float]:
    """Returns the mean of each of `names` over pairs of texts, in per cent. Raises UserError as `rouge_of_each`."""
    means = rouge_of_each(predictions, references, names).mean(axis=0)
    return dict(zip(names, means.tolist(), strict=True))


def rouge_of_each(
    predictions: Sequence[str], references: Sequence[str], names: tuple[str, ...] = ROUGE
) -> Float64[np.ndarray, "N M"]:
    """Returns each of `names` (columns), which are among ROUGE, of each pair of texts, in per cent.

    Sentences of rougeLsum are the lines of a text and the sentences in them. Raises UserError for a reference in which
    ROUGE finds no word, and if rouge-score is not installed.
    """
    scorer = _scorer(names)
    found = np.zeros((len(references), len(names)))
    for row, prediction, reference in zip(found, predictions, references, strict=True):
        check_has_words(reference, "a reference")
        scores = scorer.score(_one_per_line(reference), _one_per_line(prediction))
        row[:] = [100 * scores[name].fmeasure for name in names]
    return found


def rouge_words(text: str) -> list[str]:
    """Returns the words of a text as ROUGE compares them: in lower case, stemmed, without punctuation."""
    return _tokenizer().tokenize(text)


def check_has_words(text: str, what: str) -> None:
    """Raises UserError for a text in which ROUGE finds no word, such as a Chinese one; `what` begins the message."""
    if not rouge_words(text):
        raise UserError(
            f"{what} has no word of the letters a-z or digits, which ROUGE compares ('{text[:40]}'): leave it out, or "
            "score texts of this language in another way"
        )


@cache
def _scorer(names: tuple[str, ...]) -> Any:
    tokenizer = _tokenizer()
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(names), tokenizer=tokenizer)


@cache
def _tokenizer() -> Any:
    try:
        # An optional package, which takes two seconds to import.
        from rouge_score.tokenizers import DefaultTokenizer
    except ModuleNotFoundError as error:
        raise UserError("ROUGE needs the extra generate: pip install -e '.[generate]'") from error
    return DefaultTokenizer(use_stemmer=True)


def _one_per_line(text: str) -> str:
    return "\n".join(split_text(text))
