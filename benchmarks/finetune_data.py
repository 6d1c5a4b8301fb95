"""Public sets as found → the same JSONL files for both sides of benchmarks/finetune.py.

Archives are unpacked side by side in one folder; each `Source` says which files of it are read. Rows of training and
validation have the columns of the task's family:

    classification   text, text_pair if there are pairs, label (a name, a list of names, or a number)
    tagging          words, tags (valid BIO)
    span_qa          id, question, context, answers {"text": [], "answer_start": []}
"""

import html
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple
from xml.etree import ElementTree

from bert_jax.config import UserError
from bert_jax.data.labelled.conll import repair, tagged_examples
from bert_jax.data.labelled.squad import question_examples
from bert_jax.data.labelled.tables import read_rows

Row = dict[str, Any]
SEED = 20_000  # of every shuffle in this file: files do not differ from run to run


class Splits(NamedTuple):
    train: list[Row]
    validation: list[Row]


@dataclass(frozen=True)
class Source:
    """`metric` is the headline among what `bert_jax.tasks.scores` gives; `length` is in tokens."""

    family: Literal["classification", "tagging", "span_qa"]
    read: Callable[[Path], Splits]
    metric: str
    length: int = 128
    label_kind: Literal["single", "multi", "regression"] = "single"


class Files(NamedTuple):
    train: Path
    validation: Path
    counts: dict[str, int]


def write_files(task: str, data: Path, folder: Path, train_examples: int, validation_examples: int = 0) -> Files:
    """Reads the set of `task` below `data`; writes train.jsonl and validation.jsonl, of at most so many rows (0: all)
    drawn by a fixed shuffle. Raises UserError for a missing file."""
    splits = SOURCES[task].read(data)
    train, validation = drawn(splits.train, train_examples), drawn(splits.validation, validation_examples)
    folder.mkdir(parents=True, exist_ok=True)
    files = Files(
        folder / "train.jsonl",
        folder / "validation.jsonl",
        {"train": len(train), "of": len(splits.train), "validation": len(validation)},
    )
    for path, rows in ((files.train, train), (files.validation, validation)):
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return files


def read_file(path: Path) -> list[Row]:
    """Not splitlines(): texts may hold U+2028, which JSON leaves as it is."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def drawn(rows: list[Row], limit: int) -> list[Row]:
    """Returns at most `limit` rows, drawn by a fixed shuffle; 0: all."""
    return random.Random(SEED).sample(rows, limit) if 0 < limit < len(rows) else rows


def table(path: Path, text: str) -> list[Row]:
    """Returns the rows of a table with a column `label` and the column `text`."""
    _check(path)
    return [{"text": row.values[text].strip(), "label": row.values["label"]} for row in read_rows(str(path))]


def tagged_rows(path: Path, text: str, label: str) -> list[Row]:
    """Returns words and tags, as valid BIO, of CoNLL columns or JSONL."""
    _check(path)
    return [
        {"words": list(example.words), "tags": repair(example.tags or ())[0]}
        for example in tagged_examples(str(path), text=text, label=label)
    ]


def parse_trec(line: str) -> Row:
    """`DESC:manner How did … ?` → text, and the coarse and the fine class (whose name has the coarse one in it)."""
    label, _, text = line.strip().partition(" ")
    return {"text": text, "coarse": label.split(":")[0], "fine": label}


class Story(NamedTuple):
    split: Literal["train", "test"]
    text: str
    topics: tuple[str, ...]


def parse_reuters(sgml: str) -> Iterator[Story]:
    """The stories of the ModApte split (README of Reuters-21578, VIII.B): indexers looked at their topics, and Lewis
    has them in TRAIN or TEST. The text is title and body, or what there is in their place."""
    for match in _STORY.finditer(sgml):
        attributes = dict(_ATTRIBUTE.findall(match["attributes"]))
        if attributes["TOPICS"] != "YES" or attributes["LEWISSPLIT"] == "NOT-USED":
            continue
        content = match["content"]
        topics = _TOPICS.search(content)
        text = _TEXT.search(content)
        if topics is None or text is None:
            raise UserError(f"Reuters story {attributes['NEWID']} has no <TOPICS> or no <TEXT>: unpack the set again")
        parts = [part for name in ("TITLE", "BODY") for part in re.findall(rf"(?s)<{name}>(.*?)</{name}>", text[1])]
        if "<BODY>" not in text[1]:  # TYPE="UNPROC" and "BRIEF": text without marks, if any
            parts.append(re.sub(r"(?s)<(\w+)>.*?</\1>", " ", text[1]))
        plain = html.unescape(_CONTROL.sub(" ", " ".join(parts)))
        split = "train" if attributes["LEWISSPLIT"] == "TRAIN" else "test"
        yield Story(split, " ".join(plain.split()), tuple(re.findall(r"<D>(.*?)</D>", topics[1])))


def reuters_splits(stories: Iterable[Story]) -> Splits:
    """Topics with a story in training and in test, and the stories with at least one of them: of the whole set 90
    topics, 7,770 and 3,019 stories."""
    kept = list(stories)
    counts = {split: Counter(t for story in kept if story.split == split for t in story.topics) for split in _SPLITS}
    topics = counts["train"].keys() & counts["test"].keys()
    rows: dict[str, list[Row]] = {split: [] for split in _SPLITS}
    for story in kept:
        labels = [topic for topic in story.topics if topic in topics]
        if labels:
            rows[story.split].append({"text": story.text, "label": labels})
    return Splits(rows["train"], rows["test"])


_SPLITS = ("train", "test")
_STORY = re.compile(r"(?s)<REUTERS (?P<attributes>[^>]*)>(?P<content>.*?)</REUTERS>")
_ATTRIBUTE = re.compile(r'(\w+)="([^"]*)"')
_TOPICS = re.compile(r"(?s)<TOPICS>(.*?)</TOPICS>")
_TEXT = re.compile(r"(?s)<TEXT[^>]*>(.*)</TEXT>")
_CONTROL = re.compile(r"&#\d+;|\*{6}")  # marks of the wire, and the stars before a brief


def _trec(level: str) -> Callable[[Path], Splits]:
    def read(data: Path) -> Splits:
        splits = []
        for name in ("train.txt", "test.txt"):
            lines = _text(data / "nltk" / "qc" / name, "latin-1").split("\n")
            rows = [parse_trec(line) for line in lines if line.strip()]
            splits.append([{"text": row["text"], "label": row[level]} for row in rows])
        return Splits(*splits)

    return read


def _sst2(data: Path) -> Splits:
    return Splits(*(table(data / "glue" / "SST-2" / name, "sentence") for name in ("train.tsv", "dev.tsv")))


def _chnsenticorp(data: Path) -> Splits:
    return Splits(*(table(data / "zh" / "chnsenticorp" / name, "text_a") for name in ("train.tsv", "dev.tsv")))


def _mrpc(data: Path) -> Splits:
    """The archive cuts the official training set in two; here it is whole."""
    names = ("msr-para-train.tsv", "msr-para-val.tsv", "msr-para-test.tsv")
    parts = []
    for name in names:
        lines = _text(data / "glue" / "MRPC" / name, "utf-8-sig").split("\n")
        cells = [line.rstrip("\r").split("\t") for line in lines[1:] if line]
        parts.append([{"text": a, "text_pair": b, "label": label} for label, _, _, a, b in cells])
    return Splits(parts[0] + parts[1], parts[2])


def _rte(data: Path) -> Splits:
    """The development and test pairs of RTE1 to RTE3; those of RTE3's test set are for scoring."""
    parts = []
    for names in (("rte1_dev", "rte1_test", "rte2_dev", "rte2_test", "rte3_dev"), ("rte3_test",)):
        roots = [ElementTree.fromstring(_text(data / "nltk" / "rte" / f"{name}.xml", "utf-8-sig")) for name in names]
        pairs = [pair for root in roots for pair in root.iter("pair")]
        answers = {"TRUE": "YES", "FALSE": "NO"}  # RTE1's words
        labels = [pair.get("value") or pair.get("entailment") or "" for pair in pairs]
        parts.append(
            [
                {"text": pair.findtext("t"), "text_pair": pair.findtext("h"), "label": answers.get(label, label)}
                for pair, label in zip(pairs, labels, strict=True)
            ]
        )
    return Splits(*parts)


def _sts(data: Path) -> Splits:
    """All scored pairs of 2012 to 2015, and those of 2016; in most files only some pairs were scored."""
    splits = []
    for years in (range(2012, 2016), [2016]):
        paths = [path for year in years for path in sorted((data / "sts12-16" / str(year)).glob("*.tsv"))]
        if not paths:
            raise UserError(f"{data}/sts12-16 has no tables of {min(years)}: unpack sts12-16.tar.xz there")
        rows = []
        for path in paths:
            for line in filter(None, _text(path, "utf-8").split("\n")):
                score, a, b = line.rstrip("\r").split("\t")[:3]
                if score:
                    rows.append({"text": a, "text_pair": b, "label": float(score)})
        splits.append(rows)
    return Splits(*splits)


def _reuters(data: Path) -> Splits:
    paths = sorted((data / "reuters21578").glob("*.sgm"))
    if not paths:
        raise UserError(f"{data}/reuters21578 has no .sgm files: unpack reuters21578.tar.xz there")
    return reuters_splits(story for path in paths for story in parse_reuters(_text(path, "latin-1")))


def _tagged(train: str, validation: str, text: str = "0", label: str = "-1") -> Callable[[Path], Splits]:
    def read(data: Path) -> Splits:
        return Splits(*(tagged_rows(data / name, text, label) for name in (train, validation)))

    return read


def _squad(data: Path) -> Splits:
    """Two thirds of the articles of the development set, and the others."""
    path = data / "squad" / "dev-v1.1.reconstructed.json"
    _check(path)
    examples = list(question_examples(str(path)))
    titles = sorted({example.title for example in examples})
    random.Random(SEED).shuffle(titles)
    train = set(titles[: 2 * len(titles) // 3])
    splits = Splits([], [])
    for example in examples:
        answers = [asdict(answer) for answer in example.answers]
        row: Row = {"id": example.id, "question": example.question, "context": example.context}
        row["answers"] = {"text": [a["text"] for a in answers], "answer_start": [a["start"] for a in answers]}
        (splits.train if example.title in train else splits.validation).append(row)
    return splits


def _text(path: Path, encoding: str) -> str:
    _check(path)
    return path.read_bytes().decode(encoding)


def _check(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"--data has no {path}: unpack the archive with this file there")


SOURCES = {
    "trec": Source("classification", _trec("coarse"), "accuracy", length=64),
    "trec_fine": Source("classification", _trec("fine"), "accuracy", length=64),
    "sst2": Source("classification", _sst2, "accuracy"),
    "rte": Source("classification", _rte, "accuracy"),
    "mrpc": Source("classification", _mrpc, "f1"),
    "reuters": Source("classification", _reuters, "micro_f1", length=256, label_kind="multi"),
    "sts": Source("classification", _sts, "pearson", label_kind="regression"),
    "chnsenticorp": Source("classification", _chnsenticorp, "accuracy", length=256),
    "wnut17": Source("tagging", _tagged("wnut17/wnut17train.conll", "wnut17/emerging.test.annotated"), "entity_f1"),
    "conll2002": Source("tagging", _tagged("nltk/conll2002/esp.train", "nltk/conll2002/esp.testb"), "entity_f1"),
    "cluener": Source("tagging", _tagged("zh/cluener/train.json", "zh/cluener/dev.json", "text", "label"), "entity_f1"),
    "squad": Source("span_qa", _squad, "f1", length=384),
}
