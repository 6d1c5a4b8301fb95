"""Docstrings are plain text with `code`; Markdown would take [SEP] [UNK] and <name> for something else."""

import re
from typing import Any

from griffe import Extension

_OF_MARKDOWN = {r"\]\s?\[": lambda found: found[0].replace("[", r"\["), "<": lambda found: "&lt;"}


class PlainText(Extension):
    """Escapes what Markdown would take for a link or a tag, outside of code."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = "\n".join(_escaped(line) for line in obj.docstring.value.split("\n"))


def _escaped(line: str) -> str:
    if line.startswith("    "):
        return line
    parts = re.split("(`[^`]*`)", line)
    for pattern, escaped in _OF_MARKDOWN.items():
        parts = [part if part.startswith("`") else re.sub(pattern, escaped, part) for part in parts]
    return "".join(parts)
