"""Input of predictions, row by row: what is wrong with one line does not end the reading of the others.

`data.tables` reads labelled data, where a bad line is always fatal; the formats are the same ones. Standard input is
JSONL if its first character is "{", else plain lines, unless the format is given.
"""

import csv
import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bert_jax.config import UserError
from bert_jax.data.labelled.squad import question_examples
from bert_jax.data.labelled.tables import Row, read_rows, suffix_of
from bert_jax.data.text.text_files import json_value, read_blocks

FORMATS = {"jsonl": "jsonl", "json": "jsonl", "csv": "csv", "tsv": "tsv", "txt": "txt"}  # of suffixes
_BLOCK = 1 << 16  # bytes


class InputRow(NamedTuple):
    line: int  # from 1; of Parquet, TFDS and SQuAD's JSON the number of the row
    row: Row | UserError


def read_input(source: str, *, text: str, has_header: bool = True, file_format: str = "") -> Iterator[InputRow]:
    """`source` is a file, "-" for standard input, or tfds:NAME@SPLIT. A plain line, even a blank one, is the column
    `text`; a .json file is SQuAD's own, and not JSONL, if its first line opens an object
    over several lines or has the member `data`.

    Without header the columns of CSV and TSV are called "0", "1", …. Raises UserError for what is wrong with the file
    as a whole; what is wrong with a row comes in its place.
    """
    if source.startswith("tfds:") or suffix_of(Path(source)) == ".parquet":
        return (InputRow(int(row.origin.rpartition(":")[2]), row) for row in read_rows(source))
    if source == "-":
        return _read(_stdin_blocks(), "stdin", file_format, text, has_header)
    path = Path(source)
    if not path.is_file():
        raise UserError(f"--input {source} is not a file; give a file, - for standard input, or tfds:NAME@SPLIT")
    suffix = suffix_of(path).removeprefix(".")
    if not file_format and suffix not in FORMATS:
        raise UserError(f"--input {source}: unknown suffix; say --input_format={'|'.join(sorted({*FORMATS.values()}))}")
    if suffix == "json" and not file_format and _is_squad(path):
        questions = enumerate(question_examples(source), 1)
        names = ("id", "question", "context")
        return (InputRow(n, Row(q.origin, {name: getattr(q, name) for name in names})) for n, q in questions)
    return _read(read_blocks(path), source, file_format or FORMATS[suffix], text, has_header)


def _is_squad(path: Path) -> bool:
    first = next(filter(bytes.strip, _lines(read_blocks(path))), b"{}")
    try:
        value = json_value(first.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return first.removeprefix(b"\xef\xbb\xbf").strip() in (b"{", b"[")
    return isinstance(value, dict) and "data" in value


def _read(blocks: Iterator[bytes], name: str, file_format: str, text: str, has_header: bool) -> Iterator[InputRow]:
    lines = _lines(blocks)
    first = next(lines, None)
    if first is None:
        return
    if not file_format:
        file_format = "jsonl" if first.lstrip().startswith(b"{") else "txt"
    numbered = enumerate(itertools.chain([first.removeprefix(b"\xef\xbb\xbf")], lines), 1)
    decoded = ((number, line.decode("utf-8", "surrogateescape")) for number, line in numbered)
    if file_format in ("csv", "tsv"):
        cells = _csv_cells(decoded) if file_format == "csv" else _tsv_cells(decoded)
        found = _named(cells, name, has_header)
    else:
        found = _records(decoded) if file_format == "jsonl" else ((n, {text: line}, line) for n, line in decoded)
    for number, values, raw in found:
        origin = f"{name}:{number}"
        if isinstance(values, str):
            yield InputRow(number, UserError(f"{origin}: {values}"))
        elif not _is_utf8(raw):
            yield InputRow(number, UserError(f"{origin}: not UTF-8: convert it, e.g. with iconv -f LATIN1 -t UTF-8"))
        else:
            yield InputRow(number, Row(origin, values))


# Each of these gives (line, columns or what is wrong with them, the text that they came from).
Found = Iterator[tuple[int, dict[str, Any] | str, str]]
Numbered = Iterator[tuple[int, str]]


def _records(lines: Numbered) -> Found:
    for number, line in lines:
        if not line.strip():
            continue
        try:
            value = json_value(line) if _is_utf8(line) else {}
        except (ValueError, RecursionError) as error:
            yield number, f"not a whole JSON object ({error}): mend this line", line
            continue
        yield number, value if isinstance(value, dict) else f"a {type(value).__name__}, no JSON object", line


def _named(rows: Iterator[tuple[int, list[str] | str]], name: str, has_header: bool) -> Found:
    names: list[str] = []
    for number, cells in rows:
        if isinstance(cells, str):
            yield number, cells, ""
            continue
        if has_header and not names:
            names = cells
            if len(set(names)) < len(names) or not _is_utf8("".join(names)):
                raise UserError(f"{name}:{number}: the names of the columns are not UTF-8, or two are alike: mend them")
            continue
        names = names or [str(i) for i in range(len(cells))]
        raw = "".join(cells)
        if len(cells) != len(names):
            yield number, f"{len(cells)} columns, where the first line has {len(names)}: mend this row", raw
        else:
            yield number, dict(zip(names, cells, strict=True)), raw


def _csv_cells(lines: Numbered) -> Iterator[tuple[int, list[str] | str]]:
    csv.field_size_limit(1 << 26)
    reader = csv.reader((f"{line}\n" for _, line in lines), strict=True)
    while True:
        first = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield first, f"the row that begins here is no CSV ({error}): close its quotes, double those inside"
            continue
        if cells is None:
            return
        if cells:
            yield first, cells


def _tsv_cells(lines: Numbered) -> Iterator[tuple[int, list[str] | str]]:
    return ((number, line.split("\t")) for number, line in lines if line)


def _lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    carry = b""
    for block in blocks:
        *whole, carry = (carry + block).split(b"\n")
        yield from (line.removesuffix(b"\r") for line in whole)
    if carry:
        yield carry.removesuffix(b"\r")


def _stdin_blocks() -> Iterator[bytes]:
    while block := os.read(sys.stdin.fileno(), _BLOCK):
        yield block


def _is_utf8(text: str) -> bool:
    """Bytes that were none have been decoded to lone surrogates, which only they can be."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
