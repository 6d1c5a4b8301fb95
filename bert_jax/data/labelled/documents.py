"""Documents with summaries: rows → sentences, and which of them the summary consists of."""

import re
from collections.abc import Iterator, Sequence

from bert_jax.config import UserError
from bert_jax.data.labelled.columns import text_in, texts_in, value_in
from bert_jax.data.labelled.examples import DocumentExample
from bert_jax.data.labelled.tables import Row, read_rows
from bert_jax.data.text.sentences import split_text

_WORD = re.compile(r"\w")
_COPIED = 0.8  # share of a summary's characters: then it is made of sentences of its document
_CUT = "\0"  # stands for a sentence that was found in a summary


def document_examples(spec: str, *, text: str, summary: str) -> Iterator[DocumentExample]:
    """Yields an example for each row of `spec` (`tables.read_rows`); `text` and `summary` name its columns.

    The document is a list of sentences, or a text, which is split into its lines and their sentences. The summary is a
    text, a list of sentences, or a list of the numbers of the document's sentences, from 0; null or empty is none.
    Raises UserError with the row for a document without words, and for numbers that its sentences do not have.
    """
    for row in read_rows(spec):
        sentences = sentences_in(row, text)
        value = value_in(row, summary) if summary else None
        if value is None or value == "" or value == []:
            yield DocumentExample(row.origin, sentences)
        elif isinstance(value, list) and not isinstance(value[0], str):
            numbers = tuple(sorted(_number(row, summary, number, len(sentences)) for number in value))
            yield DocumentExample(row.origin, sentences, tuple(sentences[i] for i in numbers), numbers)
        else:
            given = text_in(row, summary) if isinstance(value, str) else "\n".join(texts_in(row, summary))
            if not _WORD.search(given):
                raise UserError(f"{row.origin}: column {summary!r} holds {given[:40]!r}, no words: correct this row")
            yield DocumentExample(row.origin, sentences, *_compared(sentences, given))


def sentences_in(row: Row, column: str) -> tuple[str, ...]:
    """Returns the sentences of the document in a column. Raises UserError, with the row, if none has a word."""
    value = value_in(row, column)
    found = texts_in(row, column) if isinstance(value, list) else split_text(text_in(row, column))
    if not any(map(_WORD.search, found)):
        raise UserError(f"{row.origin}: column {column!r} has no sentence: correct or leave out this row")
    return tuple(found)


def has_words(sentence: str) -> bool:
    return bool(_WORD.search(sentence))


def _compared(sentences: Sequence[str], summary: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Returns the sentences of a summary, and the numbers of those that it copies from its document: none unless these
    make up nearly all of it.

    They may stand in another order, and without a space between them, as in BBC News' summaries. Longer sentences are
    looked for first, since they may contain shorter ones.
    """
    rest, chosen = " ".join(summary.split()), list[int]()
    whole = len(rest)
    for number in sorted(range(len(sentences)), key=lambda i: -len(sentences[i])):
        sentence = " ".join(sentences[number].split())
        if has_words(sentence) and sentence in rest:
            rest = rest.replace(sentence, _CUT, 1)
            chosen.append(number)
    pieces = [piece.strip() for piece in rest.split(_CUT) if has_words(piece)]
    if sum(map(len, pieces)) > (1 - _COPIED) * whole:
        return tuple(split_text(summary)), ()
    chosen.sort()
    return (*(sentences[i] for i in chosen), *pieces), tuple(chosen)


def _number(row: Row, column: str, value: object, count: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < count:
        raise UserError(
            f"{row.origin}: column {column!r} holds {str(value)[:40]!r}; it must be a text, texts, or numbers of the "
            f"document's sentences, 0 to {count - 1}: correct this row"
        )
    return value
