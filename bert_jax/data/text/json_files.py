"""JSON from files that this process did not write: every field is checked where it is read.

Messages name the file and the field first and the remedy, which the caller knows, last.
"""

import json
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

from bert_jax.config import UserError
from bert_jax.data.text.text_files import read_bytes

T = TypeVar("T")
_SHOWN = 60  # characters of a wrong value in a message
_LARGEST = 2**63 - 1
_NAMES = {
    int: "an integer",
    float: "a number",
    str: "a string",
    bool: "true or false",
    dict: "an object",
    list: "a list",
    type(None): "null",
}


def read_object(path: Path, remedy: str) -> dict[str, Any]:
    """Returns the JSON object in a file. Raises UserError for anything else, ending with `remedy`."""
    return parse_object(read_bytes(path, remedy), path, remedy)


def parse_object(content: bytes, origin: Path | str, remedy: str) -> dict[str, Any]:
    """Returns the JSON object that `content` is; messages name `origin`. Raises UserError for anything else."""
    try:
        value = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{origin}: not JSON ({error}): {remedy}") from None
    if not isinstance(value, dict):
        raise UserError(f"{origin}: is {_kind(value)}, expected an object: {remedy}")
    return value


def field(
    content: dict[str, Any],
    name: str,
    kind: type[T] | tuple[type, ...],
    origin: Path | str,
    remedy: str,
    *,
    default: Any = ...,
    least: int | None = None,
) -> T:
    """Returns the field `name` of an object, or `default` where it is absent; without a default it must be there.

    `kind` is a type or several; a boolean is no integer. Integers must fit into 64 bits and be at least `least`.
    """
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if name not in content:
        if default is ...:
            raise UserError(f"{origin}: no field {name!r}: {remedy}")
        return default
    value = content[name]
    wanted = " or ".join(_NAMES[one] for one in kinds)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        refuse(origin, name, value, wanted, remedy)
    if isinstance(value, int) and not -_LARGEST <= value <= _LARGEST:
        refuse(origin, name, value, "an integer of 64 bits", remedy)
    if least is not None and cast(int, value) < least:
        refuse(origin, name, value, f"at least {least}", remedy)
    return cast(T, value)


def refuse(origin: Path | str, name: str, value: Any, wanted: str, remedy: str) -> NoReturn:
    """Raises the UserError for a value that has the wrong type or is out of range."""
    shown = repr(value) if not isinstance(value, int) or abs(value) <= _LARGEST else "a number of many digits"
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
    raise UserError(f"{origin}: {name} is {shown}, expected {wanted}: {remedy}")


def _kind(value: Any) -> str:
    return next((name for kind, name in _NAMES.items() if type(value) is kind), "no JSON value")
