"""Predictions for the test sets of GLUE, in the files that gluebenchmark.com takes.

A submission is a zip with one file a test set: a header, then index and prediction between tabs. It must hold all of
them to be accepted, so each call adds one to the zip, or replaces the one that is there.
"""

import logging
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bert_jax.config import UserError

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


def add_to_submission(archive: Path, name: str, predictions: Sequence[dict[str, Any]], labels: Sequence[str]) -> None:
    """Puts `<name>.tsv` into the zip. `labels` are the model's, in their order: the second of two is the server's 1.

    Raises UserError if model and file do not go together, or if the zip is none.
    """
    names, official = FILES[name]
    if len(predictions) != official:
        logging.warning("%s: %d rows, where the official test set has %d", name, len(predictions), official)
    if names:
        spelling = _spelling(name, names, labels)
        values = [spelling[prediction["label"]] for prediction in predictions]
    else:
        if any("value" not in prediction for prediction in predictions):
            raise UserError(f"{name} takes numbers, and this model gives classes: predict with its regression model")
        values = [f"{min(max(prediction['value'], 0.0), 5.0):.3f}" for prediction in predictions]
    lines = ["index\tprediction", *(f"{index}\t{value}" for index, value in enumerate(values))]
    files = _read(archive) | {f"{name}.tsv": ("\n".join(lines) + "\n").encode()}
    partial = archive.with_name(f"{archive.name}.partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(files):
            file.writestr(path, files[path])
    os.replace(partial, archive)
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
    if not archive.exists():
        return {}
    try:
        with zipfile.ZipFile(archive) as file:
            return {name: file.read(name) for name in file.namelist()}
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{archive} is no zip that can be added to ({error}); remove it") from error
