"""Texts to tag → words, which know where in the text they are."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Regex, pre_tokenizers

from bert_jax.data.labelled.examples import TaggedExample
from bert_jax.data.tokenizers.encoding import Span

# The ranges that BERT's tokenizers take for CJK: each such character is a word.
_CJK = "[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002ceaf\U0002f800-\U0002fa1f]"
_SPLIT = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Split(Regex(_CJK), "isolated")])


@dataclass(frozen=True, slots=True)
class TextToTag(TaggedExample):
    """Words that were cut out of a text: `text[start:end]` for each of `spans`."""

    text: str = ""
    spans: tuple[Span, ...] = ()


def text_to_tag(origin: str, text: str, characters: bool) -> TextToTag:
    """Splits a text into words as BERT's basic tokenizer does, at white space and around punctuation and CJK
    characters, but leaves them as they are written; or into its characters. Control characters alone are no word."""
    if characters:
        spans = [(i, i + 1) for i in range(len(text))]
    else:
        spans = [span for word, span in _SPLIT.pre_tokenize_str(text) if not _is_invisible(word)]
    words = tuple(text[start:end] for start, end in spans)
    return TextToTag(origin, words, spaces_between=not characters, text=text, spans=tuple(spans))


def text_and_spans(example: TaggedExample) -> tuple[str, Sequence[Span]]:
    """Returns the text and the span of each word in it; words without a text of their own are joined."""
    if isinstance(example, TextToTag):
        return example.text, example.spans
    between = " " if example.spaces_between else ""
    spans, start = [], 0
    for word in example.words:
        spans.append((start, start + len(word)))
        start += len(word) + len(between)
    return between.join(example.words), spans


def _is_invisible(word: str) -> bool:
    return all(unicodedata.category(char).startswith("C") for char in word)
