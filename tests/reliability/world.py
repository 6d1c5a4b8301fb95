"""A small world to spoil: data of every family, a vocabulary, a corpus, and a tiny trained run of every family.

Made once, by the real command line; `flags(family)` is what a good command of a family looks like in it.
"""

import csv
import json
import shutil
from pathlib import Path

from tests.reliability.harness import Case, fork_command, import_libraries

WORDS = ["the", "a", "cat", "dog", "bird", "fish", "sees", "hears", "likes", "eats", "big", "small"]
WORDS += ["red", "old", "runs", "sleeps", "here", "there", "who", "what", "is", "it"]
FAMILIES = ("single", "multi", "regression", "tagging", "questions", "choices")

_SIZE = ("hidden_size=32", "num_hidden_layers=2", "num_attention_heads=2", "intermediate_size=64", "dtype=float32")
_MODEL = tuple(f"--config.model.{each}" for each in _SIZE)
_COMMON = (
    *("--config.train.batch_size=8", "--config.eval.batch_size=8", "--config.train.peak_tflops=1"),
    "--config.data.sequence_length=32",
    "--config.mesh.data=1",
)
_FILES = {
    "single": ("classify.py", "single.csv", ()),
    "multi": ("classify.py:multi", "multi.csv", ()),
    "regression": ("classify.py:regression", "regression.csv", ()),
    "tagging": ("ner.py", "tagging.conll", ()),
    "questions": (
        "squad.py:v2",
        "questions.json",
        ("--config.data.max_query_length=10", "--config.data.window_stride=8"),
    ),
    "choices": ("multiple_choice.py", "choices.csv", ()),
}
EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"


def flags(family: str, **changes: object) -> tuple[str, ...]:
    """The flags of a good command: training from scratch in `run`. `changes`: keys with __ for the dot → values."""
    if family == "pretraining":
        words = [
            f"--config={EXPERIMENTS / 'base.py'}",
            *("--config.data.corpus=text", "--config.data.files=corpus.txt", "--config.data.vocab_size=200"),
            *(
                "--config.data.workers=1",
                "--config.data.validation_share=0.2",
                "--config.data.max_predictions_per_sequence=5",
            ),
            *("--config.train.steps=2", "--config.optimizer.warmup_steps=1", "--config.eval.every=2"),
            *("--config.checkpoint.every=1", "--config.eval.at_start=False"),
        ]
    else:
        experiment, data, more = _FILES[family]
        words = [f"--config={EXPERIMENTS / experiment}", "--config.data.vocab_file=vocab.txt", *more]
        words += [f"--config.data.train={data}", f"--config.data.validation={data}", "--config.train.epochs=1.0"]
    words += [*_MODEL, *_COMMON, "--workdir=run"]
    for key, value in changes.items():
        flag = f"--config.{key.replace('__', '.')}"
        words = [word for word in words if not word.startswith(f"{flag}=")] + [f"{flag}={value}"]
    return tuple(words)


def needs(family: str) -> tuple[str, ...]:
    return ("corpus.txt",) if family == "pretraining" else ("vocab.txt", _FILES[family][1])


def data_file(family: str) -> str:
    return "corpus.txt" if family == "pretraining" else _FILES[family][1]


def make_world(folder: Path) -> Path:
    """Writes the data and trains a run of each family, as `run_<family>`; gives the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_data(folder)
    import_libraries()
    for family in ("pretraining", *FAMILIES):
        scratch = folder / f"making_{family}"
        scratch.mkdir()
        for name in needs(family):
            shutil.copyfile(folder / name, scratch / name)
        status, output = fork_command(Case("world", family, ("main", *flags(family))), scratch)
        if status != 0:
            raise AssertionError(f"a good command of {family} ended with {status}: {output[-2000:]}")
        shutil.rmtree(scratch / "run" / "tensorboard", ignore_errors=True)
        shutil.rmtree(scratch / "run" / "plots", ignore_errors=True)
        shutil.move(scratch / "run", folder / f"run_{family}")
        if family == "pretraining":
            shutil.move(scratch / "prepared", folder / "prepared")
        shutil.rmtree(scratch)
    return folder


def _write_data(folder: Path) -> None:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *"bcdefghijklmnopqrstuvwxyz", "##s", ".", "?"]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    texts = [" ".join(WORDS[(7 * i + j * j) % len(WORDS)] for j in range(5 + i % 9)) for i in range(24)]
    documents = ["\n".join(f"{text.capitalize()} number {i} ." for text in texts[i : i + 8]) for i in range(16)]
    (folder / "corpus.txt").write_text("\n\n".join(documents) + "\n")
    rows = {
        "single": [("text", "label"), *((text, "yn"[i % 2]) for i, text in enumerate(texts))],
        "multi": [("text", "label"), *((text, ("x", "x|y", "", "z")[i % 4]) for i, text in enumerate(texts))],
        "regression": [("text", "label"), *((text, str(i / 4)) for i, text in enumerate(texts))],
        "choices": [
            ("sent1", "sent2", "ending0", "ending1", "ending2", "ending3", "label"),
            *((text, "the", *(texts[(i + k) % 24] for k in range(4)), str(i % 4)) for i, text in enumerate(texts)),
        ],
    }
    for name, lines in rows.items():
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(lines)
    tags = ["O", "B-X", "I-X", "O", "B-Y"]
    (folder / "tagging.conll").write_text(
        "\n\n".join("\n".join(f"{word} {tags[i % 5]}" for i, word in enumerate(text.split())) for text in texts) + "\n"
    )
    questions = []
    for i, text in enumerate(texts):
        word = text.split()[2]
        answers = [] if i % 3 == 0 else [{"text": word, "answer_start": text.index(f" {word}") + 1}]
        question = {"id": str(i), "question": "what is it ?", "answers": answers, "is_impossible": not answers}
        questions.append({"title": "t", "paragraphs": [{"context": text, "qas": [question]}]})
    (folder / "questions.json").write_text(json.dumps({"version": "v2.0", "data": questions}))
    (folder / "texts.jsonl").write_text(
        "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts))
    )
    (folder / "hostile_module.py").write_text("open('canary', 'w').close()\n\n\nclass Canary:\n    pass\n")
