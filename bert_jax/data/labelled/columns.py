"""Columns of rows → examples of texts and of choices: what a column holds, and what a label can be."""

import difflib
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, Literal, NoReturn, get_args

from bert_jax.config import UserError
from bert_jax.data.labelled.examples import ChoiceExample, TextExample
from bert_jax.data.labelled.tables import Row, read_rows

_NUMBER = re.compile(r"-?\d+")
_LARGEST = 3.4e38  # of float32, in which labels are trained on

Kind = Literal["single", "multi", "regression"]


def text_examples(
    spec: str,
    *,
    text: str,
    text_pair: str,
    label: str,
    kind: Kind,
    separator: str,
    vectors: Callable[[Row], Any] | None = None,
) -> Iterator[TextExample]:
    """Yields an example for each row of `spec`, see `tables.read_rows`.

    Columns are given by name or, if the file has no header, by number (-1 is the last); "" is none.
    A label that is empty or null is None: that row has no label. `kind`:
    single      a class name
    multi       any number of class names, joined by `separator` or a list; or `label` names several columns, joined by
                `separator`, each 0 or 1. An empty cell is no class, null is None
    regression  a finite number
    `vectors` reads what a row has beside its texts, which then may be "", none. Raises UserError with the row for a
    missing column or a wrong value.
    """
    if not text and vectors is None:
        raise UserError(f"{spec}: no column is named for the text: set data.text")
    if kind not in get_args(Kind):
        raise UserError(f"data.label_kind {kind!r} is unknown ({spec}): choose single, multi or regression")
    if kind == "multi" and not separator:
        raise UserError(f"data.label_separator is empty ({spec}): give the text between the labels, e.g. '|'")
    flags = label.split(separator) if kind == "multi" and separator in label else []
    for row in read_rows(spec, has_header([text, text_pair, *(flags or [label])])):
        texts = text_in(row, text) if text else "", text_in(row, text_pair) if text_pair else None
        named = _label(row, label, flags, kind, separator) if label else None
        yield TextExample(row.origin, *texts, named, vectors(row) if vectors else None)


def choice_examples(spec: str, *, context: str, ending_start: str, choices: str, label: str) -> Iterator[ChoiceExample]:
    """Yields an example for each row of `spec`, as `text_examples`.

    `choices` names the columns of the choices, comma-separated, or one column of lists; `label` a column of numbers
    from 0. SWAG: context sent1, ending_start sent2, choices ending0,ending1,ending2,ending3.
    """
    names = names_of("data.choices", choices)
    if not context or not names:
        raise UserError(f"{spec}: no column is named for the context or for the choices: set data.text, data.choices")
    for row in read_rows(spec, has_header([context, ending_start, *names, label])):
        found = [text_in(row, name) for name in names] if len(names) > 1 else texts_in(row, names[0])
        if len(found) < 2:
            raise UserError(f"{row.origin}: {len(found)} choices; name two columns or more, or one of lists")
        beginning = text_in(row, context), text_in(row, ending_start) if ending_start else ""
        right = _choice(row, label, len(found)) if label else None
        yield ChoiceExample(row.origin, *beginning, tuple(found), right)


def names_of(option: str, value: str) -> list[str]:
    """Returns the comma-separated names in the value of an option. Raises UserError for a name that is there twice."""
    names = [name.strip() for name in value.split(",") if name.strip()]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{option} names {twice[0]!r} twice: name it once")
    return names


def value_in(row: Row, column: str) -> Any:
    """Returns what a column holds. Raises UserError if there is no such column, with the name that is closest."""
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
    return value if isinstance(value, str) else _refuse(row, column, value, ", no text")


def texts_in(row: Row, column: str) -> list[str]:
    value = value_in(row, column)
    fits = isinstance(value, list) and all(isinstance(item, str) for item in value)
    return value if fits else _refuse(row, column, value, ", no list of texts")


def has_header(columns: list[str]) -> bool | None:
    return False if any(_NUMBER.fullmatch(column) for column in columns) else None


def _label(row: Row, column: str, flags: list[str], kind: Kind, separator: str) -> str | float | tuple[str, ...] | None:
    if flags:
        return tuple(name for name in flags if _flag(row, name))
    value = value_in(row, column)
    if value is None or (value == "" and kind != "multi"):
        return None
    if kind == "single":
        return _name(row, column, value)
    if kind == "regression":
        return _finite(row, column, value)
    if isinstance(value, str):
        value = [name.strip() for name in value.split(separator) if name.strip()]
    elif not isinstance(value, list):
        _refuse(row, column, value, ", no list and no text")
    else:
        value = texts_in(row, column)
    return tuple(dict.fromkeys(value))


def _name(row: Row, column: str, value: object) -> str:
    """Returns the name of a class; numbers and truth values are named as JSON writes them."""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
        _refuse(row, column, value, ", no name")
    return str(value)


def _finite(row: Row, column: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) or "_" in str(value) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    return number if abs(number) <= _LARGEST else _refuse(row, column, value, ", no finite number")  # nor for NaN


def _flag(row: Row, column: str) -> bool:
    value = value_in(row, column)
    if value not in (0, 1, "0", "1"):
        _refuse(row, column, value, "; it must be 0 or 1")
    return value in (1, "1")


def _choice(row: Row, column: str, num_choices: int) -> int | None:
    value = value_in(row, column)
    if value is None or value == "":
        return None
    if isinstance(value, bool) or str(value) not in map(str, range(num_choices)):
        _refuse(row, column, value, f"; it must be the number of the right choice, 0 to {num_choices - 1}")
    return int(value)


def _refuse(row: Row, column: str, value: object, wrong: str) -> NoReturn:
    shown = repr(value) if value is not None else "null"
    shown = shown if len(shown) <= 60 else f"{shown[:60]}…"
    raise UserError(f"{row.origin}: column {column!r} holds {shown}{wrong}: correct this row")
