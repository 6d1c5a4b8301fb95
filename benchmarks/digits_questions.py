"""scikit-learn's digits with questions → the folder that experiments/studies/visual.py reads.

    python benchmarks/digits_questions.py --to=digits

    images.npy                       1,797 digits of 8 × 8 pixels, float32 from 0 to 1; rows name images.npy#NUMBER
    train, validation, test.jsonl    four questions about each of 1,257, 270 and 270 digits
    pretrain.jsonl, pretrain_validation.jsonl    a sentence about each digit of train and of validation
    vocab.txt                        a WordPiece vocabulary of their words

The questions are "which digit is it?", "is it even?" and twice "is it larger than N?", N from one to eight: neither the
picture alone nor the question alone says the answer. Takes a second.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from archives import make_folder, run
from sklearn.datasets import load_digits

_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_SPLITS = {"train": 1257, "validation": 270, "test": 270}
_WORDS = (
    "which",
    "digit",
    "is",
    "it",
    "even",
    "odd",
    "larger",
    "smaller",
    "than",
    "yes",
    "no",
    "this",
    "a",
    "and",
    "?",
)
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def make(_: Path, to: Path) -> None:
    """Makes the folder. Raises UserError if it is there."""
    make_folder(Path(), (), to, _write)


def _write(_: Path, made: Path) -> None:
    pixels, digits = map(np.asarray, load_digits(return_X_y=True))
    np.save(made / "images.npy", (pixels.reshape(-1, 8, 8) / 16).astype(np.float32))
    random = np.random.default_rng(12_345)
    order, start = random.permutation(len(digits)), 0
    for split, count in _SPLITS.items():
        own, start = order[start : start + count], start + count
        rows = [row for number in own for row in _questions(int(number), int(digits[number]), random)]
        _write_rows(made / f"{split}.jsonl", rows)
        name = {"train": "pretrain", "validation": "pretrain_validation"}.get(split)
        if name:
            facts = [_fact(int(number), int(digits[number]), random) for number in own]
            _write_rows(made / f"{name}.jsonl", facts)
    (made / "vocab.txt").write_text("\n".join((*_SPECIAL, *_NAMES, *_WORDS)) + "\n", encoding="utf-8")


def _questions(number: int, digit: int, random: np.random.Generator) -> Iterator[dict[str, Any]]:
    image = f"images.npy#{number}"
    yield {"question": "which digit is it?", "answer": _NAMES[digit], "image": image}
    yield {"question": "is it even?", "answer": "no" if digit % 2 else "yes", "image": image}
    for other in random.choice(np.arange(1, 9), 2, replace=False).tolist():
        answer = "yes" if digit > other else "no"
        yield {"question": f"is it larger than {_NAMES[other]}?", "answer": answer, "image": image}


def _fact(number: int, digit: int, random: np.random.Generator) -> dict[str, Any]:
    other = int(random.choice([n for n in range(10) if n != digit]))
    size = "larger" if digit > other else "smaller"
    parity = "odd" if digit % 2 else "even"
    text = f"this digit is {_NAMES[digit]} and it is {parity} and {size} than {_NAMES[other]}"
    return {"text": text, "image": f"images.npy#{number}"}


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    run(__doc__, make, from_archives=False)
