"""The archive of BBC News → documents with summaries for experiments/summarize.py and summarize.py:extractive.

    python benchmarks/summaries_data.py --archives=../shared/data --to=bbc

Writes train.jsonl, validation.jsonl and test.jsonl (1,775, 200 and 250 articles, drawn by a fixed shuffle) with the
columns id, document and summary. The headline is left out: it is in no summary. Summaries are as found, sentences of
the article in another order, without spaces between them.
"""

import argparse
import json
import random
import tarfile
import tempfile
from pathlib import Path

from finetune_data import SEED, Row

from bert_jax.config import UserError

_HELD_OUT = {"test": 250, "validation": 200}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archives", required=True, help="folder of bbc_news.tar.xz")
    parser.add_argument("--to", required=True, help="folder to make")
    options = parser.parse_args()
    try:
        make(Path(options.archives), Path(options.to))
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


def make(archives: Path, to: Path) -> None:
    """Writes the three files. Raises UserError for a missing archive."""
    archive = archives / "bbc_news.tar.xz"
    if not archive.is_file():
        raise UserError(f"{archive} does not exist; --archives is the folder of bbc_news.tar.xz")
    with tempfile.TemporaryDirectory() as temporary:
        with tarfile.open(archive) as file:
            file.extractall(temporary, filter="data")
        rows = articles(Path(temporary) / "bbc_news")
    random.Random(SEED).shuffle(rows)
    to.mkdir(parents=True, exist_ok=True)
    start = 0
    for split, count in (_HELD_OUT | {"train": len(rows) - sum(_HELD_OUT.values())}).items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows[start : start + count])
        (to / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
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
    main()
