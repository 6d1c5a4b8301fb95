"""The malformed inputs, by class. Each function yields cases; `all_cases` is the whole list in a fixed order."""

import gzip
import io
import json
import os
import random
import shutil
import socket
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from bert_jax.options import OPTIONS
from tests.reliability.harness import Case
from tests.reliability.world import EXPERIMENTS, FAMILIES, data_file, flags, needs

EVERY_FAMILY = ("pretraining", *FAMILIES)
ODD_JSON = ("", "{", "[]", "null", "3", '"text"', "{}", "[" * 50_000, '{"a": NaN}')


def all_cases() -> list[Case]:
    groups = (numbers, choices, config_files, labelled_data, corpora, prediction_inputs, outputs)
    groups += (checkpoints, workdirs, prepared_folders, foreign_checkpoints, vocabularies, commands, environments)
    return [case for group in groups for case in group()]


def numbers() -> Iterator[Case]:
    """Every numeric option with a number that it cannot be."""
    values = ("0", "-1", "nan", "inf", "1e400", "9223372036854775808", "0.5", "abc", "", "[1]", "True")
    for option in OPTIONS.values():
        if option.type not in (int, float):
            continue
        for value in values:
            family = (
                "single" if option.name.startswith(("data.window", "data.max_w", "data.buckets")) else "pretraining"
            )
            yield Case(
                "numeric options",
                f"{option.name}={value}",
                ("main", *flags(family), f"--config.{option.name}={value}"),
                needs(family),
                accepts=_may_be(option, value),
            )


def _may_be(option, value: str) -> bool:
    """Whether the declaration admits the value. A value that it admits may still clash with another option."""
    try:
        return option.problem(option.parse(value)) is None
    except ValueError:
        return False


def choices() -> Iterator[Case]:
    for option in OPTIONS.values():
        if not option.choices:
            continue
        for value in ("", "unknown", option.choices[0].upper(), f"{option.choices[0]} ", "\x1b[31m", "0"):
            if value not in option.choices:
                command = ("main", *flags("single"), f"--config.{option.name}={value}")
                yield Case(
                    "choices",
                    f"{option.name}={value!r}",
                    command,
                    needs("single"),
                    accepts="optional" in option.marks and value == "",
                )
    for key in (
        "train.stepz",
        "trian.steps",
        "optimizer",
        "model.",
        ".steps",
        "model.hidden_size.x",
        "x" * 500,
        "",
        "data.text pair",
    ):
        yield Case("unknown options", key[:30], ("main", *flags("single"), f"--config.{key}=1"), needs("single"))


CONFIG_FILES = {
    "syntax": "def get_config(:\n",
    "name": "def get_config(arg=None):\n    return undefined_name\n",
    "import": "import no_such_module_at_all\n\n\ndef get_config():\n    return {}\n",
    "own exception": "class E(Exception):\n    pass\n\n\ndef get_config(arg=None):\n    raise E('two\\nlines')\n",
    "exception while loading": "raise RuntimeError('while loading')\n",
    "SystemExit": "def get_config(arg=None):\n    raise SystemExit(3)\n",
    "KeyboardInterrupt": "def get_config(arg=None):\n    raise KeyboardInterrupt\n",
    "no get_config": "x = 1\n",
    "get_config is no function": "get_config = 3\n",
    "needs two arguments": "def get_config(a, b):\n    return None\n",
    "None": "def get_config(arg=None):\n    return None\n",
    "a dict": "def get_config(arg=None):\n    return {'task': 'pretraining'}\n",
    "an empty config": "from ml_collections import ConfigDict\n\n\ndef get_config(arg=None):\n    return ConfigDict()\n",
    "a misspelt key": "from experiments import base\n\n\ndef get_config(arg=None):\n    c = base.get_config()\n    c.train.stepz = 5\n    return c\n",
    "a misspelt group": "from experiments import base\n\n\ndef get_config(arg=None):\n    c = base.get_config()\n    c.trian.steps = 5\n    return c\n",
    "a wrong type": "from experiments import base\n\n\ndef get_config(arg=None):\n    c = base.get_config()\n    c.train.steps = 'many'\n    return c\n",
    "a group deleted": "from experiments import base\n\n\ndef get_config(arg=None):\n    c = base.get_config()\n    c.unlock()\n    del c.train\n    return c\n",
    "a key deleted": "from experiments import base\n\n\ndef get_config(arg=None):\n    c = base.get_config()\n    c.unlock()\n    del c.train.steps\n    return c\n",
    "an extra group": "from experiments import base\n\n\ndef get_config(arg=None):\n    c = base.get_config()\n    c.unlock()\n    c.mine = 3\n    return c\n",
    "a number beyond all": "from experiments import base\n\n\ndef get_config(arg=None):\n    c = base.get_config()\n    c.train.steps = 10**40\n    return c\n",
    "a task that is no class": "from experiments import base\n\n\ndef get_config(arg=None):\n    c = base.get_config()\n    c.task = 'os.path'\n    return c\n",
    "JSON": '{"task": "pretraining"}',
    "empty": "",
    "a binary": "\x00\x01\x02\x7fELF",
    "tabs and spaces": "def get_config(arg=None):\n\tx = 1\n        return x\n",
    "recursion": "def get_config(arg=None):\n    return get_config(arg)\n",
    "not UTF-8": None,
}


def config_files() -> Iterator[Case]:
    for name, text in CONFIG_FILES.items():
        content = b"x = '\xff\xfe'\n" if text is None else text.encode()
        spoil = lambda folder, content=content: (folder / "mine.py").write_bytes(content)
        for mode in ("train", "predict", "fill_mask"):
            more = {"predict": ("--input=texts.jsonl",), "fill_mask": ("--text=the [MASK]",)}.get(mode, ())
            yield Case(
                "config files", f"{name}, {mode}", ("main", "--config=mine.py", f"--mode={mode}", *more), spoil=spoil
            )
    for name, spoil in SPECIAL_FILES.items():
        yield Case("config files", name, ("main", "--config=mine"), spoil=lambda f, s=spoil: s(f / "mine"))
    for argument in (
        "nothing.py",
        "",
        "base",
        "experiments/bsae.py",
        f"{EXPERIMENTS / 'glue.py'}:foo",
        f"{EXPERIMENTS / 'base.py'}:huge",
        f"{EXPERIMENTS / 'squad.py'}:v3",
        f"{EXPERIMENTS / 'ner.py'}:x",
        f"{EXPERIMENTS / 'classify.py'}:x",
        f"{EXPERIMENTS / 'multiple_choice.py'}:x",
        f"{EXPERIMENTS / 'tiny.py'}:x",
        f"{EXPERIMENTS / 'large.py'}:x:y",
        ":",
    ):
        yield Case("config files", f"--config={Path(argument).name}", ("main", f"--config={argument}"))


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # an address of over 108 characters is none
    socket.socket(socket.AF_UNIX).bind(path.name)
    os.chdir(here)


SPECIAL_FILES: dict[str, Callable[[Path], object]] = {
    "a folder": lambda path: path.mkdir(),
    "a FIFO": lambda path: os.mkfifo(path),
    "a socket": _socket,
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "missing": lambda path: None,
    "empty": lambda path: path.write_bytes(b""),
}


def _replaced(path: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        target = folder / path
        if target.is_dir():
            shutil.rmtree(target)
        elif target.exists():
            target.unlink()
        make(target)

    return spoil


def _bytes(path: str, change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda folder: (folder / path).write_bytes(change((folder / path).read_bytes()))


# Name → (change of the bytes, whether a run with such a file may be sensible).
SPOILT_BYTES: dict[str, tuple[Callable[[bytes], bytes], bool]] = {
    "half": (lambda b: b[: len(b) // 2], True),
    "zeros at the end": (lambda b: b + b"\0" * 100, False),
    "not UTF-8": (lambda b: b[:200] + b"\xff\xfe" + b[200:], False),
    "UTF-16": (lambda b: b.decode().encode("utf-16"), False),
    "gzip bytes": (gzip.compress, False),
    "a line of a million letters": (lambda b: b + b"x" * 1_000_000 + b"\n", True),
    "blank lines only": (lambda b: b"\n" * 50, False),
    "one line": (lambda b: b.split(b"\n")[0] + b"\n", False),
    "BOM": (lambda b: b"\xef\xbb\xbf" + b, True),
    "old Mac line ends": (lambda b: b.replace(b"\n", b"\r"), True),
    "DOS line ends": (lambda b: b.replace(b"\n", b"\r\n"), True),
    "columns swapped": (lambda b: b"\n".join(b",".join(reversed(line.split(b","))) for line in b.split(b"\n")), True),
    "quotes open": (lambda b: b + b'"open', False),
    "HTML": (lambda b: b"<!doctype html><html><body>Not found</body></html>\n", False),
    "random bytes": (lambda b: random.Random(0).randbytes(2000), False),
}


_SENSIBLE = {("questions", "one line"), ("tagging", "one line")}  # a file of JSON; a sentence of one word


def labelled_data() -> Iterator[Case]:
    """Every family's training file, and its validation file, spoilt in every way."""
    for family in FAMILIES:
        name, suffix = data_file(family), Path(data_file(family)).suffix
        command = ("main", *flags(family))
        for what, (change, accepts) in SPOILT_BYTES.items():
            yield Case(
                "labelled data",
                f"{family}: {what}",
                command,
                needs(family),
                _bytes(name, change),
                accepts=accepts or (family, what) in _SENSIBLE,
            )
        for what, make in SPECIAL_FILES.items():
            yield Case("labelled data", f"{family}: {what}", command, needs(family), _replaced(name, make))
        for what in ("half", "not UTF-8", "blank lines only"):
            change, accepts = SPOILT_BYTES[what]
            both = lambda folder, change=change, name=name, suffix=suffix: (folder / f"dev{suffix}").write_bytes(
                change((folder / name).read_bytes())
            )
            command_dev = ("main", *flags(family, data__validation=f"dev{suffix}"))
            yield Case(
                "labelled data", f"{family}: validation {what}", command_dev, needs(family), both, accepts=accepts
            )
        for other in FAMILIES:
            if data_file(other) != name and Path(data_file(other)).suffix != suffix:
                changed = ("main", *flags(family, data__train=data_file(other)))
                yield Case(
                    "labelled data", f"{family}: the file of {other}", changed, (*needs(family), data_file(other))
                )
        for spec in ("tfds:nothing", "tfds:@", "tfds:glue/sst2", "nowhere/*.csv", ",", "a.exe", "  "):
            yield Case(
                "labelled data",
                f"{family}: data.train={spec!r}",
                ("main", *flags(family, data__train=spec)),
                needs(family),
            )
    yield from _labels()
    yield from _questions()


def _labels() -> Iterator[Case]:
    rows = {
        "one label only": (b"text,label\na cat,y\na dog,y\n", "single"),
        "no label": (b"text,label\na cat,\na dog,y\nthe dog,n\n", "single"),
        "no column": (b"words,class\na cat,y\na dog,n\n", "single"),
        "two columns alike": (b"text,text,label\na,b,y\nc,d,n\n", "single"),
        "ragged": (b"text,label\na cat,y\na dog,n,3\n", "single"),
        "NaN": (b"text,label\na cat,nan\na dog,1\n", "regression"),
        "infinity": (b"text,label\na cat,inf\na dog,1\n", "regression"),
        "a word": (b"text,label\na cat,high\na dog,1\n", "regression"),
        "beyond float32": (b"text,label\na cat,1e300\na dog,1\n", "regression"),
        "a wrong choice": (
            b"sent1,sent2,ending0,ending1,ending2,ending3,label\na,b,c,d,e,f,7\na,b,c,d,e,f,1\n",
            "choices",
        ),
        "a choice that is a word": (b"sent1,sent2,ending0,ending1,ending2,ending3,label\na,b,c,d,e,f,x\n", "choices"),
    }
    for what, (content, family) in rows.items():
        yield Case(
            "labels",
            f"{family}: {what}",
            ("main", *flags(family)),
            needs(family),
            _replaced(data_file(family), lambda p, c=content: p.write_bytes(c)),
        )
    for labels in ("y,y", "y,,n", ",", "y", "n,maybe", "y,n,\x1b[0m", " , "):
        yield Case(
            "labels",
            f"data.labels={labels!r}",
            ("main", *flags("single", data__labels=labels)),
            needs("single"),
            accepts=labels == "y,,n" or "\x1b" in labels,
        )
    for separator in ("", ",", "xy", "\n"):
        yield Case(
            "labels",
            f"data.label_separator={separator!r}",
            ("main", *flags("multi", data__label_separator=separator)),
            needs("multi"),
            accepts=separator != "",
        )
    for tags in ("a O\nb\n", "a O x\nb O\n", "O\nO\n", "a I-X\nb Z-Y\n", "a B-\nb O\n", "a B-X\n\n\n\n\nb \n"):
        yield Case(
            "labels",
            f"tagging: {tags!r}",
            ("main", *flags("tagging", data__repair_tags=False)),
            needs("tagging"),
            _replaced("tagging.conll", lambda p, t=tags: p.write_text(t)),
        )


def _questions() -> Iterator[Case]:
    answer = {"text": "cat", "answer_start": 2}
    good = {"id": "1", "question": "who ?", "answers": [answer], "is_impossible": False}
    for field, values in {
        "id": (None, [], 1.5, True),
        "question": (None, 3, []),
        "answers": (
            None,
            3,
            "x",
            [3],
            [{}],
            [{"text": "cat"}],
            [answer | {"answer_start": "2"}],
            [answer | {"answer_start": -1}],
            [answer | {"answer_start": 10**30}],
            [answer | {"text": ""}],
            [answer | {"text": None}],
        ),
        "is_impossible": (None, 3, "no", True),
    }.items():
        for value in values:
            content = {
                "data": [{"title": "t", "paragraphs": [{"context": "a cat runs", "qas": [good | {field: value}]}]}]
            }
            write = lambda p, c=content: p.write_text(json.dumps(c))
            yield Case(
                "questions",
                f"{field}={str(value)[:40]}",
                ("main", *flags("questions")),
                needs("questions"),
                _replaced("questions.json", write),
                accepts=value is None,
            )
    for content in (
        *ODD_JSON,
        '{"data": 3}',
        '{"data": [3]}',
        '{"data": [{}]}',
        '{"data": [{"paragraphs": [3]}]}',
        '{"data": [{"paragraphs": [{"context": 3, "qas": []}]}]}',
        '{"data": []}',
    ):
        yield Case(
            "questions",
            f"file {content[:40]!r}",
            ("main", *flags("questions")),
            needs("questions"),
            _replaced("questions.json", lambda p, c=content: p.write_text(c)),
        )


def corpora() -> Iterator[Case]:
    for what, (change, accepts) in SPOILT_BYTES.items():
        yield Case(
            "corpora",
            f"text: {what}",
            ("main", *flags("pretraining")),
            ("corpus.txt",),
            _bytes("corpus.txt", change),
            accepts=accepts or what in ("one line", "quotes open"),
        )
    for what, make in SPECIAL_FILES.items():
        yield Case(
            "corpora", f"text: {what}", ("main", *flags("pretraining")), ("corpus.txt",), _replaced("corpus.txt", make)
        )
    contents = {
        "JSONL as text": ("text", '{"text": "A cat runs ."}\n' * 20),
        "CSV as text": ("text", "id,text,label\n" + "1,A cat runs .,x\n" * 20),
        "text as JSONL": ("jsonl", "A cat runs .\n\nA dog runs .\n"),
        "JSONL without the field": ("jsonl", '{"words": "a"}\n' * 5),
        "JSONL of numbers": ("jsonl", '{"text": 3}\n' * 5),
        "JSONL cut": ("jsonl", '{"text": "a cat"}\n{"text": "a d'),
        "a JSON array": ("jsonl", '[{"text": "a cat"}]\n'),
        "deep JSON": ("jsonl", "[" * 100_000),
        "a document never closed": ("wikiextractor", '<doc id="1" title="x">\nA cat runs .\n'),
        "no document": ("wikiextractor", "A cat runs .\n"),
        "documents in documents": ("wikiextractor", '<doc id="1">\n<doc id="2">\na\n</doc>\n</doc>\n'),
        "one document": ("text", "A cat runs here .\n"),
        "spaces only": ("text", " \n\t\n \n"),
        "control characters only": ("text", "\x01\x02\x03\n" * 20),
    }
    for what, (kind, content) in contents.items():
        yield Case(
            "corpora",
            what,
            ("main", *flags("pretraining", data__corpus=kind)),
            ("corpus.txt",),
            _replaced("corpus.txt", lambda p, c=content: p.write_text(c)),
        )
    for suffix in (".gz", ".xz", ".zst"):
        for what, change in {
            "plain bytes": bytes,
            "empty": lambda b: b"",
            "cut": lambda b: gzip.compress(b)[:-20],
        }.items():
            make = lambda folder, s=suffix, c=change: (folder / f"corpus.txt{s}").write_bytes(
                c((folder / "corpus.txt").read_bytes())
            )
            yield Case(
                "corpora",
                f"{suffix}: {what}",
                ("main", *flags("pretraining", data__files=f"corpus.txt{suffix}")),
                ("corpus.txt",),
                make,
            )
    for name, value in {
        "corpus": "tfds:nothing",
        "files": "nowhere/*.txt",
        "text_field": "",
        "prepared": "/proc/prepared",
        "vocab_size": 3,
    }.items():
        yield Case(
            "corpora",
            f"data.{name}={value}",
            ("main", *flags("pretraining", **{f"data__{name}": value})),
            ("corpus.txt",),
            accepts=name == "text_field",
        )


def prediction_inputs() -> Iterator[Case]:
    files = {
        "half a line of JSON": ("x.jsonl", b'{"text": "a cat"}\n{"text": "a d'),
        "an array": ("x.jsonl", b'["a cat"]\n'),
        "another column": ("x.jsonl", b'{"words": "a cat"}\n'),
        "numbers": ("x.jsonl", b'{"text": 3}\n{"text": null}\n'),
        "not UTF-8": ("x.txt", b"a cat\n\xff\xfe\n"),
        "UTF-16": ("x.txt", "a cat\n".encode("utf-16")),
        "unknown suffix": ("x.docx", b"a cat\n"),
        "CSV without header": ("x.csv", b"a cat\na dog\n"),
        "ragged CSV": ("x.csv", b"text,label\na cat,y,3\n"),
        "open quote": ("x.csv", b'text,label\n"a cat,y\n'),
        "gzip that is none": ("x.jsonl.gz", b'{"text": "a cat"}\n'),
        "Parquet that is none": ("x.parquet", b"PAR1 nothing PAR1"),
        "deep JSON": ("x.jsonl", b"[" * 100_000),
        "huge numbers": ("x.jsonl", b'{"text": ' + b"9" * 5000 + b"}\n"),
        "NaN": ("x.jsonl", b'{"text": NaN}\n'),
    }
    for family in FAMILIES:
        for what, (name, content) in files.items():
            write = lambda folder, n=name, c=content: (folder / n).write_bytes(c)
            command = ("main", *_predict(family), f"--input={name}", "--output=out.jsonl")
            yield Case(
                "prediction inputs",
                f"{family}: {what}",
                command,
                (f"run_{family}",),
                write,
                accepts=family not in ("single", "multi"),
            )
    for what, make in SPECIAL_FILES.items():
        if what in ("empty", "a FIFO"):  # a FIFO is there to wait for its writer
            continue
        for mode, out in (("predict", "out.jsonl"), ("embed", "out.npy")):
            command = ("main", *_predict("single"), f"--mode={mode}", "--input=x.jsonl", f"--output={out}")
            yield Case(
                "prediction inputs",
                f"{mode}: {what}",
                command,
                ("run_single",),
                lambda f, m=make: m(f / "x.jsonl"),
            )
    for text, good in {
        "": False,
        "no mask": False,
        "[MASK] " * 1000: False,
        "\ud800[MASK]": False,
    }.items():
        command = ("main", *_run_of("pretraining"), "--mode=fill_mask", f"--text={text}")
        yield Case("prediction inputs", f"fill_mask: {text[:12]!r}", command, ("run_pretraining",), accepts=good)
    for stdin in (b"", b'\n{"text": 3}\n', b'["a"]', b"\xff", b"{", b"\0"):
        command = ("main", *_predict("single"), "--input=-", "--output=-")
        yield Case(
            "prediction inputs", f"stdin {stdin[:12]!r}", command, ("run_single",), stdin=stdin, accepts=stdin == b""
        )


def _run_of(family: str) -> tuple[str, ...]:
    return (*(word for word in flags(family) if not word.startswith("--workdir")), f"--workdir=run_{family}")


def _predict(family: str) -> tuple[str, ...]:
    return (*_run_of(family), "--mode=predict")


def outputs() -> Iterator[Case]:
    links = {
        "the input itself": lambda f: None,
        "a link to the input": lambda f: (f / "out.jsonl").symlink_to("texts.jsonl"),
        "a hard link to the input": lambda f: os.link(f / "texts.jsonl", f / "out.jsonl"),
    }
    for what, make in links.items():
        for mode in ("predict", "embed"):
            output = "texts.jsonl" if what == "the input itself" else "out.jsonl"
            command = ("main", *_predict("single"), f"--mode={mode}", "--input=texts.jsonl", f"--output={output}")
            yield Case("outputs", f"{mode}: {what}", command, ("run_single", "texts.jsonl"), make)
    for output in (
        "./texts.jsonl",
        "run_single/../texts.jsonl",
        "out.docx",
        "out",
        "",
        "/proc/out.jsonl",
        "run_single",
        "texts.jsonl/out.jsonl",
        "/dev/full",
        "x" * 300 + ".jsonl",
        "run_single/config.json",
    ):
        for mode in ("predict", "embed"):
            command = ("main", *_predict("single"), f"--mode={mode}", "--input=texts.jsonl", f"--output={output}")
            yield Case("outputs", f"{mode}: --output={output[:30]}", command, ("run_single", "texts.jsonl"))
    command = ("main", *_predict("single"), "--input=texts.jsonl", "--output=out.zip", "--glue=SST-2")
    others = io.BytesIO()
    with zipfile.ZipFile(others, "w") as file:
        file.writestr("mine.txt", "mine")
    for what, content in {"no zip": b"PK nothing", "a zip of others": others.getvalue()}.items():
        write = lambda f, c=content: (f / "out.zip").write_bytes(c)
        yield Case("outputs", f"GLUE: {what}", command, ("run_single", "texts.jsonl"), write)


def _checkpoint_files(item: str) -> Callable[[Path], list[Path]]:
    return lambda run: sorted(p for p in run.glob(f"checkpoints/*/{item}/**/*") if p.is_file())


def _spoil_item(family: str, item: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Changes the largest file of an item in every checkpoint of the run."""

    def spoil(folder: Path) -> None:
        for step in (folder / f"run_{family}" / "checkpoints").iterdir():
            files = [path for path in (step / item).rglob("*") if path.is_file()]
            largest = max(files, key=lambda path: path.stat().st_size)
            largest.write_bytes(change(largest.read_bytes()))

    return spoil


def checkpoints() -> Iterator[Case]:
    """Checkpoints whose items are cut, flipped, empty or of another shape, in every mode."""
    changes = {
        "cut": lambda b: b[: len(b) // 2],
        "flipped": lambda b: b[: len(b) // 2] + bytes([b[len(b) // 2] ^ 16]) + b[len(b) // 2 + 1 :],
        "empty": lambda b: b"",
        "random": lambda b: random.Random(1).randbytes(len(b)),
    }
    modes = {
        "pretraining": ("evaluate", "fill_mask", "embed", "train"),
        "single": ("evaluate", "predict", "embed", "train"),
        "tagging": ("predict",),
        "questions": ("predict",),
    }
    for family, chosen in modes.items():
        for mode in chosen:
            more = {
                "predict": ("--input=texts.jsonl", "--output=out.jsonl"),
                "embed": ("--input=texts.jsonl", "--output=out.npy"),
                "fill_mask": ("--text=the [MASK] runs",),
            }.get(mode, ())
            command = ("main", *_run_of(family), f"--mode={mode}", *more)
            wanted = (f"run_{family}", "texts.jsonl", *needs(family))
            for item in ("parameters", "run", "tokenizer"):
                for what, change in changes.items():
                    yield Case(
                        "checkpoints",
                        f"{family}, {mode}: {item} {what}",
                        command,
                        wanted,
                        _spoil_item(family, item, change),
                    )
    yield from _odd_run_items()


def _odd_run_items() -> Iterator[Case]:
    """Fields of the run item and of the tokenizer item replaced by other JSON."""
    command = ("main", *_predict("single"), "--input=texts.jsonl", "--output=out.jsonl")
    odd = (None, 3, -1, "x", [], {}, [[]], 10**30)
    fields = ("step", "config", "task", "data", "history", "checksums", "format", "version")
    for field in fields:
        for value in odd:
            yield Case(
                "checkpoint fields",
                f"{field}={str(value)[:20]}",
                command,
                ("run_single", "texts.jsonl"),
                _spoil_item("single", "run", _with(field, value)),
                accepts=field in ("data", "history", "version", "format", "step"),
            )
    for key, value in {
        "task": "hostile_module.Canary",
        "model.hidden_size": -3,
        "model.vocab_size": "x",
        "model.num_hidden_layers": 10**9,
        "data.text": 7,
        "model": None,
        "data": [],
    }.items():
        yield Case(
            "checkpoint fields",
            f"config.{key}={value}",
            command,
            ("run_single", "texts.jsonl"),
            _spoil_item("single", "run", _with(f"config.{key}", value)),
        )
    for name in ("/tmp/escaped", "../escaped", "a/b", "", ".."):
        change = lambda b, n=name: json.dumps({n: "eA=="} | json.loads(b)).encode()
        yield Case(
            "checkpoint fields",
            f"tokenizer file {name!r}",
            command,
            ("run_single", "texts.jsonl"),
            _spoil_item("single", "tokenizer", change),
        )
    for value in odd:
        change = lambda b, v=value: json.dumps(dict.fromkeys(json.loads(b), v)).encode()
        yield Case(
            "checkpoint fields",
            f"tokenizer files are {str(value)[:20]}",
            command,
            ("run_single", "texts.jsonl"),
            _spoil_item("single", "tokenizer", change),
        )


def _with(dotted: str, value: object) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        try:
            whole = json.loads(content)
        except ValueError:
            return content
        inner = whole
        *groups, last = dotted.split(".")
        for group in groups:
            inner = inner[group]
        inner[last] = value
        return json.dumps(whole).encode()

    return change


def workdirs() -> Iterator[Case]:
    for family in ("single", "pretraining"):
        for mode in ("train", "evaluate"):
            command = ("main", *_run_of(family), f"--mode={mode}")
            wanted = (f"run_{family}", *needs(family))
            for file in ("config.json", "metrics.jsonl"):
                for content in ODD_JSON:
                    write = _replaced(f"run_{family}/{file}", lambda p, c=content: p.write_text(c))
                    yield Case(
                        "workdirs",
                        f"{family}, {mode}: {file} {content[:12]!r}",
                        command,
                        wanted,
                        write,
                        accepts=file == "metrics.jsonl" or content == "",
                    )
            for file in ("config.json", "metrics.jsonl", "checkpoints", "tensorboard"):
                for what in (
                    ("a folder", "a FIFO", "a link to itself")
                    if file.endswith(("json", "jsonl"))
                    else ("empty", "a FIFO")
                ):
                    yield Case(
                        "workdirs",
                        f"{family}, {mode}: {file} is {what}",
                        command,
                        wanted,
                        _replaced(f"run_{family}/{file}", SPECIAL_FILES[what]),
                        accepts=file == "tensorboard" or mode == "evaluate",
                    )
    other = ("main", *_run_of("single"), "--config.optimizer.learning_rate=0.5")
    yield Case("workdirs", "another learning rate", other, ("run_single", *needs("single")))
    several = ("main", *_run_of("single"), "--config.seeds=2")
    yield Case("workdirs", "seeds=2 in the workdir of one run", several, ("run_single", *needs("single")))
    for place in ("/proc/run", "/dev/null", "/dev/null/run", "corpus.txt", "x" * 300):
        command = (
            *(word for word in ("main", *flags("pretraining")) if not word.startswith("--workdir")),
            f"--workdir={place}",
        )
        yield Case("workdirs", f"--workdir={place[:20]!r}", command, ("corpus.txt",))


def prepared_folders() -> Iterator[Case]:
    command = ("main", *flags("pretraining"))
    wanted = ("corpus.txt", "prepared")

    def inside(change: Callable[[Path], object]) -> Callable[[Path], None]:
        return lambda folder: [change(path) for path in (folder / "prepared").iterdir() if path.is_dir()] and None

    for file in (
        "manifest.json",
        "features.json",
        "dataset_info.json",
        "report.json",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.txt",
    ):
        for content in ODD_JSON:
            yield Case(
                "prepared data",
                f"{file} {content[:12]!r}",
                command,
                wanted,
                inside(lambda p, f=file, c=content: (p / f).write_text(c)),
                accepts=True,
            )
    for field, values in {
        "shards": (
            3,
            [3],
            [{}],
            [{"split": "train", "file": "/etc/passwd", "bytes": 1, "records": 1}],
            [{"split": "train", "file": "../../corpus.txt", "bytes": 10**9, "records": 10**9}],
        ),
        "splits": (3, {}, []),
        "settings": (3, {}),
        "masking": ("x", 3),
        "sequence_length": (3, "x"),
        "vocab_size": (3, -1, "x"),
        "tokenizer_hash": ("x", 3),
        "format": (99, "x", None),
    }.items():
        for value in values:
            change = inside(
                lambda p, f=field, v=value: (p / "manifest.json").write_text(
                    json.dumps(json.loads((p / "manifest.json").read_text()) | {f: v})
                )
            )
            yield Case("prepared data", f"manifest {field}={str(value)[:30]}", command, wanted, change, accepts=True)
    hostile = {"pythonClassName": "hostile_module.Canary", "featuresDict": {"features": {}}}
    yield Case(
        "prepared data",
        "features.json names a class",
        command,
        wanted,
        inside(lambda p: (p / "features.json").write_text(json.dumps(hostile))),
        accepts=True,
    )
    for what, change in {
        "cut": lambda b: b[: len(b) // 2],
        "random": lambda b: random.Random(2).randbytes(len(b)),
    }.items():
        shards = lambda p, c=change: [s.write_bytes(c(s.read_bytes())) for s in p.glob("*array_record*")]
        yield Case("prepared data", f"shards {what}", command, wanted, inside(shards), accepts=what == "cut")


def foreign_checkpoints() -> Iterator[Case]:
    """Hugging Face folders of another shape, through convert and as init_from."""
    base = {
        "model_type": "bert",
        "hidden_act": "gelu",
        "vocab_size": 50,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }

    def write(settings: object, weights: bytes | None = b"") -> Callable[[Path], None]:
        def make(folder: Path) -> None:
            (folder / "theirs").mkdir()
            (folder / "theirs/config.json").write_text(settings if isinstance(settings, str) else json.dumps(settings))
            if weights is not None:
                (folder / "theirs/model.safetensors").write_bytes(weights)
            shutil.copyfile(folder / "vocab.txt", folder / "theirs/vocab.txt")

        return make

    command = ("convert", "--from=theirs", "--to=out")
    for field in base:
        for value in (None, "x", -1, 10**12, [], 1.5):
            yield Case("foreign checkpoints", f"{field}={value}", command, ("vocab.txt",), write(base | {field: value}))
    for content in ODD_JSON:
        yield Case("foreign checkpoints", f"config.json {content[:12]!r}", command, ("vocab.txt",), write(content))
    header = lambda entries: (lambda h: len(h).to_bytes(8, "little") + h)(json.dumps(entries).encode())
    for what, weights in {
        "missing": None,
        "empty": b"",
        "a header beyond the file": b"\xff" * 8 + b"{}",
        "no tensors": header({}),
        "offsets beyond the file": header({"x": {"dtype": "F32", "shape": [10], "data_offsets": [0, 40]}}),
        "a negative shape": header({"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 0]}}),
        "random": random.Random(3).randbytes(999),
    }.items():
        yield Case("foreign checkpoints", f"weights {what}", command, ("vocab.txt",), write(base, weights))
    for source in ("theirs", "bert-base-uncased", "nowhere/at/all", "vocab.txt", "", "../.."):
        yield Case(
            "foreign checkpoints",
            f"init_from={source!r}",
            ("main", *flags("single", init_from=source)),
            needs("single"),
            write(base) if source == "theirs" else None,
            accepts=source == "",
        )
    for more in (
        "--to=vocab.txt",
        "--to=theirs",
        "--to=.",
        "--format=onnx",
        "--allow=(",
        "--extend_vocab=nowhere",
        "--architecture=Bert",
        "--max_position_embeddings=-5",
        "--nonsense",
        "--to=",
    ):
        yield Case("foreign checkpoints", more, (*command, more), ("vocab.txt",), write(base))


def vocabularies() -> Iterator[Case]:
    for name, contents in {
        "vocab.txt": ("", "\n\n", "a\nb\n", "[PAD]\n" * 5, "\x00", "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n\n\na\na\n"),
        "tokenizer.json": (*ODD_JSON, '{"model": {"type": "BPE"}}', '{"model": {"type": "WordPiece", "vocab": {}}}'),
        "spm.model": ("", "random", "\x00" * 100),
        "vocab.exe": ("a\n",),
    }.items():
        for content in contents:
            for family in ("single", "pretraining"):
                write = lambda folder, n=name, c=content: (folder / f"my_{n}").write_text(c)
                yield Case(
                    "vocabularies",
                    f"{name} {content[:34]!r}, {family}",
                    ("main", *flags(family, data__vocab_file=f"my_{name}")),
                    needs(family),
                    write,
                )


def commands() -> Iterator[Case]:
    for words in (
        (),
        ("--mode=nothing",),
        ("--config",),
        ("positional",),
        ("--workdir",),
        ("--top_k=x",),
        ("--top_k=0",),
        ("--profile=-1",),
        ("--checkpoint=nothing",),
        ("--mode=predict",),
        ("--mode=embed", "--input=x"),
        ("--mode=fill_mask",),
        ("--text=x",),
        ("--input=x",),
        ("--nonsense=3",),
        ("--config.mesh.data=3",),
        ("--config.mesh.data=0",),
        ("--mode=evaluate", "--input=x"),
        ("--mode=fill_mask", "--output=x"),
        ("--mode=predict", "--pooling=cls", "--input=x"),
        ("--layer=99", "--mode=embed", "--input=x", "--output=y.npy"),
    ):
        command = ("main", *(flags("pretraining") if words else ()), *words)
        yield Case("commands", " ".join(words) or "nothing", command, ("corpus.txt",))
    for pattern in ("(", "[", "*", "(?P<a>x)(?P<a>y)", "x{99999999999}"):
        for key in ("optimizer.freeze", "optimizer.no_decay"):
            yield Case(
                "patterns",
                f"{key}={pattern}",
                ("main", *flags("pretraining"), f"--config.{key}={pattern}"),
                ("corpus.txt",),
            )
    for name in ("nothing", "loss2", "", "mlm_acc"):
        for family in EVERY_FAMILY:
            yield Case(
                "patterns",
                f"best_metric={name}, {family}",
                ("main", *flags(family, checkpoint__best_metric=name)),
                needs(family),
            )


def environments() -> Iterator[Case]:
    for name, variables, accepts in (
        ("no temporary folder", {"TMPDIR": "/nowhere"}, True),
        ("an unwritable cache of programs", {"JAX_COMPILATION_CACHE_DIR": "/proc/x"}, True),
        ("a coordinator without number", {"JAX_COORDINATOR_ADDRESS": "localhost:1"}, False),
        (
            "a coordinator that is none",
            {"JAX_COORDINATOR_ADDRESS": "x y", "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"},
            False,
        ),
        (
            "a process beyond all",
            {"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "5"},
            False,
        ),
        ("HOME unset", {"HOME": "/nowhere"}, True),
    ):
        yield Case(
            "environments",
            name,
            ("main", *flags("pretraining")),
            ("corpus.txt",),
            environment=variables,
            accepts=accepts,
        )
