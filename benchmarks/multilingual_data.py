"""Manual pages and Multi30k → the folder that experiments/studies/multilingual.py reads.

    python benchmarks/multilingual_data.py --archives=../shared/data --to=multilingual_data

    pages/en.jsonl, de.jsonl, …            manual pages in eight languages
    captions/en.jsonl, de.jsonl, fr.jsonl  29,000 captions of pictures, 50 of them a document
    captions.en, captions.de, captions.fr  the same captions, line by line, where the same line is the same caption
    test.en, test.de, test.fr              1,000 captions of test2016, for retrieval
    about.en, about.de, about.fr           what 200 pages are about, in a few words, for retrieval

The pages of `about` are in no other file. Takes a few seconds and 60 MB.
"""

import gzip
import json
import random
from pathlib import Path

from archives import make_folder, run

from bert_jax.config import UserError

LANGUAGES = ("en", "de", "fr", "es", "ru", "pl", "ja", "zh")
ALIGNED = ("en", "de", "fr")
_ARCHIVES = ("multi30k", "manpages_8")
_SETS = {"captions": "train", "test": "test_2016_flickr"}
_TOGETHER = 50  # captions of a document
_HELD_OUT = 200  # pages, for retrieval
_SEED = 0


def make(archives: Path, to: Path) -> None:
    """Makes the folder. Raises UserError as `make_folder`."""
    make_folder(archives, _ARCHIVES, to, _write)


def _write(data: Path, made: Path) -> None:
    for language in ALIGNED:
        for name, theirs in _SETS.items():
            text = gzip.decompress((data / "multi30k" / "raw" / f"{theirs}.{language}.gz").read_bytes())
            (made / f"{name}.{language}").write_bytes(text)
        lines = (made / f"captions.{language}").read_text(encoding="utf-8").splitlines()
        groups = (lines[start : start + _TOGETHER] for start in range(0, len(lines), _TOGETHER))
        documents = {f"captions {number}": "\n".join(group) for number, group in enumerate(groups)}
        _write_pages(made / "captions" / f"{language}.jsonl", documents)
    pages = {language: _pages(data / "manpages" / f"{language}.jsonl") for language in LANGUAGES}
    shared = sorted(set.intersection(*(set(pages[language]) for language in ALIGNED)))
    described = [page for page in shared if all(_about(pages[one][page]) for one in ALIGNED)]
    if len(described) < _HELD_OUT:
        wrong = f"{len(described)} pages of manpages_8 have a description in all of {', '.join(ALIGNED)}"
        raise UserError(f"{wrong}, {_HELD_OUT} are needed: get the archive again")
    held_out = set(random.Random(_SEED).sample(described, _HELD_OUT))
    for language, own in pages.items():
        kept = {page: text for page, text in own.items() if page not in held_out}
        _write_pages(made / "pages" / f"{language}.jsonl", kept)
        if language in ALIGNED:
            lines = [_about(own[page]) for page in sorted(held_out)]
            (made / f"about.{language}").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _pages(path: Path) -> dict[str, str]:
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {row["page"]: row["text"] for row in rows}


def _about(text: str) -> str:
    """Returns the description in the first line, `name, other name - description`: names are alike in all languages."""
    return " ".join(text.partition("\n")[0].partition(" - ")[2].split())


def _write_pages(path: Path, pages: dict[str, str]) -> None:
    path.parent.mkdir(exist_ok=True)
    lines = (json.dumps({"page": page, "text": text}, ensure_ascii=False) for page, text in pages.items())
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(__doc__, make)
