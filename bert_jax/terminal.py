"""Text for a terminal: lines as wide as it is, in columns, coloured where one is (https://no-color.org)."""

import os
import shutil
import sys
import textwrap
from collections.abc import Iterable


def bold(text: str) -> str:
    return _styled(text, "1")


def dim(text: str) -> str:
    return "\n".join(_styled(line, "2") for line in text.split("\n"))


def wrapped(text: str, indent: str = "") -> str:
    """Returns paragraphs, which empty lines separate, in lines that fit; those that are indented stay as they are."""
    found = []
    for paragraph in text.strip("\n").split("\n\n"):
        is_code = paragraph.startswith("    ")
        found.append(paragraph if is_code else _filled(paragraph, indent, indent))
    return "\n\n".join(found)


def in_columns(rows: Iterable[tuple[str, str]], left: int = 24) -> str:
    """Returns rows of a name and a text beside it, which begins in column `left`, below the name if that is longer."""
    lines = []
    for name, text in rows:
        head, space = f"  {_styled(name, '36') if name else ''}", left - 2 - len(name)
        filled = _filled(text, " " * left, " " * left)
        lines.append(head + " " * space + filled[left:] if space >= 2 else f"{head}\n{filled}")
    return "\n".join(lines)


def _filled(text: str, first: str, others: str) -> str:
    width = max(50, min(120, shutil.get_terminal_size((100, 24)).columns))
    words = " ".join(text.split())
    return textwrap.fill(words, width, initial_indent=first, subsequent_indent=others, break_long_words=False,
        break_on_hyphens=False)  # fmt: skip


def _styled(text: str, code: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if text and _has_colours() else text


def _has_colours() -> bool:
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and sys.stdout.isatty()
