"""Tables of fine-tuning data: CSV, TSV, JSONL, Parquet, lines of text, TFDS names → rows → examples.

Rows are streamed, in the order of the sorted file names. The format goes by the suffix, before .gz, .xz or .zst:

    .csv            RFC 4180; blank lines are skipped
    .tsv            cells between tabs, nothing else: quotes are text, as in GLUE; blank lines are skipped
    .jsonl, .json   an object a line
    .parquet        a few thousand rows at a time
    .txt            a text a line, in column "text"; blank lines are rows, so that predictions stay beside their lines.
                    With columns by number, column 0 is the first word and column 1 the rest: `DESC:def What is BERT ?`
"""

import csv
import difflib
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from bert_jax.config import UserError
from bert_jax.data.labelled.examples import ChoiceExample, TextExample
from bert_jax.data.text.text_files import OPENERS, find_files, parse_json, read_lines
from bert_jax.data.text.tfds_names import brief, download, find_builder

_MAX_CELL = 1 << 26  # characters; the csv module's own limit of 128 K is less than a book
_NUMBER = re.compile(r"-?\d+")

Kind = Literal["single", "multi", "regression"]


class Row(NamedTuple):
    origin: str  # "path:line"; for Parquet and TFDS the row, from 1
    values: dict[str, Any]


def read_rows(spec: str, header: bool | None = None) -> Iterator[Row]:
    """`spec` is a path, comma-separated paths and globs, or tfds:NAME[/CONFIG][:VERSION]@SPLIT (whose strings come as
    str, whose ClassLabels as their names, -1 as None).

    `header=False`: the columns of CSV, TSV and .txt have no names and are called "0", "1", ….
    Raises UserError, with file and line, for what cannot be read, an unknown suffix, a ragged row, a file of no rows.
    """
    if spec.startswith("tfds:"):
        yield from _read_tfds(spec)
        return
    paths = find_data_files(spec)
    readers = [_reader(path) for path in paths]
    for path, read in zip(paths, readers, strict=True):
        origin = None
        for origin, values in read(path, header is not False):
            yield Row(origin, values)
        if origin is None:
            raise UserError(f"{path} has no rows: mend or leave out this file")


def find_data_files(spec: str) -> list[Path]:
    if not spec.strip():
        raise UserError("no data is named: give a path, a glob or tfds:NAME@SPLIT")
    return find_files(spec, "data")


def suffix_of(path: Path) -> str:
    """ ".csv" of train.CSV.gz"""
    return (Path(path.stem) if path.suffix in OPENERS else path).suffix.lower()


def text_examples(
    spec: str, *, text: str, text_pair: str, label: str, kind: Kind, separator: str, id: str = ""
) -> Iterator[TextExample]:
    """Columns are given by name or, if the file has no header, by number (-1 is the last); "" is none.

    A label that is empty or null is None: that row has no label. `kind`:
    single      a class name
    multi       any number of class names, joined by `separator` or a list; or `label` names several columns, joined by
                `separator`, each 0 or 1. An empty cell is no class, null is None
    regression  a finite number
    Raises UserError with the row for a missing column or a wrong value.
    """
    if not text:
        raise UserError(f"{spec}: no column is named for the text")
    if kind not in get_args(Kind):
        raise UserError(f"{spec}: kind {kind!r}: choose single, multi or regression")
    flags = label.split(separator) if kind == "multi" and separator in label else []
    header = _has_header([text, text_pair, id, *(flags or [label])])
    for row in read_rows(spec, header):
        yield TextExample(
            row.origin,
            text_in(row, text),
            text_in(row, text_pair) if text_pair else None,
            _label(row, label, flags, kind, separator) if label else None,
            _name(row, id) if id else None,
        )


def choice_examples(
    spec: str, *, context: str, ending_start: str, choices: str, label: str, id: str = ""
) -> Iterator[ChoiceExample]:
    """As `text_examples`. `choices` names the columns of the choices, comma-separated, or one column of lists; `label`
    a column of numbers from 0. SWAG: context sent1, ending_start sent2, choices ending0,ending1,ending2,ending3."""
    names = [name.strip() for name in choices.split(",") if name.strip()]
    if not context or not names:
        raise UserError(f"{spec}: columns must be named for the context and for the choices")
    for row in read_rows(spec, _has_header([context, ending_start, *names, label, id])):
        found = [text_in(row, name) for name in names] if len(names) > 1 else texts_in(row, names[0])
        if len(found) < 2:
            raise UserError(f"{row.origin}: {len(found)} choices; name two columns or more, or one of lists")
        yield ChoiceExample(
            row.origin,
            _name(row, id) if id else None,
            text_in(row, context),
            text_in(row, ending_start) if ending_start else "",
            tuple(found),
            _choice(row, label, len(found)) if label else None,
        )


def value_in(row: Row, column: str) -> Any:
    values = row.values
    if column in values:
        return values[column]
    if column.startswith("-") and _NUMBER.fullmatch(column) and "0" in values and int(column) >= -len(values):
        return values[str(len(values) + int(column))]
    close = difflib.get_close_matches(column, values, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    present = ", ".join(name if len(name) <= 40 else f"{name[:40]}…" for name in values)
    raise UserError(
        f"{row.origin}: no column {column!r} ({hint}columns: {present}): name one of these, or number the columns "
        "from 0 if the file has no header"
    )


def text_in(row: Row, column: str) -> str:
    value = value_in(row, column)
    if not isinstance(value, str):
        raise UserError(f"{row.origin}: column {column!r} holds {_shown(value)}, no text: mend this row")
    return value


def texts_in(row: Row, column: str) -> list[str]:
    value = value_in(row, column)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UserError(f"{row.origin}: column {column!r} holds {_shown(value)}, no list of texts: mend this row")
    return value


def _has_header(columns: list[str]) -> bool | None:
    return False if any(_NUMBER.fullmatch(column) for column in columns) else None


def _label(row: Row, column: str, flags: list[str], kind: Kind, separator: str) -> str | float | tuple[str, ...] | None:
    if flags:
        return tuple(name for name in flags if _flag(row, name))
    value = value_in(row, column)
    if value is None or (value == "" and kind != "multi"):
        return None
    if kind == "single":
        return _name(row, column)
    if kind == "regression":
        return _finite(row, column, value)
    if isinstance(value, list):
        return tuple(dict.fromkeys(texts_in(row, column)))
    if not isinstance(value, str):
        raise UserError(f"{row.origin}: column {column!r} holds {_shown(value)}, no list and no text: mend this row")
    return tuple(dict.fromkeys(name.strip() for name in value.split(separator) if name.strip()))


def _name(row: Row, column: str) -> str:
    """Numbers and truth values name a class, or a row, as JSON writes them."""
    value = value_in(row, column)
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str | int | float) or value != value:
        raise UserError(f"{row.origin}: column {column!r} holds {_shown(value)}, no name: mend this row")
    return str(value)


def _finite(row: Row, column: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) or "_" in str(value) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{row.origin}: column {column!r} holds {_shown(value)}, no finite number: mend this row")
    return number


def _flag(row: Row, column: str) -> bool:
    value = value_in(row, column)
    if value not in (0, 1, "0", "1"):
        raise UserError(f"{row.origin}: column {column!r} holds {_shown(value)}; it must be 0 or 1")
    return value in (1, "1")


def _choice(row: Row, column: str, num_choices: int) -> int | None:
    value = value_in(row, column)
    if value is None or value == "":
        return None
    if isinstance(value, bool) or str(value) not in map(str, range(num_choices)):
        raise UserError(
            f"{row.origin}: column {column!r} holds {_shown(value)}; it must be the number of the right choice, "
            f"0 to {num_choices - 1}"
        )
    return int(value)


def _shown(value: Any) -> str:
    text = repr(value) if value is not None else "null"
    return text if len(text) <= 60 else f"{text[:60]}…"


def _reader(path: Path) -> Callable[[Path, bool], Iterator[tuple[str, dict[str, Any]]]]:
    readers = {
        ".csv": lambda path, header: _name_cells(path, header, _csv_cells(path)),
        ".tsv": lambda path, header: _name_cells(path, header, _tsv_cells(path)),
        ".jsonl": _read_jsonl,
        ".json": _read_jsonl,
        ".parquet": _read_parquet,
        ".txt": _read_text,
    }
    suffix = suffix_of(path)
    if suffix not in readers:
        raise UserError(
            f"{path}: unknown suffix {suffix!r}: rename it to one of {', '.join(readers)} (+ .gz, .xz, .zst)"
        )
    return readers[suffix]


def _name_cells(path: Path, header: bool, rows: Iterator[tuple[int, list[str]]]) -> Iterator[tuple[str, dict]]:
    names: list[str] = []
    for line, cells in rows:
        if not names and header:
            names = cells
            twice = {name for name in names if name and names.count(name) > 1}
            if twice:
                raise UserError(f"{path}:{line}: two columns are called {min(twice)!r}: rename one")
            continue
        names = names or [str(number) for number in range(len(cells))]
        if len(cells) != len(names):
            raise UserError(
                f"{path}:{line}: {len(cells)} columns, where the first line has {len(names)}: mend this row"
            )
        yield f"{path}:{line}", dict(zip(names, cells, strict=True))


def _csv_cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(_MAX_CELL)
    reader = csv.reader((f"{line}\n" for line in read_lines(path)), strict=True)
    while True:
        first = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise UserError(
                f"{path}:{first}: the row that begins here is no CSV ({error}): close its quotes, double those inside"
            ) from error
        if cells is None:
            return
        if cells:
            yield first, cells


def _tsv_cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(read_lines(path), 1):
        if line:
            yield number, line.split("\t")


def _read_text(path: Path, header: bool) -> Iterator[tuple[str, dict]]:
    for number, line in enumerate(read_lines(path), 1):
        if header:
            yield f"{path}:{number}", {"text": line}
            continue
        words = line.split(maxsplit=1)
        if len(words) == 1:
            raise UserError(f"{path}:{number}: one word, where a label and a text were expected: mend this line")
        if words:
            yield f"{path}:{number}", {"0": words[0], "1": words[1]}


def _read_jsonl(path: Path, header: bool) -> Iterator[tuple[str, dict]]:
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        record = parse_json(path, number, line)
        if not isinstance(record, dict):
            kind = type(record).__name__
            raise UserError(f"{path}:{number}: a {kind}, no JSON object: write an object a line (jq -c '.[]')")
        yield f"{path}:{number}", record


def _read_parquet(path: Path, header: bool) -> Iterator[tuple[str, dict]]:
    import pyarrow
    from pyarrow import parquet  # takes a while, and only these files need it

    if path.suffix in OPENERS:
        raise UserError(f"{path}: Parquet compresses inside: unpack this file")
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=4096):
                for values in batch.to_pylist():
                    number += 1
                    yield f"{path}:{number}", values
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not whole Parquet, after row {number} ({brief(error)}): get it again") from error


def _read_tfds(spec: str) -> Iterator[Row]:
    name, _, split = spec.removeprefix("tfds:").partition("@")
    builder = find_builder(name, spec)
    if not split:
        raise UserError(f"{spec}: no split is named: write tfds:{name}@SPLIT, e.g. tfds:{name}@train")
    download(builder, spec)
    try:
        source = builder.as_data_source(split)
    except ValueError as error:
        splits = ", ".join(builder.info.splits)
        raise UserError(f"{spec}: no split {split!r} (splits: {splits}): name one of these") from error
    for index in range(len(source)):
        yield Row(f"{spec}:{index + 1}", _plain(builder.info.features, source[index]))


def _plain(feature: Any, value: Any) -> Any:
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.ClassLabel):
        return feature.int2str(value) if value >= 0 else None
    if isinstance(feature, tfds.features.FeaturesDict):
        return {key: _plain(feature[key], part) for key, part in value.items()}
    if isinstance(feature, tfds.features.Sequence):
        inner = feature.feature
        if isinstance(inner, tfds.features.FeaturesDict):  # TFDS turns a list of records into a record of lists
            return {key: [_plain(inner[key], part) for part in parts] for key, parts in value.items()}
        return [_plain(inner, part) for part in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value.tolist() if hasattr(value, "tolist") else value
