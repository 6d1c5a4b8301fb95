"""Texts and what is to be written for them: translations, summaries, replies.

They are two columns of a table (`tables.py`), or two text files whose lines with the same number belong together, named
with a plus sign between them: `train.en+train.de`, or `a.en.gz+a.de.gz,b.en+b.de` for several of them.
"""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from bert_jax.config import UserError
from bert_jax.data.labelled.columns import has_header, text_in, texts_in, value_in
from bert_jax.data.labelled.examples import WritingExample
from bert_jax.data.labelled.tables import Row, find_data_files, format_of, lines_of, parse, read_rows
from bert_jax.data.text.text_files import read_blocks

_SOURCE, _TARGET = "data.text", "data.label"  # the options that name the columns of a table


def writing_examples(spec: str, *, source: str, target: str) -> Iterator[WritingExample]:
    """Yields an example for each row of a table, or for each pair of lines of two files.

    `source` and `target` are columns of a table; that of the source may hold lists of texts, the turns of a dialogue.
    Raises UserError with the row for a source or a target that is empty or missing, and for two files of unequal
    length.
    """
    if pairs := file_pairs(spec):
        for one, other in pairs:
            yield from _aligned(one, other)
        return
    if not source or not target:
        option = _TARGET if source else _SOURCE
        raise UserError(f"{spec}: {option} is empty: name the column of the {'target' if source else 'source'}")
    _check_suffixes(spec)
    for row in read_rows(spec, has_header([source, target])):
        value = value_in(row, target)
        if value is None or not str(value).strip():
            raise UserError(f"{row.origin}: column {target!r} is empty: give the text to write, or leave out this row")
        yield WritingExample(row.origin, source_in(row, source), text_in(row, target))


def source_in(row: Row, column: str) -> tuple[str, ...]:
    """Returns the turns of a source; a text is one turn. Raises UserError for one that is empty."""
    is_list = isinstance(value_in(row, column), list)
    turns = tuple(texts_in(row, column)) if is_list else (text_in(row, column),)
    if not turns or not all(turn.strip() for turn in turns):
        what = f"has an empty turn in column {column!r}" if len(turns) > 1 else f"column {column!r} is empty"
        raise UserError(f"{row.origin}: {what}: give the source, or leave out this row")
    return turns


def file_pairs(spec: str) -> list[tuple[str, str]]:
    """Returns the names of the files that belong together; [] if the spec names tables. The name of a file that is
    there may hold a plus sign."""
    parts = [part.strip() for part in spec.split(",") if part.strip()]
    if spec.startswith("tfds:") or not any("+" in part and not os.path.lexists(part) for part in parts):
        return []
    pairs = []
    for part in parts:
        one, _, other = part.partition("+")
        if not one or not other or "+" in other:
            raise UserError(f"{part} names no two files: write source+target, e.g. train.en+train.de")
        pairs.append((one, other))
    return pairs


def aligned_lines(one: str, other: str) -> Iterator[tuple[Row, Row]]:
    """Yields the lines of two files with the same number, as rows with the column "text". Raises UserError for the
    first line that lacks its partner, and for files without lines."""
    paths = [_only_file(name) for name in (one, other)]
    streams, number = (_lines(path) for path in paths), 0
    for number, (source, target) in enumerate(itertools.zip_longest(*streams), 1):
        if source is None or target is None:
            alone, ended = (source, paths[1]) if target is None else (target, paths[0])
            raise UserError(
                f"{alone and alone.origin}: this line has no partner, {ended} ends after line {number - 1}: give both "
                "files the same number of lines"
            )
        yield source, target
    if not number:
        raise UserError(f"{one} and {other} have no lines: correct or leave out these files")


def _check_suffixes(spec: str) -> None:
    """Raises UserError for a file that is no table: perhaps one language of two files."""
    for path in [] if spec.startswith("tfds:") else find_data_files(spec):
        try:
            format_of(path)
        except UserError as error:
            raise UserError(f"{error}, or name two files whose lines belong together: train.en+train.de") from error


def _aligned(one: str, other: str) -> Iterator[WritingExample]:
    """Yields the pairs of lines of two files."""
    for source, target in aligned_lines(one, other):
        if not target.values["text"].strip():
            raise UserError(f"{target.origin}: the line is empty: give the text to write, or leave out both lines")
        yield WritingExample(source.origin, source_in(source, "text"), target.values["text"])


def _only_file(name: str) -> Path:
    paths = find_data_files(name)
    if len(paths) > 1:
        raise UserError(f"{name} matches {len(paths)} files: name pairs of single files, joined by commas")
    return paths[0]


def _lines(path: Path) -> Iterator[Row]:
    """Yields every line as a row with the column "text"."""
    for found in parse(str(path), lines_of(str(path), read_blocks(path)), "txt", "text", True):
        if isinstance(found.row, UserError):
            raise found.row
        yield found.row
