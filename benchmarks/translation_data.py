"""Multi30k and manual pages → the folder that experiments/studies/translation.py reads.

    python benchmarks/translation_data.py --archives=../shared/data --to=translation_data

    corpus/                            English and German: manual pages, and the captions of the training pairs
    train.en, train.de                 29,000 pairs
    val.en, val.de                     1,014 pairs
    test2016.en, test2016.de, test2017.en, test2017.de     1,000 pairs each

A document of captions holds 50 of one language in their order. Takes a few seconds and 30 MB.
"""

import gzip
import json
from pathlib import Path

from archives import make_folder, run

_ARCHIVES = ("multi30k", "manpages_8")
_LANGUAGES = ("en", "de")
_SETS = {"train": "train", "val": "val", "test2016": "test_2016_flickr", "test2017": "test_2017_flickr"}
_TOGETHER = 50  # captions of a document


def make(archives: Path, to: Path) -> None:
    """Makes the folder. Raises UserError as `make_folder`."""
    make_folder(archives, _ARCHIVES, to, _write)


def _write(data: Path, made: Path) -> None:
    (made / "corpus").mkdir()
    for language in _LANGUAGES:
        for name, theirs in _SETS.items():
            text = gzip.decompress((data / "multi30k" / "raw" / f"{theirs}.{language}.gz").read_bytes())
            (made / f"{name}.{language}").write_bytes(text)
        pages = (data / "manpages" / f"{language}.jsonl").read_text(encoding="utf-8")
        captions = (made / f"train.{language}").read_text(encoding="utf-8").splitlines()
        documents = (json.dumps({"text": "\n".join(some)}, ensure_ascii=False) for some in _groups(captions))
        (made / "corpus" / f"pages.{language}.jsonl").write_text(pages, encoding="utf-8")
        (made / "corpus" / f"captions.{language}.jsonl").write_text("\n".join(documents) + "\n", encoding="utf-8")


def _groups(captions: list[str]) -> list[list[str]]:
    return [captions[i : i + _TOGETHER] for i in range(0, len(captions), _TOGETHER)]


if __name__ == "__main__":
    run(__doc__, make)
