"""The built-in sample: English prose that every installation of this package holds, about 8 MB in 1,500 documents.

The texts of `help()` topics, and the docstrings of the standard library and of four packages that this one requires,
parsed from their sources (nothing is imported): the same text for the same versions. Doctests, code, tables, headings
and signatures are left out, wrapped lines are joined, and a paragraph that stands in several places is taken once.
"""

import ast
import contextlib
import functools
import importlib.metadata
import importlib.util
import inspect
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from bert_jax.config import UserError

PACKAGES = ("numpy", "scipy", "scikit-learn", "matplotlib")  # of requirements.txt: those with the most prose
_FOLDERS = {"scikit-learn": "sklearn"}  # where the name of the folder is another
_SKIPPED = {"test", "tests", "idle_test", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__"}
_ITEM = re.compile(r"(?:[*•-]|\d+[.)])\s+")
_MARKUP = re.compile(r":\w+:(?=`)|``?|\*\*|\|(?=\w)")
_UNDERLINE = re.compile(r"([-=~^*])\1{2,}")
_PARAMETER = re.compile(r"\*{0,2}\w[\w*, ]* ?: |\.\. ")  # its name and type in numpydoc; a directive of reST
_CODE = re.compile(r">>>|-{3}")  # a doctest or a table inside of a paragraph
_WORD = re.compile(r"[A-Za-z][a-z']*[,.;:!?)]*")


@functools.cache
def read_sample() -> tuple[tuple[str, str], ...]:
    """Returns (topic or module name, paragraphs on lines), in a fixed order. Takes about 10 s. Raises UserError if
    there is no text."""
    seen: set[str] = set()
    documents = []
    for name, text in _texts():
        paragraphs = [paragraph for paragraph in dict.fromkeys(_prose(text)) if paragraph not in seen]
        seen.update(paragraphs)
        if paragraphs:
            documents.append((name, "\n".join(paragraphs)))
    if not documents:
        raise UserError("this Python has no sources of its standard library: set data.corpus=text and data.files")
    return tuple(documents)


def sample_sources() -> Iterator[bytes]:
    """Yields what `read_sample` is made of, to be hashed: a start that finds its data prepared need not parse it."""
    for path, name in _modules():
        yield ".".join(name).encode() + b"\0"
        yield path.read_bytes()


def sample_versions() -> str:
    """Returns the names and versions that the sample's text depends on."""
    return ", ".join([f"Python {platform.python_version()}", *(f"{name} {_version(name)}" for name in PACKAGES)])


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _modules() -> Iterator[tuple[Path, tuple[str, ...]]]:
    library = Path(sysconfig.get_paths()["stdlib"])
    roots = [(library, library)]
    for package in PACKAGES:
        spec = importlib.util.find_spec(_FOLDERS.get(package, package))
        roots += [(Path(folder), Path(folder).parent) for folder in (spec and spec.submodule_search_locations) or ()]
    for folder, root in roots:
        for path in sorted(folder.rglob("*.py"), key=lambda path: path.relative_to(folder).parts):
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
    for node in _statements(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            if text:
                yield inspect.cleandoc(text)


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """Yields a node and the statements in it, in their order. `ast.walk` also goes through all expressions, which takes
    five times as long."""
    yield node
    for part in ("body", "handlers", "cases", "orelse", "finalbody"):
        for inner in getattr(node, part, ()):
            yield from _statements(inner)


def _prose(text: str) -> list[str]:
    """Returns paragraphs, each with at least five words of which most look like English."""
    paragraphs: list[list[str]] = []
    for block in re.split(r"\n\s*\n", text):
        lines = [line.strip() for line in block.split("\n") if line.strip()]
        if not lines or any(line.startswith((">>>", "...", "+-", "==", "|")) for line in lines):
            continue
        paragraphs.append([])
        for line in lines:
            if _UNDERLINE.fullmatch(line):
                paragraphs[-1] = []  # what it underlines is a heading
            elif _PARAMETER.match(line):
                paragraphs.append([])
            elif _ITEM.match(line) and paragraphs[-1]:
                paragraphs.append([line])
            else:
                paragraphs[-1].append(line)
    joined = (_MARKUP.sub("", " ".join(" ".join(lines).split())) for lines in paragraphs)
    split = ((paragraph, paragraph.split()) for paragraph in joined)
    english = ((p, words) for p, words in split if sum(map(bool, map(_WORD.fullmatch, words))) >= 0.6 * len(words))
    return [paragraph for paragraph, words in english if len(words) >= 5 and not _CODE.search(paragraph)]
