"""Multi30k and manual pages → the folder that experiments/studies/translation.py reads.

    python benchmarks/translation_data.py --archives=../shared/data --to=translation_data

    corpus/                            English and German: manual pages, and the captions of the training pairs
    train.en, train.de                 29,000 pairs
    val.en, val.de                     1,014 pairs
    test2016.en, test2016.de, test2017.en, test2017.de     1,000 pairs each

A document of captions holds 50 of one language in their order. Takes a few seconds and 30 MB.
"""

import argparse
import gzip
import json
import tarfile
import tempfile
from pathlib import Path

from bert_jax.config import UserError

_ARCHIVES = ("multi30k", "manpages_8")
_LANGUAGES = ("en", "de")
_SETS = {"train": "train", "val": "val", "test2016": "test_2016_flickr", "test2017": "test_2017_flickr"}
_TOGETHER = 50  # captions of a document


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archives", required=True, help="folder of the .tar.xz files")
    parser.add_argument("--to", required=True, help="folder to make")
    options = parser.parse_args()
    try:
        make(Path(options.archives), Path(options.to))
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


def make(archives: Path, to: Path) -> None:
    """Makes the folder, which must not be there. Raises UserError for a missing archive."""
    paths = [archives / f"{name}.tar.xz" for name in _ARCHIVES]
    if missing := [path for path in paths if not path.is_file()]:
        raise UserError(f"{missing[0]} does not exist; --archives is the folder of {', '.join(_ARCHIVES)}.tar.xz")
    if to.exists():
        raise UserError(f"{to} is there already; remove it, or choose another --to")
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent) as temporary:
        data, made = Path(temporary) / "unpacked", Path(temporary) / "made"
        for path in paths:
            with tarfile.open(path) as file:
                file.extractall(data, filter="data")
        (made / "corpus").mkdir(parents=True)
        for language in _LANGUAGES:
            for name, theirs in _SETS.items():
                text = gzip.decompress((data / "multi30k" / "raw" / f"{theirs}.{language}.gz").read_bytes())
                (made / f"{name}.{language}").write_bytes(text)
            pages = (data / "manpages" / f"{language}.jsonl").read_text(encoding="utf-8")
            captions = (made / f"train.{language}").read_text(encoding="utf-8").splitlines()
            documents = (json.dumps({"text": "\n".join(some)}, ensure_ascii=False) for some in _groups(captions))
            (made / "corpus" / f"pages.{language}.jsonl").write_text(pages, encoding="utf-8")
            (made / "corpus" / f"captions.{language}.jsonl").write_text("\n".join(documents) + "\n", encoding="utf-8")
        made.rename(to)  # whole or not at all


def _groups(captions: list[str]) -> list[list[str]]:
    return [captions[i : i + _TOGETHER] for i in range(0, len(captions), _TOGETHER)]


if __name__ == "__main__":
    main()
