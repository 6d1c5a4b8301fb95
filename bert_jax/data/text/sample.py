"""The built-in sample: English prose that every Python installation holds, about 2 MB in 600 documents.

The texts of `help()` topics and the docstrings of the standard library, parsed from its sources (nothing is imported).
Doctests, code, tables and signatures are left out; wrapped lines are joined.
"""

import ast
import contextlib
import functools
import inspect
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from bert_jax.config import UserError

_SKIPPED = {"test", "tests", "idle_test", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__"}
_ITEM = re.compile(r"(?:[*•-]|\d+[.)])\s+")
_MARKUP = re.compile(r":\w+:(?=`)|``?|\*\*|\|(?=\w)")
_WORD = re.compile(r"[A-Za-z][a-z']*[,.;:!?)]*")


@functools.cache
def read_sample() -> tuple[tuple[str, str], ...]:
    """(topic or module name, paragraphs on lines), in a fixed order. Takes about 3 s."""
    documents = [(name, _prose(text)) for name, text in _texts()]
    documents = [(name, text) for name, text in documents if text]
    if not documents:
        raise UserError("this Python has no sources of its standard library: set data.corpus=text and data.files")
    return tuple(documents)


def sample_sources() -> Iterator[bytes]:
    """What `read_sample` is made of, to be hashed: a start that finds its data prepared need not parse it."""
    for path, name in _modules():
        yield ".".join(name).encode() + b"\0"
        yield path.read_bytes()


def _modules() -> Iterator[tuple[Path, tuple[str, ...]]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).parts):
        name = path.relative_to(root).with_suffix("").parts
        if not _SKIPPED.intersection(name):
            yield path, name


def _texts() -> Iterator[tuple[str, str]]:
    with contextlib.suppress(ImportError):  # some distributions leave it out
        from pydoc_data.topics import topics

        yield from ((f"topic {topic}", topics[topic]) for topic in sorted(topics))
    for path, name in _modules():
        if name[0] != "pydoc_data":
            yield ".".join(name), "\n\n".join(_docstrings(path))


def _docstrings(path: Path) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in old modules
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            if text:
                yield inspect.cleandoc(text)


def _prose(text: str) -> str:
    """Paragraphs on lines, each with at least five words of which most look like English."""
    paragraphs: list[list[str]] = []
    for block in re.split(r"\n\s*\n", text):
        lines = [line.strip() for line in block.split("\n") if line.strip()]
        if not lines or any(line.startswith((">>>", "...", "+-", "==", "|")) for line in lines):
            continue
        paragraphs.append([])
        for line in lines:
            if _ITEM.match(line) and paragraphs[-1]:
                paragraphs.append([])
            paragraphs[-1].append(line)
    joined = (_MARKUP.sub("", " ".join(" ".join(lines).split())) for lines in paragraphs)
    split = ((paragraph, paragraph.split()) for paragraph in joined)
    english = ((p, words) for p, words in split if sum(map(bool, map(_WORD.fullmatch, words))) >= 0.6 * len(words))
    return "\n".join(paragraph for paragraph, words in english if len(words) >= 5)
