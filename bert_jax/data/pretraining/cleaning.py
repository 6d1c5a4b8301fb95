"""What is left out of a corpus when it is prepared: lines that are no prose (data.clean) and text that occurred before
(data.deduplicate).

A line of a `Document` is a paragraph or a sentence. The rules are those of C4 (Raffel et al. 2020, arXiv:1910.10683,
section 2.2) and of MassiveText (Rae et al. 2021, arXiv:2112.11446, appendix A.1.1) that suit plain text in any language
whose sentences end in punctuation, and one for the licence around the books of Project Gutenberg. Both are a function
of the text alone, and the split of a document is that of its whole text: held-out documents stay held out.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from ml_collections import ConfigDict

from bert_jax.data.pretraining.splits import hash_of
from bert_jax.data.text.corpus import ENDS_SENTENCE, Document

# What counts in a report: the names are its lines, in this order.
ALL, DUPLICATE_DOCUMENT, DUPLICATE = "all", "duplicate documents", "duplicate lines"
LICENCE, MARKUP, NO_END, FEW_WORDS, NO_LETTERS = "licence", "markup", "no end of a sentence", "few words", "few letters"
SHORT_DOCUMENT = "short documents"
RULES = (DUPLICATE_DOCUMENT, DUPLICATE, LICENCE, MARKUP, NO_END, FEW_WORDS, NO_LETTERS, SHORT_DOCUMENT)

_LEAST_WORDS = 3  # of a line (C4)
_LETTERS = 0.8  # share of a line's words that have a letter (MassiveText: of a document's)
_LEAST_DOCUMENT = 50  # words (MassiveText, whose upper bound of 100,000 would leave out books)
# Shorter lines recur by right: headings, answers in a dialogue.
_LEAST_DUPLICATE = 60  # characters
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+")  # a character of CJK is a word
# Templates, tables and tags that a reader of wiki text has left, rules and tables drawn in characters.
_MARKUP = re.compile(r"\{\{|\}\}|\{\||\|\}|\|\||#if:|</?[A-Za-z][^<>]*>|-{4}|_{4}|={4}|(?:\|[^|]*){4}")
_BEGINS_BOOK = re.compile(r"\*\*\* ?START OF TH(?:E|IS) PROJECT GUTENBERG")
_ENDS_BOOK = re.compile(r"\*\*\* ?END OF TH(?:E|IS) PROJECT GUTENBERG")
_LICENCE = re.compile(
    r"Project Gutenberg(?:-tm|™|\(TM\)| (?:e?book|e?text|licen[cs]e|literary))|gutenberg\.(?:org|net)|pgdp\.net"
    "|Distributed Proofread",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Cleaning:
    """Leaves out of a document its lines that are marked as duplicates and, with `is_prose`, those that are no prose.
    Can be pickled."""

    is_prose: bool = False
    deduplicates: bool = False

    @classmethod
    def from_config(cls, data: ConfigDict) -> "Cleaning":
        return cls(data.clean == "prose", data.deduplicate)

    def __call__(self, document: Document) -> tuple[Document, Counter[str]]:
        """Returns what is left, maybe nothing, and how many lines and characters there were and each rule took."""
        if not (self.is_prose or self.deduplicates):
            return document, Counter()
        counts, kept, lines = Counter[str](), [], document.text.split("\n")
        duplicates, licence = {*document.duplicates}, _licence(lines) if self.is_prose else set()
        for number, line in enumerate(lines):
            if not (text := line.strip()):
                continue
            _count(counts, ALL, text)
            rule = DUPLICATE if number in duplicates else ""
            if self.is_prose and not rule:
                rule = LICENCE if number in licence else _rule(text)
            if rule:
                _count(counts, rule, text)
            else:
                kept.append(text)
        if self.is_prose and sum(len(_WORD.findall(text)) for text in kept) < _LEAST_DOCUMENT:
            for text in kept:
                _count(counts, SHORT_DOCUMENT, text)
            kept = []
        return replace(document, text="\n".join(kept), duplicates=()), counts


class Duplicates:
    """Finds documents and lines that occurred before, by hashes of 64 bits, of which it keeps each once."""

    def __init__(self) -> None:
        self._documents: set[int] = set()
        self._lines: set[int] = set()

    def add(self, document: int, lines: Sequence[int]) -> tuple[int, ...] | None:
        """Takes the hashes of the next document. Returns the numbers of its lines that occurred before; None if the
        whole document did."""
        if document in self._documents:
            return None
        self._documents.add(document)
        found = []
        for number, value in enumerate(lines):
            if value in self._lines:
                found.append(number)
            elif value:
                self._lines.add(value)
        return tuple(found)


def line_hashes(document: Document) -> list[int]:
    """Returns a hash of each line; 0 for those that are too short to be duplicates."""
    return [_hash(text) if len(text) >= _LEAST_DUPLICATE else 0 for text in map(str.strip, document.text.split("\n"))]


def marked(documents: Iterable[Document], seed: int, counts: Counter[str]) -> Iterator[Document]:
    """Yields the documents that did not occur before, with their duplicate lines marked; counts the others."""
    duplicates = Duplicates()
    for document in documents:
        lines = duplicates.add(hash_of(document, seed), line_hashes(document))
        if lines is None:
            count_duplicate(counts, document)
        else:
            yield replace(document, duplicates=lines) if lines else document


def count_duplicate(counts: Counter[str], document: Document) -> None:
    """Counts the lines of a document that is left out as a whole."""
    for text in filter(None, map(str.strip, document.text.split("\n"))):
        _count(counts, ALL, text)
        _count(counts, DUPLICATE_DOCUMENT, text)


def shares(counts: Counter[str]) -> dict[str, dict[str, float]]:
    """Returns for each rule how many lines it took, and which shares of all lines and characters these are."""
    lines, characters = max(1, counts[f"{ALL}/lines"]), max(1, counts[f"{ALL}/characters"])
    return {
        rule: {
            "lines": counts[f"{rule}/lines"],
            "line_share": round(counts[f"{rule}/lines"] / lines, 6),
            "character_share": round(counts[f"{rule}/characters"] / characters, 6),
        }
        for rule in RULES
        if counts[f"{rule}/lines"]
    }


def _count(counts: Counter[str], rule: str, text: str) -> None:
    counts[f"{rule}/lines"] += 1
    counts[f"{rule}/characters"] += len(text)


def _rule(text: str) -> str:
    """Returns the name of the first rule that leaves the line out, or ""."""
    if _LICENCE.search(text):
        return LICENCE
    if _MARKUP.search(text):
        return MARKUP
    if not ENDS_SENTENCE.search(text):
        return NO_END
    if len(_WORD.findall(text)) < _LEAST_WORDS:
        return FEW_WORDS
    words = text.split()
    return NO_LETTERS if sum(any(map(str.isalpha, word)) for word in words) < _LETTERS * len(words) else ""


def _licence(lines: Sequence[str]) -> set[int]:
    """Returns the numbers of the lines before and after the books of Project Gutenberg, whose files mark both ends."""
    begins = [number for number, line in enumerate(lines) if _BEGINS_BOOK.search(line)]
    ends = [number for number, line in enumerate(lines) if _ENDS_BOOK.search(line)]
    found: set[int] = set()
    for number in begins:
        found.update(range(max((end for end in ends if end < number), default=0), number + 1))
    for number in ends:
        found.update(range(number, min((begin for begin in begins if begin > number), default=len(lines))))
    return found


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
