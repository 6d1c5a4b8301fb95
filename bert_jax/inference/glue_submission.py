"""Predictions for the test sets of GLUE, in the files that gluebenchmark.com takes.

A submission is a zip with one file a test set: a header, then index and prediction between tabs. It must hold all of
them to be accepted, so each call adds one to the zip, or replaces the one that is there.
"""

import contextlib
import fcntl
import logging
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from bert_jax.config import Json, UserError

_NLI = ("entailment", "neutral", "contradiction")
_TWO_WAY = ("entailment", "not_entailment")

# File → the names that the server wants in place of the model's, empty for a number; rows of the official test set.
FILES: dict[str, tuple[tuple[str, ...], int]] = {
    "CoLA": (("0", "1"), 1_063),
    "SST-2": (("0", "1"), 1_821),
    "MRPC": (("0", "1"), 1_725),
    "STS-B": ((), 1_379),
    "QQP": (("0", "1"), 390_965),
    "MNLI-m": (_NLI, 9_796),
    "MNLI-mm": (_NLI, 9_847),
    "QNLI": (_TWO_WAY, 5_463),
    "RTE": (_TWO_WAY, 3_000),
    "WNLI": (("0", "1"), 146),
    "AX": (_NLI, 1_104),
}
_MEMBERS = {f"{name}.tsv" for name in FILES}
_MOST_BYTES = 1 << 26  # of a file; the largest, QQP, has 4 million


def check_submission(archive: Path, name: str, description: Json) -> None:
    """Raises UserError, before anything is predicted, if the zip cannot be added to, or if the model that is described
    was trained on another task than the one of the file."""
    names, _ = FILES[name]
    kind = description.get("label_kind")
    if kind != ("single" if names else "regression"):
        takes = "one class per text" if names else "numbers"
        raise UserError(f"--glue={name} takes {takes}, which this model does not predict; give the model of this task")
    if names:
        _spelling(name, names, description["labels"])
    _read(archive)


def add_to_submission(archive: Path, name: str, predictions: Sequence[Json], labels: Sequence[str]) -> None:
    """Puts `<name>.tsv` into the zip. `labels` are the model's, in their order: the second of two is the server's 1.

    Raises UserError if model and file do not go together, or if the zip is not a submission.
    """
    from bert_jax.inference.output import whole_file  # main.py imports this file for its flags, and must stay light

    names, official = FILES[name]
    if len(predictions) != official:
        logging.warning("%s: %d rows, where the official test set has %d", name, len(predictions), official)
    if names:
        spelling = _spelling(name, names, labels)
        values = [spelling[prediction["label"]] for prediction in predictions]
    else:
        if any("value" not in prediction for prediction in predictions):
            raise UserError(f"{name} takes numbers, and this model gives classes; predict with its regression model")
        values = [f"{min(max(prediction['value'], 0.0), 5.0):.3f}" for prediction in predictions]
    lines = ["index\tprediction", *(f"{index}\t{value}" for index, value in enumerate(values))]
    with _alone_in(archive.absolute().parent):  # several commands may add to one zip at a time
        files = _read(archive) | {f"{name}.tsv": ("\n".join(lines) + "\n").encode()}
        with whole_file(archive) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
            for path in sorted(files):
                new.writestr(path, files[path])
    missing = [f"{other}.tsv" for other in FILES if f"{other}.tsv" not in files]
    logging.info("%s holds %s.tsv; still missing: %s", archive, name, ", ".join(missing) or "nothing")


def _spelling(name: str, names: Sequence[str], labels: Sequence[str]) -> dict[str, str]:
    """From the model's labels to the server's: by their names, or where it wants numbers by their order."""
    if sorted(labels) == sorted(names):
        return {label: label for label in labels}
    if names == ("0", "1") and len(labels) == 2:
        return dict(zip(labels, names, strict=True))
    raise UserError(
        f"{name} takes {', '.join(names)}, and the labels of this model are {', '.join(labels) or 'numbers'}; "
        "give the model of this task"
    )


def _read(archive: Path) -> dict[str, bytes]:
    """Returns the files of the zip that is there, which may come from anywhere: only those of a submission count."""
    if not archive.exists():
        return {}
    remedy = "remove it, or choose another --output"
    try:
        with zipfile.ZipFile(archive) as file:
            for member in file.infolist():
                if member.filename not in _MEMBERS:
                    raise UserError(f"{archive} holds {member.filename[:80]!r}, which no submission does; {remedy}")
                if member.file_size > _MOST_BYTES:
                    raise UserError(f"{archive}: {member.filename} has {member.file_size:,} bytes, too many; {remedy}")
            if len(file.namelist()) > len(_MEMBERS):
                raise UserError(f"{archive} holds a file twice; {remedy}")
            return {name: file.read(name) for name in file.namelist()}
    # RuntimeError: encrypted, or compressed in a way that zipfile does not know; zlib.error, EOFError: cut or damaged
    except (zipfile.BadZipFile, OSError, RuntimeError, zlib.error, EOFError) as error:
        raise UserError(f"{archive} is no zip that can be added to ({error}); {remedy}") from error


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Waits until no other command of this kind writes into the folder; the lock ends with the process."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
