"""The archive of BBC News → documents with summaries for experiments/summarize.py and summarize.py:extractive.

    python benchmarks/summaries_data.py --archives=../shared/data --to=bbc

Writes train.jsonl, validation.jsonl and test.jsonl (1,775, 200 and 250 articles, drawn by a fixed shuffle) with the
columns id, document and summary. The headline is left out: it is in no summary. Summaries are as found, sentences of
the article in another order, without spaces between them.
"""

import json
import random
from pathlib import Path

from archives import make_folder, run
from finetune_data import SEED, Row

_HELD_OUT = {"test": 250, "validation": 200}


def make(archives: Path, to: Path) -> None:
    """Makes the folder with the three files. Raises UserError as `make_folder`."""
    make_folder(archives, ("bbc_news",), to, _write)


def _write(data: Path, made: Path) -> None:
    rows = articles(data / "bbc_news")
    random.Random(SEED).shuffle(rows)
    start = 0
    for split, count in (_HELD_OUT | {"train": len(rows) - sum(_HELD_OUT.values())}).items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows[start : start + count])
        (made / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
        start += count


def articles(folder: Path) -> list[Row]:
    """Returns the articles of the unpacked set that have a summary, in the order of their names."""
    rows = []
    for path in sorted((folder / "articles").glob("*/*.txt")):
        summary = folder / "summaries" / path.parent.name / path.name
        if summary.is_file():
            _, _, body = path.read_text("latin-1").partition("\n")
            name = f"{path.parent.name}/{path.stem}"
            rows.append({"id": name, "document": body.strip(), "summary": summary.read_text("latin-1")})
    return rows


if __name__ == "__main__":
    run(__doc__, make)
