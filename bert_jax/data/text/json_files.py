"""JSON from files that this process did not write: every field is checked where it is read."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

from bert_jax.config import Json, UserError
from bert_jax.data.text.text_files import read_bytes

T = TypeVar("T")
Kind = type[T] | tuple[type, ...]
_SHOWN = 60  # characters of a wrong value in a message
_LARGEST = 2**63 - 1
_NAMES = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}
_NAMES |= {dict: "an object", list: "a list", type(None): "null"}


@dataclass(frozen=True)
class JsonObject:
    """A JSON object from elsewhere. Messages name its `origin` and the field first, and `remedy` last."""

    content: Json
    origin: Path | str
    remedy: str

    def __contains__(self, name: str) -> bool:
        return name in self.content

    def get(self, name: str, kind: Kind[T], *, default: Any = ..., least: int | None = None) -> T:
        """Returns the field `name`, or `default` where it is absent; without a default it must be there.

        `kind` is a type or several; a boolean is no integer. Integers must fit into 64 bits and be at least `least`.
        """
        if name not in self.content:
            if default is ...:
                raise UserError(f"{self.origin}: no field {name!r}: {self.remedy}")
            return default
        kinds, value = kind if isinstance(kind, tuple) else (kind,), self.content[name]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            self.refuse(name, value, " or ".join(_NAMES[one] for one in kinds))
        if isinstance(value, int) and not -_LARGEST <= value <= _LARGEST:
            self.refuse(name, value, "an integer of 64 bits")
        if least is not None and cast(int, value) < least:
            self.refuse(name, value, f"at least {least}")
        return cast(T, value)

    def object(self, name: str) -> "JsonObject":
        """Returns the field `name`, which must be an object."""
        return JsonObject(self.get(name, dict), self.origin, self.remedy)

    def refuse(self, name: str, value: Any, wanted: str) -> NoReturn:
        """Raises the UserError for a value that has the wrong type or is out of range."""
        shown = repr(value) if not isinstance(value, int) or abs(value) <= _LARGEST else "a number of many digits"
        shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
        raise UserError(f"{self.origin}: {name} is {shown}, expected {wanted}: {self.remedy}")


def read_object(path: Path, remedy: str) -> JsonObject:
    """Returns the JSON object in a file. Raises UserError for anything else, ending with `remedy`."""
    return parse_object(read_bytes(path, remedy), path, remedy)


def parse_object(content: bytes, origin: Path | str, remedy: str) -> JsonObject:
    """Returns the JSON object that `content` is; messages name `origin`. Raises UserError for anything else."""
    return JsonObject(parse_value(content, origin, remedy, dict), origin, remedy)


def parse_value(content: bytes, origin: Path | str, remedy: str, kind: type[T]) -> T:
    """Returns the JSON value of type `kind` that `content` is, as `parse_object`."""
    try:
        value = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{origin}: not JSON ({error}): {remedy}") from None
    if not isinstance(value, kind):
        raise UserError(f"{origin}: is {_NAMES[type(value)]}, expected {_NAMES[kind]}: {remedy}")
    return value
