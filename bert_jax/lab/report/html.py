"""Pages that need no other file and no network: style, sections, tables and pictures are inside.

Whatever is given is text and is escaped; only pictures are put in as they are. The colours follow the reader's choice
of a light or a dark screen.
"""

import base64
import html
import re
from collections.abc import Iterable, Sequence

from bert_jax.tasks.sections import Cell, Marked, Table

# What pictures draw in these two colours follows the page's.
INK, LINE = "#1d232b", "#dde2e8"
_MANY = 7  # columns, from which a table is set smaller
_NOT_SHOWN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

_STYLE = """
:root { --ink: #1d232b; --soft: #5b6673; --line: #dde2e8; --paper: #fff; --panel: #f5f7f9; --link: #0072b2;
  --better: #0f6e4d; --worse: #b0401b; --unclear: #5b6673; --mark: #fde2dd; color-scheme: light dark }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e8ed; --soft: #9aa6b2; --line: #303841; --paper: #14181d;
  --panel: #1c2229; --link: #62b6ee; --better: #55c79d; --worse: #ff9a6c; --unclear: #9aa6b2; --mark: #5a2a22 } }
* { box-sizing: border-box }
body { font: 15px/1.55 system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif; color: var(--ink);
  background: var(--paper); max-width: 62rem; margin: 0 auto; padding: 2.4rem 1.4rem 4rem;
  overflow-wrap: anywhere }
h1 { font-size: 1.75rem; line-height: 1.25; letter-spacing: -.012em; margin: .2rem 0 .5rem; text-wrap: balance }
h2 { font-size: 1.12rem; margin: 2.6rem 0 .5rem; padding-top: .9rem; border-top: 1px solid var(--line) }
h3 { font-size: .95rem; margin: 1.2rem 0 .4rem } p { margin: .4rem 0; max-width: 46rem }
.kicker { color: var(--soft); font-size: .82rem; letter-spacing: .04em; margin: 0 } .note { color: var(--soft) }
.note, small { font-size: .87rem } small { display: block; color: var(--soft); line-height: 1.35; font-weight: 400 }
.wide { overflow-x: auto; max-width: 100% } .beside { display: flex; flex-wrap: wrap; gap: .4rem 3rem }
.beside > * { max-width: 100% }
table { border-collapse: collapse; margin: .5rem 0 } td, th { padding: .32rem .8rem; text-align: left }
td { border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere; min-width: 3.2rem }
th { border-bottom: 1.5px solid var(--soft); vertical-align: bottom; overflow-wrap: break-word;
  font-weight: 600; font-size: .87rem }
td:first-child, th:first-child { padding-left: 0; min-width: 5.5rem } td:last-child, th:last-child { padding-right: 0 }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
th.number, th.number small { white-space: normal }
.dense { font-size: .87rem } .dense td:first-child { min-width: 6.6rem }
.dense td + td, .dense th + th { padding: .3rem .36rem }
.best { font-weight: 700 } .better { color: var(--better) } .worse { color: var(--worse) }
.unclear { color: var(--unclear) } .problem { color: var(--worse); font-weight: 600 }
td.better, td.worse, td.unclear, td.problem { min-width: 6.2rem }
ul.verdicts { list-style: none; padding: 0; margin: .6rem 0 }
ul.verdicts li { padding: .42rem .8rem; margin: .35rem 0; border-left: 4px solid currentColor; max-width: 52rem;
  background: var(--panel); border-radius: 0 4px 4px 0 } ul.verdicts li > span { color: var(--ink) }
svg, img { max-width: 100%; height: auto } figure { margin: .8rem 0; overflow-x: auto }
svg { display: block }
img { background: #fff; border-radius: 4px } summary { cursor: pointer; color: var(--link) }
pre { background: var(--panel); padding: .8rem; overflow-x: auto; font-size: .84rem; border-radius: 4px }
mark { background: var(--mark); color: inherit } b { color: var(--better) }
@media (max-width: 40rem) { figure svg { max-width: none } }
@media print { body { max-width: none; padding: 0; font-size: 10.5pt } h2 { break-after: avoid }
  tr, figure, li { break-inside: avoid } .wide { overflow: visible } }
"""


def page(title: str, body: Iterable[str], kicker: str = "") -> str:
    """Returns the text of a page. `body` are pieces of HTML; empty ones are left out. `kicker` stands above the
    title."""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    above = f'<p class="kicker">{escape(kicker)}</p>' if kicker else ""
    content = "\n".join([f"{above}<h1>{escape(title)}</h1>", *filter(None, body)])
    head += f"<style>{_STYLE}</style>"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{content}\n</body></html>\n'


def escape(text: str) -> str:
    """Returns the text as HTML that shows it, without control characters and marks of the writing direction."""
    return html.escape(_NOT_SHOWN.sub("\ufffd", text))


def section(title: str, body: str, note: str = "") -> str:
    return f"<h2>{escape(title)}</h2>" + paragraph(note, "note") + body


def paragraph(text: str, kind: str = "") -> str:
    """Returns a paragraph; "" without a text."""
    return f"<p{_class(kind)}>{escape(text)}</p>" if text else ""


def picture(image: bytes, description: str) -> str:
    """Returns a picture: a PNG, or an SVG whose INK and LINE follow the page's colours."""
    if image.startswith(b"\x89PNG"):
        return f'<img alt="{escape(description)}" src="data:image/png;base64,{base64.b64encode(image).decode()}">'
    svg = image.decode()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor").replace(LINE, "var(--line)")
    return f'<figure role="img" aria-label="{escape(description)}">{svg}</figure>'


def table(table: Table) -> str:
    rows = "".join(_row(row, "td", table.numbers) for row in table.rows)
    dense = " dense" if len(table.header) > _MANY else ""
    return f'<div class="wide{dense}"><table>{_row(table.header, "th", table.numbers)}{rows}</table></div>'


def verdicts(lines: Iterable[Cell]) -> str:
    """Returns a list of statements, each with the colour of its kind."""
    items = (f"<li{_class(line.kind)}><span>{escape(line.text)}</span>{_small(line.note)}</li>" for line in lines)
    return f'<ul class="verdicts">{"".join(items)}</ul>'


def folded(summary: str, body: str) -> str:
    """Returns what a reader unfolds by a click."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def code(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"


def _row(cells: Sequence[str | Cell | Marked], tag: str, numbers: Iterable[int]) -> str:
    inside = "".join(_cell(cell, tag, "number" if column in numbers else "") for column, cell in enumerate(cells))
    return f"<tr>{inside}</tr>"


def _cell(cell: str | Cell | Marked, tag: str, kind: str) -> str:
    if isinstance(cell, Cell):
        text = escape(cell.text).replace("_", "_<wbr>") if tag == "th" else escape(cell.text)
        return f"<{tag}{_class(f'{kind} {cell.kind}')}>{text}{_small(cell.note)}</{tag}>"
    return f"<{tag}{_class(kind)}>{_marked(cell) if isinstance(cell, Marked) else escape(cell)}</{tag}>"


def _class(kind: str) -> str:
    return f' class="{kind.strip()}"' if kind.strip() else ""


def _small(note: str) -> str:
    return f"<small>{escape(note)}</small>" if note else ""


def _marked(cell: Marked) -> str:
    return " ".join(
        escape(word) if tag == other else f"<mark>{escape(word)}/<b>{escape(tag)}</b>/{escape(other)}</mark>"
        for word, tag, other in zip(*cell, strict=True)
    )
