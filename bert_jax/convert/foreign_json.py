"""JSON files from elsewhere: every field is checked where it is read, and the message names file and field."""

import json
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

from bert_jax.config import UserError

_LARGEST = {"num_hidden_layers": 10_000}  # what a list is made of before any tensor is looked at
_SHOWN = 60  # characters of a wrong value
T = TypeVar("T")


def read_json(path: Path, kind: type[T] = dict) -> T:
    """Returns the JSON object, or with `kind=list` the array, in a file. Raises UserError."""
    if not path.is_file():
        raise UserError(f"{path} is missing; fetch the checkpoint again")
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); fetch the checkpoint again") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); fetch the checkpoint again") from None
    if not isinstance(content, kind):
        wanted = "array" if kind is list else "object"
        raise UserError(f"{path} is not a JSON {wanted}; fetch the checkpoint again")
    return content


def field(settings: dict[str, Any], name: str, kind: type[T], path: Path, default: T) -> T:
    """Returns a field of a JSON object, or `default` where it is absent or null.

    An integer is accepted where a float is wanted, a boolean only where a boolean is. Raises UserError, naming file
    and field, for a value of another type.
    """
    value = settings.get(name)
    if value is None:
        return default
    if kind is float and type(value) is int:
        value = float(min(value, 2**63))  # larger ones are beyond every range, and some beyond float
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        refuse(value, name, _KINDS[kind], path)
    return cast(T, value)


_KINDS = {
    int: "an integer",
    float: "a number",
    str: "a string",
    bool: "true or false",
    dict: "an object",
    list: "a list",
}


def model_fields(settings: dict[str, Any], names: dict[str, str], path: Path) -> dict[str, Any]:
    """Returns the fields of a BertConfig, by our names, that `settings` has. `names`: ours → theirs.

    Raises UserError for a wrong type and for a number that no model has; BertConfig checks the rest.
    """
    given: dict[str, Any] = {}
    for ours, theirs in names.items():
        if settings.get(theirs) is None:
            continue
        kind = _TYPES.get(ours, int)
        given[ours] = value = field(settings, theirs, kind, path, kind())
        if kind is int and not 0 < value <= _LARGEST.get(ours, 2**31 - 1):
            refuse(value, theirs, f"an integer from 1 to {_LARGEST.get(ours, 2**31 - 1)}", path)
        if kind is float and not 0 <= value < float("inf"):
            refuse(value, theirs, "a finite number from 0 on", path)
    return given


_TYPES: dict[str, type] = {
    "hidden_dropout": float,
    "attention_dropout": float,
    "initializer_range": float,
    "layer_norm_eps": float,
    "causal": bool,
}


def refuse(value: Any, name: str, wanted: str, path: Path) -> NoReturn:
    shown = repr(value)
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
    raise UserError(f"{path}: {name} is {shown}; it must be {wanted}")
