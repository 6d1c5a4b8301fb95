"""Tables of labelled data, and of texts to predict: files and TFDS names → rows, streamed.

Each row comes as a `Row`, or as the UserError that says what is wrong with its line: training raises the first one
(`read_rows`), prediction decides by --bad_lines (`inputs.py`). The format follows from the suffix, before .gz, .xz or
.zst:

    .csv            RFC 4180; blank lines are skipped
    .tsv            cells between tabs, nothing else: quotes are text, as in GLUE; blank lines are skipped
    .jsonl, .json   one object per line; blank lines are skipped
    .parquet        a few thousand rows at a time
    .txt            one text per line, in column "text"; a blank line is a row, so that predictions stay beside their
                    lines. With columns by number, column 0 is the first word and column 1 the rest:
                    `DESC:def What is BERT ?`
"""

import codecs
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bert_jax.config import Json, UserError
from bert_jax.data.text.buckets import is_url
from bert_jax.data.text.text_files import OPENERS, check_regular, find_files, json_value, read_blocks, split_lines
from bert_jax.data.text.tfds_names import brief, download, find_builder

FORMATS = {"csv": "csv", "tsv": "tsv", "jsonl": "jsonl", "json": "jsonl", "txt": "txt"}  # by suffix

_LONGEST = 1 << 26  # bytes of a line, characters of a cell: the csv module's own 128 K are less than a book
_ONE_WORD = "one word, where a label and a text were expected: correct this line"


class Row(NamedTuple):
    origin: str  # "path:line"; of Parquet and TFDS the number of the row, from 1
    values: Json


class InputRow(NamedTuple):
    """A row, or what is wrong with it."""

    line: int  # from 1; of Parquet, TFDS and SQuAD's JSON the number of the row
    row: Row | UserError


# What a parser gives for each row: its line, and its columns or what is wrong with it.
_Found = Iterator[tuple[int, Json | str]]
_Cells = Iterator[tuple[int, list[str] | str]]


def read_rows(spec: str, header: bool | None = None) -> Iterator[Row]:
    """Yields the rows of labelled data, file after file.

    `spec` is a path, comma-separated paths and globs, or tfds:NAME[/CONFIG][:VERSION]@SPLIT (whose strings come as
    str, whose ClassLabels as their names, -1 as None). `header=False`: the columns of CSV, TSV and .txt have no names
    and are called "0", "1", …. Raises UserError, with file and line, for the first row that cannot be read, for an
    unknown suffix and for a file without rows.
    """
    if spec.startswith("tfds:"):
        yield from read_tfds(spec)
        return
    paths = find_data_files(spec)
    formats = [format_of(path) for path in paths]  # a wrong suffix shows before anything is read
    for path, file_format in zip(paths, formats, strict=True):
        found = None
        for found in read_file(path, file_format, "" if header is False else "text", header is not False):
            if isinstance(found.row, UserError):
                raise found.row
            yield found.row
        if found is None:
            raise UserError(f"{path} has no rows: correct or leave out this file")


def find_data_files(spec: str) -> list[Path]:
    if not spec.strip():
        raise UserError("no data is named: give a path, a glob or tfds:NAME@SPLIT")
    paths = find_files(spec, "data")
    for path in paths:
        check_regular(path)
    return paths


def suffix_of(path: Path) -> str:
    """Returns ".csv" for train.CSV.gz."""
    return (Path(path.stem) if path.suffix in OPENERS else path).suffix.lower()


def format_of(path: Path) -> str:
    """Returns the format that a file has by its suffix: one of FORMATS' values, or "parquet"."""
    formats, suffix = FORMATS | {"parquet": "parquet"}, suffix_of(path)
    if suffix.removeprefix(".") not in formats:
        known = ", ".join(f".{one}" for one in formats)
        raise UserError(f"{path}: unknown suffix {suffix!r}: rename it to one of {known} (+ .gz, .xz, .zst)")
    return formats[suffix.removeprefix(".")]


def read_file(path: Path, file_format: str, text: str, has_header: bool) -> Iterator[InputRow]:
    """Yields the rows of one file; `text` as in `parse`."""
    if file_format == "parquet":
        return _read_parquet(path)
    return parse(str(path), lines_of(str(path), read_blocks(path)), file_format, text, has_header)


def parse(name: str, lines: Iterator[str], file_format: str, text: str, has_header: bool) -> Iterator[InputRow]:
    """Yields the rows of the lines of one file or stream.

    `text` is the column of a line of text; with "", a line has a label and a text. Raises UserError for what is wrong
    with the whole: names of columns that occur twice, an array where lines of JSON were expected.
    """
    if file_format in ("csv", "tsv"):
        tabbed = ((number, line.split("\t")) for number, line in enumerate(lines, 1) if line)
        found = _named(name, _csv_cells(lines) if file_format == "csv" else tabbed, has_header)
    else:
        found = _records(name, lines) if file_format == "jsonl" else _texts(lines, text)
    for number, values in found:
        origin = f"{name}:{number}"
        yield InputRow(number, UserError(f"{origin}: {values}") if isinstance(values, str) else Row(origin, values))


def _records(name: str, lines: Iterator[str]) -> _Found:
    is_first = True
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if is_first and line.lstrip().startswith("["):
            raise UserError(f"{name} is one JSON array: write one object per line, e.g. with jq -c '.[]'")
        is_first = False
        wrong, value = _unreadable(line), None
        try:
            value = wrong or json_value(line)
        except ValueError as error:
            wrong = f"not a whole JSON object ({error}): write one object per line, e.g. with jq -c ."
        kind = type(value).__name__
        wrong = wrong or f"a {kind}, no JSON object: write one object per line"
        yield number, value if isinstance(value, dict) else wrong


def _texts(lines: Iterator[str], column: str) -> _Found:
    for number, line in enumerate(lines, 1):
        if wrong := _unreadable(line):
            yield number, wrong
        elif column:
            yield number, {column: line}
        elif words := line.split(maxsplit=1):
            both = len(words) == 2
            yield number, dict(zip("01", words, strict=True)) if both else _ONE_WORD


def _named(name: str, rows: _Cells, has_header: bool) -> _Found:
    names: list[str] = []
    for number, cells in rows:
        wrong = cells if isinstance(cells, str) else _unreadable("".join(cells))
        if has_header and not names:
            twice = [one for one in cells if one and cells.count(one) > 1]
            if wrong or twice:
                raise UserError(f"{name}:{number}: {wrong or f'two columns are called {twice[0]!r}: rename one'}")
            names = list(cells)
            continue
        if wrong or isinstance(cells, str):
            yield number, wrong
            continue
        names = names or [str(i) for i in range(len(cells))]
        counts = f"{len(cells)} columns, where the first line has {len(names)}"
        is_whole = len(cells) == len(names)
        yield number, dict(zip(names, cells, strict=True)) if is_whole else f"{counts}: correct this row"


def _csv_cells(lines: Iterator[str]) -> _Cells:
    csv.field_size_limit(_LONGEST)
    reader = csv.reader((f"{line}\n" for line in lines), strict=True)
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


def lines_of(name: str, blocks: Iterator[bytes]) -> Iterator[str]:
    """Yields lines without their ends and without a byte order mark. Bytes that are no UTF-8 become lone surrogates,
    which nothing else can: `_unreadable` finds them, and only their own line is lost."""

    def decode(block: bytes, position: int, _: int) -> str:
        return block.removeprefix(b"" if position else codecs.BOM_UTF8).decode("utf-8", "surrogateescape")

    return split_lines(name, blocks, _LONGEST, decode)


def _unreadable(text: str) -> str:
    """Returns what is wrong with the bytes of a row, or ""."""
    if "\0" in text:
        return "binary data (a zero byte): leave out this line, or the whole file"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        byte = ord(text[error.start]) - 0xDC00
        return f"not UTF-8 (byte 0x{byte:02x}): convert the file, e.g. with iconv -f LATIN1 -t UTF-8"
    return ""


def _read_parquet(path: Path) -> Iterator[InputRow]:
    import pyarrow
    from pyarrow import parquet  # takes a while, and only these files need it

    if path.suffix in OPENERS:
        raise UserError(f"{path}: Parquet compresses inside: unpack this file")
    if is_url(path):
        raise UserError(f"{path}: Parquet is not read from a bucket: copy this file to a local disk")
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if twice := [name for name in names if names.count(name) > 1]:
                raise UserError(f"{path}: two columns are called {twice[0]!r}: rename one")
            for batch in file.iter_batches(batch_size=4096):
                for values in batch.to_pylist():
                    number += 1
                    yield InputRow(number, Row(f"{path}:{number}", values))
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:  # dates may be out of Python's range
        raise UserError(f"{path}: not whole Parquet, after row {number} ({brief(error)}): write it again") from error


def read_tfds(spec: str) -> Iterator[Row]:
    """Yields the rows of tfds:NAME[/CONFIG][:VERSION]@SPLIT, which is downloaded and prepared if need be."""
    name, _, split = spec.removeprefix("tfds:").partition("@")
    builder = find_builder(name, spec)
    if not split:
        raise UserError(f"{spec}: no split is named: write tfds:{name}@SPLIT, e.g. tfds:{name}@train")
    download(builder, spec)
    try:
        source = builder.as_data_source(split)
    except Exception as error:  # TFDS parses the split, and asserts and looks up as it goes
        splits = ", ".join(builder.info.splits)
        raise UserError(f"{spec}: no split {split!r} (splits: {splits}): name one of these") from error
    for index in range(len(source)):
        yield Row(f"{spec}:{index + 1}", _plain(builder.info.features, source[index]))


def _plain(feature: Any, value: Any) -> Any:
    """Returns what a TFDS feature holds as str, int, float, list and dict."""
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.ClassLabel):
        return feature.int2str(value) if value >= 0 else None
    if isinstance(feature, tfds.features.FeaturesDict):
        return {key: _plain(feature[key], part) for key, part in value.items()}
    if isinstance(feature, tfds.features.Sequence) and isinstance(inner := feature.feature, tfds.features.FeaturesDict):
        # TFDS turns a list of records into a record of lists.
        return {key: [_plain(inner[key], part) for part in parts] for key, parts in value.items()}
    if isinstance(feature, tfds.features.Sequence):
        return [_plain(feature.feature, part) for part in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value.tolist() if hasattr(value, "tolist") else value
