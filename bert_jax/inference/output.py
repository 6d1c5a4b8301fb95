"""Predictions into a file, in the order of the input; a file is there under its name once it is whole."""

import contextlib
import itertools
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from bert_jax.config import UserError
from bert_jax.data.labelled.tables import Row
from bert_jax.inference.input_rows import InputRow

Stream = Callable[[Iterable[Row | UserError]], Iterator[Any]]


def results(rows: Iterable[InputRow], stream: Stream, *, skip_bad: bool) -> Iterator[tuple[InputRow, Any]]:
    """Each row with what `stream` makes of it. The UserError of a bad row is raised, or with `skip_bad` logged and
    given in place of the result."""
    start, count, bad = time.perf_counter(), 0, 0
    ahead, behind = itertools.tee(rows)  # holds the rows between the two: no more than `stream` reads ahead
    for row, result in zip(behind, stream(row.row for row in ahead), strict=True):
        count += 1
        if isinstance(result, UserError):
            if not skip_bad:
                raise UserError(f"{result} (--bad_lines=skip goes on without this one)") from result
            bad += 1
            logging.warning("%s", result)
        yield row, result
    seconds = time.perf_counter() - start
    logging.info("%d rows in %.1f s (%.0f a second), %d of them bad", count, seconds, count / seconds, bad)


def write_jsonl(rows: Iterable[InputRow], stream: Stream, output: str, *, skip_bad: bool) -> None:
    """A line for each row: "line", its number in the input; "id", if the row has one; the prediction, or "error".

    `output` is a file, or "-" for standard output.
    """
    with contextlib.nullcontext(sys.stdout.buffer) if output == "-" else whole_file(Path(output)) as file:
        for row, result in results(rows, stream, skip_bad=skip_bad):
            record = {"line": row.line} | identity(row)
            record |= {"error": str(result)} if isinstance(result, UserError) else result
            file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        file.flush()


def write_answers(rows: Iterable[InputRow], stream: Stream, output: str, *, skip_bad: bool) -> None:
    """One JSON object {id: answer}, as the scorer of SQuAD reads it; bad rows have no place there."""
    answers: dict[str, str] = {}
    with whole_file(Path(output)) as file:
        for row, result in results(rows, stream, skip_bad=skip_bad):
            if isinstance(result, UserError):
                continue
            if result["id"] in answers:
                raise UserError(f"row {row.line}: id {result['id']!r} for the second time: make ids unique")
            answers[result["id"]] = result["answer"]
        file.write(json.dumps(answers, ensure_ascii=False).encode() + b"\n")


def identity(row: InputRow) -> dict[str, Any]:
    return {"id": row.row.values["id"]} if isinstance(row.row, Row) and "id" in row.row.values else {}


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Writes beside `path` and renames at the end. What was written before an error stays, as `<path>.partial`."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = partial.open("w+b")
    except OSError as error:
        raise UserError(f"--output {path} cannot be written ({error.strerror}); choose another place") from error
    try:
        with file:
            yield file
    except UserError as error:
        raise UserError(f"{error}; what came before it is in {partial}") from error
    os.replace(partial, path)
