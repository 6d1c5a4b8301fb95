"""Texts with their translations → documents → records, for translation language modelling (Lample and Conneau 2019).

A parallel corpus is two text files whose lines with the same number belong together (`a.en+a.de`), two JSONL files
whose documents with the same name do (`en.jsonl+de.jsonl`), or a .tsv file of two columns. A record holds as many
pairs as fit into a row: the tokens of the one side, then those of the other. A pair that is longer than a row is cut
into parts in proportion, so that what stands side by side in a row is about the same passage of both texts.
"""

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from bert_jax.config import UserError
from bert_jax.data.labelled.columns import text_in
from bert_jax.data.labelled.parallel import aligned_lines, file_pairs
from bert_jax.data.labelled.tables import find_data_files, format_of, read_rows, suffix_of
from bert_jax.data.pretraining.chunks import Block, BlockResult, BlockWork
from bert_jax.data.pretraining.records import encode_record
from bert_jax.data.pretraining.report import Statistics
from bert_jax.data.text.corpus import Corpus, Document, Source
from bert_jax.data.text.text_files import digest_of, fingerprint_of

PARALLEL = "parallel"  # the kind of these corpora
_READING_RULES = "1"  # raise it when other documents are read than before
_LINES = 64  # pairs of lines that are one document
_log = logging.getLogger(__name__)

TextPair = tuple[str, str]


@dataclass(frozen=True)
class ParallelDocument(Document):
    """A document with its translation: consecutive pairs of texts. `text` is both sides, one text per line."""

    pairs: tuple[TextPair, ...] = ()


def open_parallel(files: str, text_field: str, name_field: str, option: str) -> Corpus:
    """Opens the parallel corpus that `files` names; `option` is what messages call the place where they are named.

    JSONL files are aligned by `name_field`; documents without translation are counted and left out. Raises UserError
    for files that name no pairs, and while streaming for the first line that lacks its partner.
    """
    if not files.strip():
        raise UserError(f"{option} is empty: name the two files whose lines belong together, e.g. train.en+train.de")
    sources, paths = [], []
    for one, other in file_pairs(files) or [(str(path), "") for path in find_data_files(files)]:
        both = [path for name in (one, other) if name for path in find_data_files(name)]
        paths += both
        are_jsonl = [suffix_of(path) in (".jsonl", ".json") for path in both]
        if other and any(are_jsonl) and not all(are_jsonl):
            raise UserError(f"{option}: one of {one} and {other} is JSONL, the other lines of text: give two alike")
        if other and all(are_jsonl):
            _log_unpaired(
                _texts(one, text_field, name_field).keys(), _texts(other, text_field, name_field).keys(), both
            )
            read = partial(_read_named, one, other, text_field, name_field)
        elif other:
            read = partial(_read_groups, one, other)
        elif format_of(both[0]) in ("tsv", "csv"):
            read = partial(_read_groups, one, "")
        else:
            raise UserError(f"{option}: {one} is no pair of files: write source+target, or give a .tsv of two columns")
        sources.append(Source(sum(path.stat().st_size for path in both), read))
    fields = [text_field, name_field]
    fingerprint = digest_of([_READING_RULES, PARALLEL, fingerprint_of(paths, fields)], [])
    return Corpus(PARALLEL, sum(source.num_bytes for source in sources), fingerprint, sources)


@dataclass(frozen=True)
class TranslationWork(BlockWork):
    """A picklable function from a block of `ParallelDocument`s to its result. A record has the fields of a chunk, with
    two sentence lengths: the tokens of each side."""

    def __call__(self, block: Block) -> BlockResult:
        result = BlockResult(block.num_bytes, {}, {})
        for number, (split, document) in enumerate(block.documents, block.first_document):
            assert isinstance(document, ParallelDocument)
            statistics = result.statistics.setdefault(split, Statistics())
            statistics.add_lines([text for pair in document.pairs for text in pair])
            sides = [self.tokenizer.encode_words([pair[side] for pair in document.pairs]) for side in (0, 1)]
            records = self._records_of(number, list(zip(*sides, strict=True)), statistics)
            result.records.setdefault(split, []).extend(records)
        return result

    def _records_of(
        self, number: int, pairs: Sequence[tuple[list[int], list[int]]], statistics: Statistics
    ) -> list[bytes]:
        found = fill_rows(pairs, self.sequence_length - 3)
        if not found:
            return []
        sizes = [len(side) for row in found for side in row]
        tokens = [np.asarray(one + other, self.token_dtype) for one, other in found]
        unknown = sum(int(np.count_nonzero(ids == self.tokenizer.unk_id)) for ids in tokens)
        statistics.add_document(sizes, list(map(len, tokens)), unknown)
        records = []
        for index, (ids, (one, other)) in enumerate(zip(tokens, found, strict=True)):
            arrays = {"tokens": ids, "sentence_lengths": np.asarray([len(one), len(other)], np.dtype("<u2"))}
            place = {"document": number, "chunk_index": index, "num_chunks": len(found)}
            records.append(encode_record(arrays | place))
        return records


def fill_rows(pairs: Sequence[tuple[list[int], list[int]]], room: int) -> list[tuple[list[int], list[int]]]:
    """Returns the two sides of each row: consecutive pairs as long as both sides fit into `room` tokens. A longer pair
    is cut into parts in proportion; one without tokens on a side is left out."""
    parts: list[tuple[list[int], list[int]]] = []
    for one, other in pairs:
        count = max(1, -(-(len(one) + len(other)) // room))
        cuts = [(len(one) * i // count, len(other) * i // count) for i in range(count + 1)]
        parts += [(one[a:b], other[c:d]) for (a, c), (b, d) in itertools.pairwise(cuts) if a < b and c < d]
    rows: list[tuple[list[int], list[int]]] = []
    for one, other in parts:
        if rows and len(rows[-1][0]) + len(rows[-1][1]) + len(one) + len(other) <= room:
            rows[-1] = rows[-1][0] + one, rows[-1][1] + other
        else:
            rows.append((one, other))
    return rows


def _read_groups(one: str, other: str) -> Iterator[Document]:
    """Yields the pairs of lines of two files, or the rows of one table; a pair with an empty side is left out."""
    lines, first = _lines(one, other), 1
    while group := list(itertools.islice(lines, _LINES)):
        if pairs := tuple(pair for pair in group if pair[0].strip() and pair[1].strip()):
            yield _document(f"{one}:{first}", pairs)
        first += len(group)


def _lines(one: str, other: str) -> Iterator[TextPair]:
    if other:
        yield from ((a.values["text"], b.values["text"]) for a, b in aligned_lines(one, other))
        return
    for row in read_rows(one, header=False):
        if len(row.values) != 2:
            count = len(row.values)
            raise UserError(f"{row.origin}: {count} columns, where a text and its translation were expected")
        yield row.values["0"], row.values["1"]


def _read_named(one: str, other: str, text_field: str, name_field: str) -> Iterator[Document]:
    translations = _texts(other, text_field, name_field)
    for name, text in _texts(one, text_field, name_field).items():
        if name in translations:
            yield _document(f"{one}: {name}", _passages(text, translations[name]))


def _passages(one: str, other: str) -> tuple[TextPair, ...]:
    """Returns the paragraphs that belong together; where their numbers differ, the whole texts."""
    sides = [[line for line in text.split("\n") if line.strip()] for text in (one, other)]
    return tuple(zip(*sides, strict=True)) if len(sides[0]) == len(sides[1]) else ((one, other),)


def _document(source: str, pairs: tuple[TextPair, ...]) -> ParallelDocument:
    return ParallelDocument(source, "\n".join(text for pair in pairs for text in pair), True, (), pairs)


def _texts(file: str, text_field: str, name_field: str) -> dict[str, str]:
    """Returns the texts of a JSONL file by name. Raises UserError for a name that occurs twice."""
    found: dict[str, str] = {}
    for row in read_rows(file):
        name = text_in(row, name_field)
        if name in found:
            raise UserError(f"{row.origin}: a document is called {name!r} already: give each a name of its own")
        found[name] = text_in(row, text_field)
    return found


def _log_unpaired(ones, others, paths: Sequence[Path]) -> None:
    both = len(ones & others)
    if not both:
        raise UserError(f"{paths[0]} and {paths[1]} have no name in common: check the field that names their documents")
    alone = f"{len(ones) - both} of {paths[0].name} and {len(others) - both} of {paths[1].name} have none"
    _log.info("%d documents have a translation, %s and are left out", both, alone)
