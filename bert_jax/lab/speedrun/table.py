"""The records as tables of Markdown, one per class, and where they stand in docs/speedrun.md."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from bert_jax.config import UserError
from bert_jax.files import write_atomically
from bert_jax.lab.report.documents import Block, Document, Part, Text, to_markdown
from bert_jax.lab.speedrun.entries import MLM_LOSS, SCORE, SECONDS, TRACKS
from bert_jax.lab.speedrun.record_file import Record, machine_of
from bert_jax.lab.statistics.differences import summary
from bert_jax.tasks.sections import Table

_BEGIN, _END = "<!-- records: begin -->", "<!-- records: end -->"
_HEADER = ("", "entry", "what it changes", "nats per character", "MLM loss", "training", "compiling", "p", "machine")
_HEADER += ("date", "commit")


def to_table(records: Sequence[Record]) -> str:
    """Returns a table per class, newest record first, means with the half width of their 95 % interval."""
    parts = []
    for name, track in TRACKS.items():
        own = [record for record in records if record["track"] == name]
        rows = [_row(number, record) for number, record in enumerate(own, 1)][::-1]
        block: Block = Table(_HEADER, rows, (0, 3, 4, 5, 6, 7)) if rows else Text("No record yet.")
        parts.append(Part(f"{track.title} ({name})", [block]))
    text = to_markdown(Document("Records", parts), lambda picture: picture.name)
    return text.partition("\n\n")[2].replace("## ", "### ")


def put_into(path: Path, text: str) -> None:
    """Replaces what stands between the two marks of a file. Raises UserError if it does not have both, in order."""
    try:
        whole = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"--output={path} cannot be read ({problem}); give docs/speedrun.md") from None
    before, begin, rest = whole.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise UserError(f"--output={path} lacks the marks {_BEGIN} and {_END}; put them where the tables belong")
    write_atomically(path, f"{before}{begin}\n\n{text}\n{end}{after}")


def _row(number: int, record: Record) -> list[str]:
    p, losses = record["statistics"]["p"], [run[MLM_LOSS] for run in record["runs"]]
    return [
        str(number),
        record["entry"],
        record["changed"],
        _mean([run[SCORE] for run in record["runs"]], 4),
        "–" if None in losses else _mean(losses, 3),
        _minutes([run[SECONDS] for run in record["runs"]]),
        f"{statistics.mean(run['compile_seconds'] for run in record['runs']):.0f} s",
        "–" if p is None else f"{p:.1g}",
        machine_of(record),
        record["date"],
        record["commit"][:7],
    ]


def _mean(values: Sequence[float], digits: int) -> str:
    found = summary(values)
    return f"{found.mean:.{digits}f} ± {found.half:.{digits}f}"


def _minutes(values: Sequence[float]) -> str:
    seconds = round(statistics.mean(values))
    return f"{seconds // 60} min {seconds % 60:02} s"
