"""A report as data, and the three forms in which it is written: HTML, Markdown and LaTeX.

The HTML is one file with its pictures. Markdown names pictures that are written beside it. LaTeX has the texts and the
tables, in a document that compiles by itself.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bert_jax.lab.report import html
from bert_jax.tasks.sections import BEST, BETTER, PROBLEM, UNCLEAR, WORSE, Cell, Marked, Table


class Text(NamedTuple):
    """A paragraph; its kind is "note" for one that explains, or one of `sections.KINDS`."""

    text: str
    kind: str = ""


class Verdicts(NamedTuple):
    """Statements of the kinds better, worse, unclear and problem."""

    lines: Sequence[Cell]


class Picture(NamedTuple):
    """A PNG or an SVG. `name` is that of its file where it needs one."""

    image: bytes
    description: str
    name: str


class Code(NamedTuple):
    text: str


class Titled(NamedTuple):
    """A block under a small heading."""

    title: str
    block: "Block"


class Beside(NamedTuple):
    """Blocks that stand beside each other where there is room."""

    blocks: Sequence["Block"]


class Folded(NamedTuple):
    """What a page shows after a click; Markdown and LaTeX leave it out."""

    summary: str
    blocks: Sequence["Block"]


Block = Text | Verdicts | Picture | Code | Titled | Beside | Folded | Table


@dataclass(frozen=True)
class Part:
    """A heading and what stands below it; a part without blocks is left out."""

    title: str
    blocks: Sequence[Block]
    note: str = ""


@dataclass(frozen=True)
class Document:
    title: str
    parts: Sequence[Part]
    kicker: str = ""  # a line above the title


def to_html(document: Document) -> str:
    def block(one: Block) -> str:
        match one:
            case Text():
                return html.paragraph(*one)
            case Verdicts():
                return html.verdicts(one.lines)
            case Picture():
                return html.picture(one.image, one.description)
            case Code():
                return html.code(one.text)
            case Titled():
                return f"<div><h3>{html.escape(one.title)}</h3>{block(one.block)}</div>"
            case Beside():
                return f'<div class="beside">{blocks(one.blocks)}</div>'
            case Folded():
                return html.folded(one.summary, blocks(one.blocks))
            case Table():
                return html.table(one)

    def blocks(some: Iterable[Block]) -> str:
        return "".join(map(block, some))

    body = (html.section(part.title, blocks(part.blocks), part.note) for part in document.parts if part.blocks)
    return html.page(document.title, body, document.kicker)


def to_text(document: Document) -> str:
    """Returns the texts and tables for a terminal, columns aligned; pictures are left out."""

    def block(one: Block) -> Iterator[str]:
        match one:
            case Text():
                yield one.text
            case Verdicts():
                yield "\n".join(_signed(line, str) for line in one.lines)
            case Code():
                yield one.text
            case Titled():
                yield one.title
                yield from block(one.block)
            case Beside() | Folded():
                yield from [one.summary] if isinstance(one, Folded) else []
                for inner in one.blocks:
                    yield from block(inner)
            case Table():
                yield _aligned(one)

    paragraphs = [document.title]
    for part in document.parts:
        texts = [text for one in part.blocks for text in block(one)]
        paragraphs += [f"{part.title}\n{'─' * len(part.title)}", *filter(None, [part.note]), *texts] if texts else []
    return "\n\n".join(paragraphs)


def to_markdown(document: Document, name_of: Callable[[Picture], str]) -> str:
    """Returns the text of a Markdown file. `name_of` returns the path by which it names a picture."""

    def block(one: Block) -> Iterator[str]:
        match one:
            case Text():
                yield _plain(one.text)
            case Verdicts():
                yield "\n".join(f"- {_signed(line, _plain)}" for line in one.lines)
            case Picture():
                yield f"![{_plain(one.description)}]({name_of(one)})"
            case Code():
                yield "\n".join(f"    {line}" for line in one.text.split("\n"))
            case Titled():
                yield f"### {_plain(one.title)}"
                yield from block(one.block)
            case Beside():
                for inner in one.blocks:
                    yield from block(inner)
            case Table():
                yield _markdown_table(one)

    paragraphs = [f"# {_plain(document.title)}", _plain(document.kicker)]
    for part in document.parts:
        texts = [text for one in part.blocks for text in block(one)]
        paragraphs += [f"## {_plain(part.title)}", _plain(part.note), *texts] if texts else []
    return "\n\n".join(filter(None, paragraphs)) + "\n"


def to_latex(document: Document) -> str:
    """Returns a LaTeX document for pdflatex, with the package booktabs."""

    def block(one: Block) -> Iterator[str]:
        match one:
            case Text():
                yield _latex(one.text)
            case Verdicts():
                items = "\n".join(f"\\item {_signed(line, _latex)}" for line in one.lines)
                yield f"\\begin{{itemize}}\n{items}\n\\end{{itemize}}"
            case Titled():
                yield f"\\subsection*{{{_latex(one.title)}}}"
                yield from block(one.block)
            case Beside():
                for inner in one.blocks:
                    yield from block(inner)
            case Table():
                yield _latex_table(one)

    lines = [
        "\\documentclass{article}\n\\usepackage[T1]{fontenc}\n\\usepackage[utf8]{inputenc}\n\\usepackage{textcomp}",
        "\\usepackage[margin=2cm]{geometry}\n\\usepackage{booktabs}\n\\usepackage{longtable}",
        "\\setlength{\\parindent}{0pt}\\setlength{\\parskip}{1ex}\n\\begin{document}",
        f"\\section*{{{_latex(document.title)}}}",
    ]
    for part in document.parts:
        texts = [text for one in part.blocks for text in block(one)]
        lines += [f"\\section*{{{_latex(part.title)}}}", _latex(part.note), *texts] if texts else []
    return "\n\n".join([*filter(None, lines), "\\end{document}"]) + "\n"


_SIGNS = {BETTER: "▲", WORSE: "▼", UNCLEAR: "?", PROBLEM: "!"}


def _signed(line: Cell, write: Callable[[str], str]) -> str:
    sign = f"{write(_SIGNS[line.kind])} " if line.kind in _SIGNS else ""
    return f"{sign}{write(line.text)}" + (f" ({write(line.note)})" if line.note else "")


def _plain(text: str) -> str:
    """Returns a text that Markdown shows as it is, on one line."""
    text = " ".join(_visible(text).split())
    text = re.sub(r"([\\`*_{}\[\]<>#|~$&])", r"\\\1", text)
    return re.sub(r"^(\d*)(?=[-+.)](\s|$)|[-=]+$)", r"\1\\", text)  # else a list, a rule or an underlined heading


def _aligned(table: Table) -> str:
    rows = [[_words(_whole(cell)) for cell in row] for row in (table.header, *table.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    columns = range(len(widths))
    return "\n".join(
        "  ".join(f"{row[i]:{'>' if i in table.numbers else '<'}{widths[i]}}" for i in columns).rstrip() for row in rows
    )


def _markdown_table(table: Table) -> str:
    def line(cells: Sequence[str | Cell | Marked]) -> str:
        return f"| {' | '.join(map(_markdown_cell, cells))} |"

    marks = ("---:" if column in table.numbers else "---" for column in range(len(table.header)))
    return "\n".join([line(table.header), f"| {' | '.join(marks)} |", *map(line, table.rows)])


def _markdown_cell(cell: str | Cell | Marked) -> str:
    if not isinstance(cell, Cell):
        return _plain(_words(cell))
    text = f"**{_plain(cell.text)}**" if cell.kind == BEST else _plain(cell.text)
    return f"{text} ({_plain(cell.note)})" if cell.note else text


def _words(cell: str | Marked) -> str:
    if isinstance(cell, str):
        return cell
    pairs = zip(*cell, strict=True)
    return " ".join(word if tag == other else f"{word}/{tag}/{other}" for word, tag, other in pairs)


_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}"}
_LATEX |= {">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}", "-": "{-}", "`": r"\textasciigrave{}"}
_LATEX |= {"'": r"\textquotesingle{}", "[": "{[}", "*": "{*}"} | {sign: f"\\{sign}" for sign in "&%$#_{}"}
_LATEX |= {"±": r"$\pm$", "×": r"$\times$", "−": "$-$", "≥": r"$\geq$", "≤": r"$\leq$", "·": r"$\cdot$", "–": "--"}
_LATEX |= {"…": r"\dots{}", "→": r"$\to$", "≈": r"$\approx$", "’": "'", "‘": "`", "“": "``", "”": "''", "—": "---"}
_LATEX |= {"▲": r"$\uparrow$", "▼": r"$\downarrow$", "²": r"\textsuperscript{2}", "°": r"\textdegree{}", "\u00a0": "~"}


def _latex(text: str) -> str:
    """Returns a text for LaTeX, on one line. Characters that pdflatex has no glyph for are spelled out, as U+4E2D."""
    return "".join(map(_latex_character, " ".join(_visible(text).split(" "))))


def _latex_character(character: str) -> str:
    if character in _LATEX:
        return _LATEX[character]
    is_known = character.isascii() or ("LATIN" in unicodedata.name(character, "") and ord(character) < 0x180)
    return character if is_known else f"U+{ord(character):04X}"


def _latex_table(table: Table) -> str:
    def line(cells: Sequence[str | Cell | Marked]) -> str:
        return " & ".join(map(_latex_cell, cells)) + r" \\"

    columns = "".join("r" if column in table.numbers else _width(table, column) for column in range(len(table.header)))
    rows = "\n".join(map(line, table.rows))
    return (
        f"{{\\small\n\\begin{{longtable}}[l]{{@{{}}{columns}@{{}}}}\n\\toprule\n{line(table.header)}\n\\midrule\n"
        f"\\endhead\n{rows}\n\\bottomrule\n\\end{{longtable}}}}"
    )


def _width(table: Table, column: int) -> str:
    """Returns the type of a column of texts: one with long texts has a width, at which its lines are broken."""
    cells = (row[column] for row in table.rows)
    longest = max((len(_words(_whole(cell))) for cell in cells), default=0)
    return "l" if longest <= 36 else rf"p{{{0.28 if len(table.header) > 4 else 0.45}\linewidth}}"


def _whole(cell: str | Cell | Marked) -> str | Marked:
    return f"{cell.text} {cell.note}" if isinstance(cell, Cell) else cell


def _latex_cell(cell: str | Cell | Marked) -> str:
    if not isinstance(cell, Cell):
        return _latex(_words(cell))
    text = f"\\textbf{{{_latex(cell.text)}}}" if cell.kind == BEST else _latex(cell.text)
    return f"{text} {{\\scriptsize ({_latex(cell.note)})}}" if cell.note else text


def _visible(text: str) -> str:
    """Returns the text without control characters and marks of the writing direction."""
    return "".join(" " if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c for c in text)
