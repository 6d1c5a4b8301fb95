"""One option of a run: a key of its config, with the checks that follow from how `options.py` declares it."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

Value = bool | int | float | str | None

MARKS = {
    "optional": "None is a value; it is of every option whose default is None",
    "needed": "an empty text is not a value",
    "pattern": "a regular expression",
    "shape": "belongs to the parameters: a run that starts from a checkpoint takes it from there",
    "restart": "may differ between two starts of one run: it changes nothing of what is learned",
    "inference": "may differ between a run and a command that uses its checkpoint",
}
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True)
class Option:
    """One key of the config, e.g. `train.steps`, with everything that the code and the docs need to know about it."""

    name: str
    type: type
    default: Value
    meaning: str
    choices: tuple[str, ...] = ()
    range: str = ""  # an interval of numbers: [ ] include the end, ( ) exclude it
    marks: tuple[str, ...] = ()  # of MARKS

    def problem(self, value: Any) -> str | None:
        """Returns what is wrong with a value, as a sentence that names the option, or None."""
        if value is None:
            return None if self.is_optional else f"{self.name} is None; it needs a value ({self.allowed})"
        if not self.has_type(value) or (self.range and not _contains(self.range, value)):
            return f"{self.name} is {_short(value)}; it must be {self.allowed}"
        if self.choices and value not in self.choices:
            return f"{self.name} is {_short(value)}; {can_be(value, self.choices)}"
        if self.type is str and "\0" in value:
            return f"{self.name} contains a NUL character; it must be {self.allowed}"
        if "needed" in self.marks and not value.strip(" "):
            return f"{self.name} is empty; it needs a value"
        return None

    def has_type(self, value: object) -> bool:
        """Returns whether a value that is not None has the option's type; whole numbers are numbers as well."""
        kinds = (int, float) if self.type is float else (self.type,)
        return isinstance(value, kinds) and (self.type is bool or not isinstance(value, bool))

    def parse(self, text: str) -> Value:
        """Returns the value that a text on the command line stands for. Raises ValueError with a sentence."""
        if self.is_optional and text == "None":
            return None
        try:
            value = _BOOLEANS[text.lower()] if self.type is bool else self.type(text)
        except (ValueError, KeyError):
            raise ValueError(f"{self.name} is {_short(text)}; it must be {self.allowed}") from None
        if problem := self.problem(value):
            raise ValueError(problem)
        return value

    @property
    def is_optional(self) -> bool:
        return self.default is None or "optional" in self.marks

    @property
    def ends(self) -> tuple[float, float]:
        """The ends of the range."""
        least, most = _ends(self.range)
        return (int(least), int(most)) if self.type is int else (least, most)

    @property
    def allowed(self) -> str:
        """A phrase for the values that the option accepts."""
        if self.choices:
            return f"{', '.join(self.choices[:-1])} or {self.choices[-1]}"
        kind = {int: "a whole number", float: "a number", bool: "True or False", str: "a text"}[self.type]
        return f"{kind} {_in_words(self.range)}" if self.range else kind


def text(name: str, default: str | bool | None, meaning: str, *marks: str, kind: type = str) -> Option:
    return Option(name, kind, default, meaning, marks=marks)


def number(name: str, default: float | None, range: str, meaning: str, *marks: str, kind: type = float) -> Option:
    return Option(name, kind, default, meaning, range=range, marks=marks)


def choice(name: str, default: str | None, choices: str, meaning: str, *marks: str) -> Option:
    """Returns an option with these `choices`, which " | " separates."""
    return Option(name, str, default, meaning, tuple(choices.split(" | ")), marks=marks)


switch, integer = partial(text, kind=bool), partial(number, kind=int)


def most_like(name: str, names: Iterable[str]) -> str:
    """Returns the name that is most like `name`, whose group may be wrong or missing."""
    names = list(names)
    tails = {option.rpartition(".")[2]: option for option in reversed(names)}
    close = difflib.get_close_matches(name, names, 1, 0.7)
    close += [tails[match] for match in difflib.get_close_matches(name.rpartition(".")[2], tails, 1, 0.7)]
    return (close + difflib.get_close_matches(name, names, 1, 0))[0]


def can_be(text: str, choices: Iterable[str]) -> str:
    """Returns the end of a message about a text that is none of the choices: what it can be, the most similar last."""
    names = [name for name in choices if name]
    close = difflib.get_close_matches(text, names, 1)
    return f"it can be {', '.join(names)}" + (f" (did you mean {close[0]}?)" if close else "")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}… ({len(text)} characters)"


def _contains(interval: str, value: float) -> bool:
    least, most = _ends(interval)
    excluded = (least if interval[0] == "(" else None, most if interval[-1] == ")" else None)
    return least <= value <= most and value not in excluded


def _in_words(interval: str) -> str:
    least, most = (f"{end:g}" if abs(end) < 1e6 else str(end).removesuffix(".0") for end in _ends(interval))
    lower = f"above {least}" if interval[0] == "(" else f"from {least}"
    upper = f"below {most}" if interval[-1] == ")" else most
    return f"{lower} to {upper}"


def _ends(interval: str) -> tuple[float, float]:
    least, most = (2.0 ** int(end[2:]) if end.startswith("2^") else float(end) for end in interval[1:-1].split(", "))
    return least, most
