"""Archives of public sets → the folder that the studies in experiments/studies/ read.

    python benchmarks/study_data.py --archives=../shared/data --to=study_data

    corpus/                    every third article file and book of pretrain_en: 66 MB
    sst2_500/, sst2_5000/      so many training examples of SST-2; validation and test are whole
    mrpc/, trec/, wnut17/      whole; validation of MRPC and TREC is 500 of the training examples
    sts/                       similarity of pairs, 2012 to 2015; 500 of them are validation, those of 2016 the test
    blimp/                     the minimal pairs of BLiMP
    reviews/                   imdb without its labels: the domain of SST-2
    sst2_texts/                the training texts of SST-2 without their labels
    bbc_100/, bbc_500/         so many training articles of BBC News with their section; validation has 200, test 500
    news/                      all 1,525 training articles without it: the domain of these

Each task has train.jsonl, validation.jsonl and test.jsonl, with the columns that finetune_data.py names. Takes a minute
and 260 MB.
"""

import json
import random
import shutil
from pathlib import Path

from archives import make_folder, run
from finetune_data import SEED, SOURCES, Row, drawn, read_file, table, tagged_rows
from summaries_data import articles

_ARCHIVES = ("pretrain_en", "sst2", "mrpc", "trec_qc", "sts12-16", "wnut17", "blimp", "imdb", "bbc_news")
_HELD_OUT = 500  # training examples that become validation where a set has none


def make(archives: Path, to: Path) -> None:
    """Makes the folder. Raises UserError as `make_folder`."""
    make_folder(archives, _ARCHIVES, to, _write_all)


def tasks(data: Path) -> dict[str, tuple[list[Row], list[Row], list[Row]]]:
    """Returns training, validation and test rows of each task, from unpacked archives."""
    sst2 = SOURCES["sst2"].read(data)
    test = table(data / "glue" / "SST-2" / "test-labeled.tsv", "sentence")
    found = {f"sst2_{count}": (drawn(sst2.train, count), sst2.validation, test) for count in (500, 5000)}
    for name in ("mrpc", "trec", "sts"):
        splits = SOURCES[name].read(data)
        rows = random.Random(SEED).sample(splits.train, len(splits.train))
        found[name] = rows[_HELD_OUT:], rows[:_HELD_OUT], splits.validation
    test, validation, train = _news(data)
    found |= {f"bbc_{count}": (drawn(train, count), validation, test) for count in (100, 500)}
    wnut17 = SOURCES["wnut17"].read(data)
    development = tagged_rows(data / "wnut17" / "emerging.dev.conll", "0", "-1")
    return found | {"wnut17": (wnut17.train, development, wnut17.validation)}


def _news(data: Path) -> tuple[list[Row], list[Row], list[Row]]:
    """Returns test, validation and training articles of BBC News."""
    rows = [{"text": row["document"], "label": row["id"].partition("/")[0]} for row in articles(data / "bbc_news")]
    random.Random(SEED).shuffle(rows)
    return rows[:500], rows[500:700], rows[700:]


def _write_all(data: Path, made: Path) -> None:
    _write_corpora(data, made)
    for name, splits in tasks(data).items():
        for split, rows in zip(("train", "validation", "test"), splits, strict=True):
            _write(made / name / f"{split}.jsonl", rows)


def _write_corpora(data: Path, made: Path) -> None:
    texts = sorted([*(data / "enwiki2015").glob("*/wiki_*"), *(data / "gutenberg").glob("*___*.txt")])
    for number, path in enumerate(texts[::3]):
        target = made / "corpus" / f"{number:03}.txt"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    shutil.copytree(data / "blimp", made / "blimp")
    for split in ("train", "test"):
        rows = read_file(data / "imdb" / f"{split}.jsonl")
        _write(made / "reviews" / f"{split}.jsonl", [{"text": row["text"]} for row in rows])
    train = SOURCES["sst2"].read(data).train
    _write(made / "sst2_texts" / "texts.jsonl", [{"text": row["text"]} for row in train])
    _write(made / "news" / "texts.jsonl", [{"text": row["text"]} for row in _news(data)[2]])


def _write(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    run(__doc__, make)
