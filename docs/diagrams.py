"""Draws the diagrams of docs/images, from the code that they are about.

python docs/diagrams.py          # docs/images/house.svg, way.svg, batch.svg
"""

import ast
import re
import textwrap
from html import escape
from pathlib import Path

import numpy as np

from bert_jax.data.batching.batches import collate
from bert_jax.data.batching.items import Item
from bert_jax.data.batching.shapes import Shape
from bert_jax.data.tokenizers.encoding import Part

ROOT = Path(__file__).resolve().parents[1]
INK, LINE, PAPER = "#1f2430", "#8a93a6", "#ffffff"
TINTS = ("#e3edfb", "#e2f4e8", "#fdf0d5", "#f7e1ea", "#ebe5f9", "#e0f3f5")
ROOMS = ("data", "models", "tasks", "training", "inference", "serve", "convert", "lab")


def main() -> None:
    """Writes the files."""
    for name, draw in DIAGRAMS.items():
        (ROOT / "docs" / "images" / f"{name}.svg").write_text(draw(), encoding="utf-8")


def house() -> str:
    """Rooms from the ground up: a room imports only from those below it."""
    shapes, bottom = [], 20 + 62 * len(ROOMS)
    for number, room in enumerate(ROOMS):
        source = (ROOT / "bert_jax" / room / "__init__.py").read_text("utf-8")
        paragraph = " ".join((ast.get_docstring(ast.parse(source)) or "").partition("\n\n")[0].split())
        about = re.sub(r"[:,.]? (`python|Each |One file).*", ".", paragraph).replace("`", "")
        y = bottom - 62 * (number + 1) + 6
        shapes.append(_box(20, y, 700, 52, TINTS[number % len(TINTS)]))
        shapes.append(_text(36, y + 31, f"{room}/", bold=True))
        shapes += [_text(150, y + 22 + 18 * i, line, 13) for i, line in enumerate(textwrap.wrap(about, 80)[:2])]
    shapes.append(
        _text(20, bottom + 24, "A room imports only from rooms below it; serve/ and lab/ may use all of them.", 13)
    )
    return _svg(740, bottom + 40, shapes, "The rooms of bert_jax and what each is for")


def way() -> str:
    """The way of data: corpus → prepared records → rows → steps → checkpoints → what uses them."""
    stages = (
        ("text", "plain, JSONL, wiki;\n.gz .xz .zst"),
        ("vocabulary", "WordPiece,\nunigram, BPE"),
        ("records", "chunks of sentences,\nprepared once"),
        ("rows", "pairs by (seed, epoch,\nindex); packed"),
        ("steps", "masks on the device,\none loop"),
        ("checkpoint", "parameters, config,\nvocabulary, position"),
    )
    uses = ("fine-tune", "predict, embed", "fill masks, score", "generate", "convert, export", "serve")
    shapes = []
    for number, (name, about) in enumerate(stages):
        x, y = 20 + 240 * (number % 3), 20 + 120 * (number // 3)
        shapes += [_box(x, y, 200, 84, TINTS[number % len(TINTS)]), _text(x + 14, y + 26, name, bold=True)]
        shapes += [_text(x + 14, y + 48 + 18 * i, line, 13) for i, line in enumerate(about.split("\n"))]
        if number % 3:
            shapes.append(_arrow(x - 38, y + 42, x - 4, y + 42))
    bend = f'stroke="{LINE}" stroke-width="1.5" marker-end="url(#tip)"'
    shapes.append(f'<path d="M600 104 V120 H120 V136" fill="none" {bend}/>')
    for number, name in enumerate(uses):
        x = 20 + 114 * number
        shapes += [_box(x, 268, 106, 40, PAPER), _text(x + 53, 293, name, 12, anchor="middle")]
        shapes.append(_arrow(600, 226, x + 53, 264))
    return _svg(720, 326, shapes, "From text to a checkpoint, and what a checkpoint is used for")


def batch() -> str:
    """The arrays of a batch of two rows: two sentence pairs share the first."""
    pairs = ((("my", "dog"), ("it", "barks")), (("snow",), ("fell",)), (("who", "wrote", "it"), ("ada", "did")))
    words, items = ["[PAD]", "[CLS]", "[SEP]"], []
    for one, other in pairs:
        row = ["[CLS]", *one, "[SEP]", *other, "[SEP]"]
        words += [word for word in row if word not in words]
        types = [0] * (len(one) + 2) + [1] * (len(other) + 1)
        items.append(Item((Part(np.array([words.index(w) for w in row], np.int32), np.array(types, np.int32)),)))
    made = collate(items, [[0, 1], [2]], Shape(2, 1, 13, 2))
    shapes, y, cell = [], 20, 46
    for row in range(2):
        lines = {"token": [words[i] for i in made["input_ids"][row]]}
        names = ("input_ids", "token_type_ids", "position_ids", "sequence_ids")
        lines |= {name: [str(value) for value in made[name][row]] for name in names}
        for name, values in lines.items():
            shapes.append(_text(20, y + 19, name if name != "token" else f"row {row}", 13, bold=name == "token"))
            for column, value in enumerate(values):
                sequence = int(made["sequence_ids"][row][column])
                fill = TINTS[sequence - 1 + 2 * row] if sequence else PAPER
                x = 140 + column * cell
                if name != "token":
                    shapes.append(_box(x, y, cell - 3, 27, fill, 3))
                shapes.append(_text(x + cell / 2 - 1.5, y + 18, value, 11 if name == "token" else 13, anchor="middle"))
            y += 31
        firsts = ", ".join(map(str, made["first_tokens"][row][made["item_ids"][row] >= 0]))
        shapes.append(_text(20, y + 17, f"first_tokens  {firsts}", 13))
        y += 44
    note = "0 in sequence_ids is padding. Attention stays inside a sequence, and position_ids begin at 0 in each."
    return _svg(760, y + 20, [*shapes, _text(20, y + 4, note, 13)], "The arrays of a batch of two rows")


DIAGRAMS = {"house": house, "way": way, "batch": batch}


def _svg(width: int, height: int, shapes: list[str], title: str) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    tip = '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    tip += f'<path d="M0 0 L8 4 L0 8 z" fill="{LINE}"/></marker>'
    font = 'font-family="system-ui, Helvetica, Arial, sans-serif"'
    paper = f'<rect width="{width}" height="{height}" rx="10" fill="{PAPER}"/>'  # readable on a dark page too
    parts = [f'{head} role="img" {font}>', f"<title>{escape(title)}</title>", f"<defs>{tip}</defs>", paper, *shapes]
    return "\n".join([*parts, "</svg>", ""])


def _box(x: float, y: float, width: float, height: float, fill: str, radius: float = 8) -> str:
    place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}"'
    return f'<rect {place} fill="{fill}" stroke="{LINE}"/>'


def _text(x: float, y: float, text: str, size: int = 15, *, bold: bool = False, anchor: str = "start") -> str:
    weight = ' font-weight="600"' if bold else ""
    place = f'x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}"'
    return f'<text {place} fill="{INK}"{weight}>{escape(text)}</text>'


def _arrow(x: float, y: float, to_x: float, to_y: float) -> str:
    ends = f'x1="{x:g}" y1="{y:g}" x2="{to_x:g}" y2="{to_y:g}"'
    return f'<line {ends} stroke="{LINE}" stroke-width="1.5" marker-end="url(#tip)"/>'


if __name__ == "__main__":
    main()
