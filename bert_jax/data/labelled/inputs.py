"""Texts to predict: a file, standard input, a pipe or a TFDS name → rows, each a row or what is wrong with it."""

import itertools
import math
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from bert_jax.config import UserError
from bert_jax.data.labelled import tables
from bert_jax.data.labelled.squad import squad_questions
from bert_jax.data.labelled.tables import InputRow, Row
from bert_jax.data.text.text_files import json_value, read_blocks, reason_of

_BLOCK = 1 << 16  # bytes
_REMEDY = "give a file, - for standard input, or tfds:NAME@SPLIT"


def read_input(source: str, *, text: str, has_header: bool = True, file_format: str = "") -> Iterator[InputRow]:
    """Returns the rows to predict. They are streamed, also from pipes and devices.

    `source` is a file, "-" for standard input, or tfds:NAME@SPLIT. A line of text is the column `text`, a blank line
    too. Unless `file_format` says otherwise, the suffix gives the format (see `tables.py`), where a .json file is
    SQuAD's own if its first line is no whole JSON value or has the member `data`. Standard input, and a pipe without a
    known suffix, is JSONL if its first line that is not blank begins with "{", else lines of text.

    Without header the columns of CSV and TSV are called "0", "1", …. Raises UserError for what is wrong with the
    source as a whole.
    """
    return map(_with_checked_id, _rows(source, text, has_header, file_format))


def _rows(source: str, text: str, has_header: bool, file_format: str) -> Iterator[InputRow]:
    if source.startswith("tfds:"):
        return itertools.starmap(InputRow, enumerate(tables.read_tfds(source), 1))
    if source == "-":
        return _decide_and_parse("stdin", _stream(None), file_format or "any", text, has_header)
    path = Path(source)
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise UserError(f"--input {source} cannot be read ({reason_of(error)}): {_REMEDY}") from error
    if stat.S_ISDIR(mode):
        raise UserError(f"--input {source} is a folder: {_REMEDY}")
    suffix = tables.suffix_of(path).removeprefix(".")
    is_file = stat.S_ISREG(mode)
    if not file_format and suffix == "json":
        file_format = "squad or jsonl"
    elif not file_format and is_file:
        if suffix not in (*tables.FORMATS, "parquet"):
            formats = "|".join(sorted({*tables.FORMATS.values()}))
            raise UserError(f"--input {source}: unknown suffix: say --input_format={formats}, or rename the file")
        file_format = tables.format_of(path)
    if is_file and file_format != "squad or jsonl":
        return tables.read_file(path, file_format, text, has_header)
    blocks = read_blocks(path) if is_file else _stream(path)
    return _decide_and_parse(source, blocks, file_format or tables.FORMATS.get(suffix, "any"), text, has_header)


def _decide_and_parse(
    name: str, blocks: Iterator[bytes], file_format: str, text: str, has_header: bool
) -> Iterator[InputRow]:
    """`file_format` may be undecided, "any" or "squad or jsonl", until the first line that is not blank is there."""
    lines = tables.lines_of(name, blocks)
    if file_format in ("any", "squad or jsonl"):
        start: list[str] = []
        for line in lines:
            start.append(line)
            if line.strip():
                break
        file_format = _decided(file_format, start[-1].strip() if start else "")
        lines = itertools.chain(start, lines)
    if file_format != "squad":
        yield from tables.parse(name, lines, file_format, text, has_header)
        return
    for number, question in enumerate(squad_questions(name, "\n".join(lines)), 1):
        columns = {"id": question.id, "question": question.question, "context": question.context}
        yield InputRow(number, Row(question.origin, columns))


def _decided(file_format: str, line: str) -> str:
    """Returns the format that a first line shows. An array counts as JSONL, whose parser refuses it."""
    try:
        value, is_whole = json_value(line), True
    except ValueError:
        value, is_whole = None, False
    if file_format == "squad or jsonl":
        is_squad = not is_whole or (isinstance(value, dict) and "data" in value)
        return "squad" if line and is_squad and not line.startswith("[") else "jsonl"
    # A text may begin with "[", as in "[MASK] dogs bark." or "[12]"; an array of anything but numbers is none.
    is_array = line == "[" or (isinstance(value, list) and any(isinstance(x, str | dict | list) for x in value))
    return "jsonl" if line.startswith("{") or is_array else "txt"


def _stream(source: Path | None) -> Iterator[bytes]:
    """Yields what a pipe, a device or standard input (None) has, as it comes: no waiting for a full block."""
    try:
        if source is None and sys.stdin is None:
            raise UserError("standard input is closed: give --input=FILE")
        descriptor = sys.stdin.fileno() if source is None else os.open(source, os.O_RDONLY)
        try:
            while block := os.read(descriptor, _BLOCK):
                yield block
        finally:
            if source is not None:
                os.close(descriptor)
    except (OSError, ValueError) as error:  # ValueError: standard input was closed
        raise UserError(f"{source or 'standard input'} cannot be read ({reason_of(error)})") from error


def _with_checked_id(found: InputRow) -> InputRow:
    """Refuses an id that JSON cannot write: predictions carry the id of their row."""
    row = found.row
    value = row.values.get("id") if isinstance(row, Row) else None
    if isinstance(row, UserError) or isinstance(value, str | int | None):
        return found
    if isinstance(value, float) and math.isfinite(value):
        return found
    wrong = f"column 'id' holds {repr(value)[:60]}, no text and no finite number"
    return InputRow(found.line, UserError(f"{row.origin}: {wrong}: correct it"))
