"""Tagged words, and texts to tag: CoNLL columns, lists or character spans in rows; schemes of entity tags."""

import itertools
import logging
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tokenizers import Regex, pre_tokenizers

from bert_jax.config import UserError
from bert_jax.data.labelled.columns import texts_in, value_in
from bert_jax.data.labelled.examples import TaggedExample
from bert_jax.data.labelled.tables import Row, find_data_files, read_rows, suffix_of
from bert_jax.data.text.text_files import read_lines
from bert_jax.data.tokenizers.rows import Span

Scheme = Literal["BIO", "IOB1", "BIOES", "BILOU", "BMES", "plain"]

_TABLES = (".jsonl", ".json", ".parquet")
_LANGUAGE = re.compile(r"([a-z]{2,3}(?:-[a-z-]+)?:).")
_TAG = re.compile(r"([BIESLUM])-(.+)", re.DOTALL)
# What tells a scheme from BIO; E is in two of them, and so is S.
_OWN_LETTERS: dict[Scheme, set[str]] = {"BIOES": {*"ES"}, "BMES": {*"MES"}, "BILOU": {*"LU"}}
# The ranges that BERT's tokenizers take for CJK: each such character is a word.
_CJK = "[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002ceaf\U0002f800-\U0002fa1f]"
_SPLIT = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Split(Regex(_CJK), "isolated")])
_TO_BIO = {"B": "B", "I": "I", "M": "I", "E": "I", "L": "I", "S": "B", "U": "B"}


def tagged_examples(spec: str, *, text: str, label: str, names: Sequence[str] = ()) -> Iterator[TaggedExample]:
    """Yields the sentences of `spec` (`tables.read_rows`); a file that is no .jsonl, .json or .parquet is CoNLL's.

    Columns: `text` and `label` are numbers ("0", "-1"); cells are between tabs if the line has one, else between
    spaces. A blank line, or one of spaces and tabs only, ends a sentence; -DOCSTART- lines too.
    Rows: `text` and `label` name lists of words and of tags, or a text and its spans, as in CLUENER: {"TYPE":
    {"surface": [[first, last]]}} counts characters from 0, the last one included. Each character is then a word, and a
    span that overlaps a longer one is dropped with a warning. Tags that are numbers count the `names` from 0.
    `label=""`: the words have no tags. Words of white space or control characters count like others and are kept.
    """
    for source in [spec] if spec.startswith("tfds:") else find_data_files(spec):
        if isinstance(source, str) or suffix_of(source) in _TABLES:
            yield from (_tagged_row(row, text, label, names) for row in read_rows(str(source)))
        else:
            yield from _read_columns(source, _number(text, source), _number(label, source) if label else None)


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
        found = _SPLIT.pre_tokenize_str(text)
        spans = [span for word, span in found if not all(unicodedata.category(char)[0] == "C" for char in word)]
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


def detect_scheme(sequences: Iterable[Sequence[str]]) -> Scheme:
    """Returns how the entities of all `sequences` are tagged; "plain" if tags have no such form (parts of speech).

    Tags of B and I only are IOB1 if an I begins an entity and every B directly follows an entity of its type; else BIO,
    where an I that begins an entity is a mistake (see `repair`). Raises UserError for a mixture.
    """
    tags, starts_with_i, b_out_of_iob1 = set(), False, False
    for sequence in sequences:
        before = "O"
        for tag in sequence:
            tags.add(tag)
            same_type = before != "O" and before[2:] == tag[2:]
            starts_with_i |= tag.startswith("I-") and not same_type
            b_out_of_iob1 |= tag.startswith("B-") and not same_type
            before = tag
    entities = sorted(tag for tag in tags if _TAG.fullmatch(tag))
    foreign = sorted(tags - {"O", *entities})
    if nameless := [tag for tag in foreign if re.fullmatch("[A-Z]-", tag)]:
        raise UserError(f"tag {nameless[0]!r} names no type of entity: correct the tags")
    if foreign and any(tag.startswith("B-") for tag in entities):
        raise UserError(f"tags {entities[0]!r} and {foreign[0]!r} belong to no one scheme: correct the tags")
    if foreign:
        return "plain"
    letters = {tag[0] for tag in entities}
    own = letters - {"B", "I"}
    if not own:
        return "IOB1" if starts_with_i and not b_out_of_iob1 else "BIO"
    for scheme, allowed in _OWN_LETTERS.items():
        if own <= allowed and not (scheme == "BMES" and "I" in letters):
            return scheme
    raise UserError(f"tags that begin with {', '.join(sorted(letters))} belong to no one scheme: correct the tags")


def to_bio(tags: Sequence[str], scheme: Scheme) -> list[str]:
    """Returns BIO (IOB2) tags for the same entities. What is invalid in its scheme stays invalid, for `repair`,
    except that an I after something else begins an entity in IOB1."""
    if scheme in ("plain", "BIO"):
        return list(tags)
    if scheme == "IOB1":
        return repair(tags)[0]
    return [tag if tag == "O" else _TO_BIO[tag[0]] + tag[1:] for tag in tags]


def repair(tags: Sequence[str]) -> tuple[list[str], int]:
    """Returns BIO tags in which an I that follows no entity of its type begins one (B), and how many were changed. This
    is how conlleval reads such tags."""
    repaired = [
        f"B-{tag[2:]}" if tag.startswith("I-") and (before == "O" or before[2:] != tag[2:]) else tag
        for before, tag in itertools.pairwise(["O", *tags])
    ]
    return repaired, sum(old != new for old, new in zip(tags, repaired, strict=True))


def entities_of(tags: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """Yields (type, first word, end) for the entities in valid BIO, end not included."""
    start = None
    for place, tag in enumerate([*tags, "O"]):
        if start is not None and not tag.startswith("I-"):
            yield tags[start][2:], start, place
            start = None
        if tag.startswith("B-"):
            start = place


def _number(column: str, path: Path) -> int:
    if not re.fullmatch(r"-?\d+", column):
        raise UserError(f"{path}: column {column!r}: CoNLL columns are numbered from 0, -1 is the last one")
    return int(column)


def _read_columns(path: Path, text: int, label: int | None) -> Iterator[TaggedExample]:
    """Yields the sentences. In WikiANN's files every word begins with the language (`de:Haus`), which is left out: it
    is what all words of the first sentence begin with."""
    language: str | None = None
    for sentence in _sentences(path, text, label):
        if language is None:
            found = {match[1] if (match := _LANGUAGE.match(word)) else "" for word in sentence.words}
            language = found.pop() if len(found) == 1 else ""
        if language:
            if other := [word for word in sentence.words if not word.startswith(language)]:
                wrong = f"the word {other[0]!r} does not begin with {language!r}, as those before do"
                raise UserError(f"{sentence.origin}: {wrong}: correct this sentence")
            sentence = replace(sentence, words=tuple(word[len(language) :] for word in sentence.words))
        yield sentence


def _sentences(path: Path, text: int, label: int | None) -> Iterator[TaggedExample]:
    width = first = 0
    words: list[str] = []
    tags: list[str] = []
    for number, line in enumerate(itertools.chain(read_lines(path), [""]), 1):
        visible = line.strip(" \t\r")
        stray_mark = visible == "\ufeff" and width > 1  # a byte order mark, where files were joined (WNUT 2017)
        if not visible or stray_mark or line.startswith("-DOCSTART-"):
            if words:
                yield TaggedExample(f"{path}:{first}", tuple(words), tuple(tags) if label is not None else None)
                words, tags = [], []
            continue
        # Not split(): a no-break space, or a control character, can be a word.
        cells = line.split("\t") if "\t" in line else re.split(" +", line.strip(" "))
        width = width or len(cells)
        if len(cells) != width:
            counts = f"{len(cells)} columns, where the lines before have {width}"
            raise UserError(f"{path}:{number}: {counts}: correct this line")
        for column in (text, 0 if label is None else label):
            if not -width <= column < width:
                raise UserError(f"{path}:{number}: no column {column}: the line has {width}, numbered from 0")
        first = first if words else number
        words.append(cells[text])
        if label is not None:
            if not cells[label]:
                raise UserError(f"{path}:{number}: no tag in column {label}: correct this line")
            tags.append(cells[label])
    if not width:
        raise UserError(f"{path} has no words: correct or leave out this file")


def _tagged_row(row: Row, text: str, label: str, names: Sequence[str]) -> TaggedExample:
    if isinstance(words := value_in(row, text), str):
        tags = _tags_of_spans(row.origin, words, value_in(row, label)) if label else None
        return TaggedExample(row.origin, tuple(words), tags, spaces_between=False)
    words, tags = texts_in(row, text), tuple(_tags_of(row, label, names)) if label else None
    if tags is not None and len(tags) != len(words):
        raise UserError(f"{row.origin}: {len(words)} words and {len(tags)} tags: correct this row")
    return TaggedExample(row.origin, tuple(words), tags)


def _tags_of(row: Row, label: str, names: Sequence[str]) -> list[str]:
    tags = value_in(row, label)
    if not isinstance(tags, list) or not tags or not all(type(tag) is int for tag in tags):
        return texts_in(row, label)
    if not 0 <= min(tags) <= max(tags) < len(names):
        known = f"data.labels names {len(names)}" if names else "their names are not known"
        raise UserError(
            f"{row.origin}: tags in column {label!r} are numbers from {min(tags)} to {max(tags)}, {known}: "
            "list all tags in their order, as in data.labels=O,B-PER,I-PER"
        )
    return [names[int(tag)] for tag in tags]


def _tags_of_spans(origin: str, text: str, labels: object) -> tuple[str, ...]:
    tags = ["O"] * len(text)
    spans = sorted(_spans(origin, text, labels), key=lambda span: (span[1] - span[2], span))  # the longest first
    for kind, first, last in spans:
        if any(tag != "O" for tag in tags[first : last + 1]):
            logging.warning("%s: %s %r overlaps a longer span: dropped", origin, kind, text[first : last + 1])
            continue
        tags[first : last + 1] = [f"B-{kind}", *[f"I-{kind}"] * (last - first)]
    return tuple(tags)


def _spans(origin: str, text: str, labels: Any) -> Iterator[tuple[str, int, int]]:
    """Yields (type, first, last), checked against the text."""
    try:
        found = [
            (kind, surface, first, last)
            for kind, surfaces in labels.items()
            for surface, spans in surfaces.items()
            for first, last in spans
        ]
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f'{origin}: spans must be {{"TYPE": {{"surface": [[first, last]]}}}}: correct it') from error
    for kind, surface, first, last in found:
        inside = isinstance(first, int) and isinstance(last, int) and 0 <= first <= last < len(text)
        if not inside or text[first : last + 1] != surface:
            raise UserError(f"{origin}: {surface!r} is not at characters {first} to {last} of the text: correct it")
        yield kind, first, last
