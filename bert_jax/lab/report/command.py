"""The report of a study, or of one run, from its folder.

    python -m bert_jax.lab.report runs/objectives                       # runs/objectives/report.html
    python -m bert_jax.lab.report runs/objectives --output=table.tex    # .html, .md, .csv or .tex
    python -m bert_jax.lab.report runs/one                              # the page of one run

A page of HTML is one file and loads nothing. Markdown has its pictures beside it. A CSV has one line per run. The exit
status is 0 when the work is done and 2 for a mistake that you can correct (one line).
"""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from bert_jax.command import Parser, say
from bert_jax.config import UserError
from bert_jax.files import write_atomically

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from bert_jax.lab.records import StudyRecord
    from bert_jax.lab.report.documents import Document
    from bert_jax.tasks.sections import Report

FORMATS = (".html", ".md", ".csv", ".tex")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_OURS = ("study.json", "sweep.json", "config.json", "metrics.jsonl", "log.txt", "seeds.json")


def main(argv: list[str]) -> int:
    """Writes the report and prints its path. Heavy imports wait until the flags are known to be right."""
    parser = Parser("bert_jax.lab.report", __doc__ or "")
    parser.usage = "python -m bert_jax.lab.report FOLDER [--output=FILE]"
    parser.flag("output", "", "file to write: .html, .md, .csv or .tex [FOLDER/report.html]", metavar="FILE")
    parser.flag("debug", False, "show the traceback of an error")
    flags, folders = parser.parse_with_names(argv)
    if len(folders) != 1:
        given = f"{len(folders)} folders are given" if folders else "the folder is missing"
        raise UserError(f"{given}; give one, the --workdir of a sweep or of a run, e.g. runs/objectives")
    say(f"report: {write(Path(folders[0]), flags['output'])}")
    return 0


def write(folder: Path, output: str = "") -> Path:
    """Writes the report of the study or run in a folder and returns its path. Raises UserError."""
    from bert_jax.lab.records import STUDY

    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the --workdir of a sweep or of a run")
    path = Path(output) if output else folder / "report.html"
    is_study = (folder / STUDY).exists()
    if not is_study and not (folder / "config.json").exists():
        raise UserError(
            f"{folder} holds neither a study (study.json) nor a run (config.json); give the --workdir of one"
        )
    _check_output(path, folder, is_study)
    try:
        return _write_study(folder, path) if is_study else _write_run(folder, path)
    except OSError as problem:
        raise UserError(f"--output {path} cannot be written ({problem.strerror}); choose another file") from problem


def _check_output(path: Path, folder: Path, is_study: bool) -> None:
    """Raises UserError for an output of no known form, or that would replace what a run or the sweep has written."""
    from bert_jax.inference.output import check_output

    if path.suffix not in FORMATS or (path.exists() and not path.is_file()):  # such as -, /dev/null or a folder
        raise UserError(f"--output {path} is no file that can be written; give one of {', '.join(FORMATS)}")
    inside = path.resolve().parent
    if is_study and inside != folder.resolve() and inside.is_relative_to(folder.resolve()):
        raise UserError(f"--output {path} is inside of a run of the study; choose a file in {folder} or elsewhere")
    depth = ("*/*/" if is_study else "", "")
    check_output(str(path), FORMATS, [file for name in _OURS for at in depth for file in folder.glob(f"{at}{name}")])


def _write_study(folder: Path, path: Path) -> Path:
    from bert_jax.lab.records import read_study

    record = read_study(folder)
    if path.suffix == ".csv":
        return _write_text(path, _csv(record))
    from bert_jax.lab.report.study_report import describe_study

    return write_document(path, describe_study(record))


def _write_run(folder: Path, path: Path) -> Path:
    from bert_jax.config import read_config
    from bert_jax.lab.report.run_page import describe_run
    from bert_jax.training.checkpoint import choose_checkpoint, has_checkpoint
    from bert_jax.training.metrics_log import read_metrics

    config = read_config(folder / "config.json")
    report, metrics = None, {}
    if has_checkpoint(str(folder)):
        best = choose_checkpoint(str(folder))
        lines = read_metrics(folder / "metrics.jsonl")
        found = [line for line in lines if line["split"] == "eval" and line["step"] == int(best.name)]
        metrics = {name: value for line in found for name, value in line.items() if name not in ("step", "split")}
        report, metrics = _evaluated(config, folder, str(best)) or (None, metrics)
    if path.suffix == ".csv":
        return _write_text(path, _as_csv([{"run": folder.name, "task": config.task, **metrics}]))
    return write_document(path, describe_run(report, metrics, config, folder))


def _evaluated(config: "ConfigDict", folder: Path, best: str) -> "tuple[Report | None, Mapping[str, float]] | None":
    """Returns the task's part of the page and the metrics on validation; None for a task without predictions, or one
    whose class is code outside bert_jax."""
    from bert_jax.run import evaluate_checkpoint, start_run
    from bert_jax.tasks import may_import, task_class

    if not may_import(config, "") or not task_class(config.task).makes_predictions:
        return None
    task = task_class(config.task).with_data(config, start_run(config, folder))
    evaluation = evaluate_checkpoint(task, config, best, "best")[0].get("validation")
    return (task.report(evaluation), evaluation.metrics) if evaluation else None


def write_document(path: Path, document: "Document") -> Path:
    """Writes a document in the form that the path's suffix says, and returns the path."""
    from bert_jax.lab.report.documents import Picture, to_html, to_latex, to_markdown

    if path.suffix == ".html":
        return _write_text(path, to_html(document))
    if path.suffix == ".tex":
        return _write_text(path, to_latex(document))

    def name_of(picture: Picture) -> str:
        """Writes the picture beside the text."""
        suffix = "png" if picture.image.startswith(b"\x89PNG") else "svg"
        file = path.with_name(f"{path.stem}.{picture.name}.{suffix}")
        write_atomically(file, picture.image)
        return quote(file.name)

    return _write_text(path, to_markdown(document, name_of))


def _write_text(path: Path, text: str) -> Path:
    write_atomically(path, text)
    return path


def _csv(record: "StudyRecord") -> str:
    """Returns a table with one line per run: its levels, how it fared, and every metric of its result."""
    rows = []
    for run in record.runs:
        row: dict[str, object] = {"study": record.name, "stage": run.stage, "run": run.name, "after": run.after}
        row |= {f"level.{axis}": label for axis, label in run.levels.items()}
        row |= {"status": run.status, "error": run.error, "attempts": run.attempts, "seconds": run.seconds}
        row |= {"host": run.host, "devices": run.devices, "started": run.started}
        row |= {f"{split}.{name}": value for split, metrics in run.result.items() for name, value in metrics.items()}
        rows.append(row)
    return _as_csv(rows)


def _as_csv(rows: "Sequence[Mapping[str, object]]") -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writerow({name: _harmless(name) for name in names})
    writer.writerows({name: _harmless(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def _harmless(value: object) -> object:
    """Returns a cell that no spreadsheet takes for a formula: a text that starts like one gets an apostrophe, as OWASP
    advises (CSV injection); numbers stay. A carriage return, which Python 3.11 does not quote, becomes a line feed."""
    if not isinstance(value, str):
        return value
    value = value.replace("\r\n", "\n").replace("\r", "\n")
    if not value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")):
        return value
    return value if _NUMBER.fullmatch(value) else f"'{value}"
