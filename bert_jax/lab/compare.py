"""Any runs beside each other: what differs between them, their metrics, speed and curves.

    python -m bert_jax.lab.compare runs/a runs/b runs/c [--output=compare.html]

Tables are printed; --output writes them with the curves to a page (.html), Markdown (.md) or LaTeX (.tex). For the
runs of a study with several seeds, `bert_jax.lab.report` has means, intervals and tests. The exit status is 0 when the
work is done and 2 for a mistake that you can correct (one line).
"""

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bert_jax.command import Parser, run_command, say
from bert_jax.config import Json, UserError

if TYPE_CHECKING:
    from bert_jax.lab.report.documents import Block, Document
    from bert_jax.tasks.sections import Cell, Table

_NONE = "–"
_MOST_PANELS = 9
_OPTIONS_OF_NO_INTEREST = ("data.prepared", "train.peak_tflops")
_LEVELS_OF_CHANCE = ("unigram_entropy", "majority_accuracy", "real_tokens")  # of the data, the same in every evaluation
_SPEED = {  # name in metrics.jsonl → how it is shown, and its factor
    "tokens_per_second": ("tokens per second", 1.0),
    "sequences_per_second": ("sequences per second", 1.0),
    "step_seconds": ("seconds per step", 1.0),
    "mfu": ("model FLOP utilisation, %", 100.0),
    "wait_share": ("waiting for data, % at most", 100.0),
    "peak_bytes": ("peak memory of a step, GB", 1e-9),
}


@dataclass(frozen=True)
class Run:
    """A run as it is on disk. Of what is measured, `lines` are those of metrics.jsonl."""

    folder: Path
    label: str  # the shortest end of its path that no other run has
    config: Mapping[str, Any]  # {option: value}, with today's defaults
    lines: Sequence[Json]
    environment: Mapping[str, Any]  # of its last start; {} for a run of before there was one
    step: int
    state: str  # "finished", or why it is not

    @property
    def is_finished(self) -> bool:
        return self.state == "finished"

    def of(self, split: str) -> list[Json]:
        return [line for line in self.lines if line["split"] == split]

    def best(self) -> Json:
        """Returns the evaluation that is best by the run's own rule; {} without one."""
        metric, sign = self.config["checkpoint.best_metric"], 1 if self.config["checkpoint.best_mode"] == "max" else -1
        found = [line for line in self.of("eval") if math.isfinite(line.get(metric, math.nan))]
        return max(found, key=lambda line: (sign * line[metric], line["step"]), default={})


def main(argv: list[str]) -> int:
    """Prints the tables. Heavy imports wait until the flags are known to be right."""
    parser = Parser("bert_jax.lab.compare", __doc__ or "")
    parser.usage = "python -m bert_jax.lab.compare RUN RUN … [--output=FILE]"
    parser.flag("output", "", "file to write: .html, .md or .tex", metavar="FILE")
    parser.flag("debug", False, "show the traceback of an error")
    flags, words = parser.parse_with_names(argv)
    if len(words) < 2:
        raise UserError(f"{len(words)} runs are given; give at least two workdirs, e.g. runs/a runs/b")
    runs = read_runs([Path(word) for word in words])
    if flags["output"]:
        from bert_jax.inference.output import check_output

        ours = (run.folder / name for run in runs for name in ("config.json", "metrics.jsonl", "environment.json"))
        check_output(flags["output"], (".html", ".md", ".tex"), ours)
    from bert_jax.lab.report.documents import to_text

    document = describe_comparison(runs)
    say(to_text(document))
    if flags["output"]:
        from bert_jax.lab.report.command import write_document

        say(f"\nwritten: {write_document(Path(flags['output']), document)}")
    return 0


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Returns the runs of the workdirs, in their order. Raises UserError for a folder that is not the workdir of one
    run, and for one that is given twice."""
    for folder in folders:
        if sum(folder.resolve() == other.resolve() for other in folders) > 1:
            raise UserError(f"{folder} is given twice; give each run once")
    return [_read_run(folder, label) for folder, label in zip(folders, _labels(folders), strict=True)]


def describe_comparison(runs: Sequence[Run]) -> "Document":
    """Returns tables and curves of the runs, as data."""
    from bert_jax.lab.report.documents import Document, Folded, Part, Text
    from bert_jax.options import RESTART

    keys = [key for key in _differing([run.config for run in runs]) if key not in _OPTIONS_OF_NO_INTEREST]
    learning = [key for key in keys if key not in RESTART]
    other = [key for key in keys if key in RESTART]
    options: list[Block] = [_table(runs, learning, "config")] if learning else [Text("no option that changes a result")]
    if other:
        options.append(Folded("options that change no result", [_table(runs, other, "config")]))
    environment = {run.label: _flat(run.environment) for run in runs}
    facts = _differing([environment[run.label] for run in runs if run.environment])
    parts = [
        Part("Runs", [_overview(runs), *(Text(note, "problem") for note in _warnings(runs))]),
        Part("What differs: options", options),
        Part("What differs: code, packages, machine, data", [_facts(runs, facts, environment)] if facts else []),
        *_metrics(runs),
        Part("Speed", _speed(runs), "Medians over the lines of training; compare runs of one machine."),
        Part("Curves", _curves(runs)),
    ]
    return Document(f"Comparison of {len(runs)} runs", parts, ", ".join(run.label for run in runs))


def _read_run(folder: Path, label: str) -> Run:
    from bert_jax.config import flatten, read_config
    from bert_jax.files import is_locked
    from bert_jax.lab.provenance import read_environments
    from bert_jax.lab.records import STUDY
    from bert_jax.training.metrics_log import read_metrics

    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the workdir of a run")
    if (folder / STUDY).exists():
        raise UserError(f"{folder} holds a study; python -m bert_jax.lab.report {folder} compares its levels")
    if (folder / "seeds.json").exists():
        raise UserError(f"{folder} holds the runs of several seeds; give them one by one, as {folder}/seed0")
    if not (folder / "config.json").exists():
        raise UserError(f"{folder} is not the workdir of a run: there is no config.json; give one such as runs/mine")
    config = flatten(read_config(folder / "config.json").to_dict())
    lines = read_metrics(folder / "metrics.jsonl")
    step = max((line["step"] for line in lines), default=0)
    state = _state(config, lines, step, is_locked(folder))
    return Run(folder, label, config, lines, (read_environments(folder) or [{}])[-1], step, state)


def _state(config: Mapping[str, Any], lines: Iterable[Mapping[str, Any]], step: int, is_running: bool) -> str:
    if is_running:
        return f"running, at step {step} of {config['train.steps']}"
    if not step:
        return "not begun" if not any(True for _ in lines) else "unfinished, at step 0"
    # A run whose patience ended it has a test of its last step, if it has a test set.
    if step >= config["train.steps"] or any(line["split"] == "test" for line in lines):
        return "finished"
    why = ", or out of patience" if config["train.patience"] else ""
    return f"unfinished{why}, at step {step} of {config['train.steps']}"


def _labels(folders: Sequence[Path]) -> list[str]:
    """Returns the shortest ends of the paths by which they differ."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts))):
        labels = ["/".join(part[-length:]) for part in parts]
        if len(set(labels)) == len(labels):
            return labels
    return [str(folder) for folder in folders]


def _differing(trees: Sequence[Mapping[str, object]]) -> list[str]:
    keys = dict.fromkeys(key for tree in trees for key in tree)
    return [key for key in keys if any(tree.get(key, _NONE) != trees[0].get(key, _NONE) for tree in trees)]


def _flat(environment: Mapping[str, object]) -> Json:
    from bert_jax.config import flatten

    return flatten({key: value for key, value in environment.items() if key not in ("time", "step")})


def _overview(runs: Sequence[Run]) -> "Table":
    from bert_jax.tasks.sections import PROBLEM, Cell, Table

    rows = [
        [run.label, run.config["task"], str(run.config["seed"]), f"{run.step:,}",
         run.state if run.is_finished else Cell(run.state, PROBLEM)]
        for run in runs
    ]  # fmt: skip
    return Table(["run", "task", "seed", "steps", "state"], rows, {2, 3})


def _warnings(runs: Sequence[Run]) -> list[str]:
    tasks = sorted({run.config["task"] for run in runs})
    notes = []
    if not _same_task(runs):
        notes.append(
            f"The runs are of different tasks ({', '.join(tasks)}): of one name, metrics may differ in meaning."
        )
    if any(not run.is_finished for run in runs):
        notes.append("Metrics of runs that are not finished are those of their last steps.")
    data = [run.environment["data"] for run in runs if "data" in run.environment]
    if _same_task(runs) and (names := [name for name in _differing(data) if name != "init_from"]):
        notes.append(f"The runs have different data ({', '.join(names)}): their metrics may not be comparable.")
    if not any(run.environment for run in runs):
        notes.append("No run says by which code and on which machine it was made.")
    return notes


def _table(runs: Sequence[Run], keys: Sequence[str], attribute: str) -> "Table":
    return _facts(runs, keys, {run.label: getattr(run, attribute) for run in runs})


def _facts(runs: Sequence[Run], keys: Sequence[str], found: Mapping[str, Mapping[str, object]]) -> "Table":
    from bert_jax.tasks.sections import Table

    def shown(key: str, value: object) -> str:
        is_hash = key.startswith(("code.", "data.")) and re.fullmatch("[0-9a-f]{16,}", str(value))
        return str(value)[:12] if is_hash else str(value) or "(empty)"

    rows = [[key, *(shown(key, found[run.label].get(key, _NONE)) for run in runs)] for key in keys]
    return Table(["", *(run.label for run in runs)], rows)


def _metrics(runs: Sequence[Run]) -> list[Any]:
    """Returns the parts with metrics: of the best checkpoint, of test, and of the last evaluation if it is another."""
    from bert_jax.lab.report.documents import Folded, Part

    best = {run.label: run.best() for run in runs}
    last = {run.label: (run.of("eval") or [{}])[-1] for run in runs}
    test = {run.label: (run.of("test") or [{}])[-1] for run in runs}
    rules = sorted({f"{run.config['checkpoint.best_mode']} {run.config['checkpoint.best_metric']}" for run in runs})
    note = f"The evaluation that is best by {' or '.join(rules)}. "
    note += "The best run is bold; whether a difference is chance, only several seeds show." if _same_task(runs) else ""
    parts = [Part("Validation", [_metric_table(runs, best)] if any(best.values()) else [], note)]
    if any(test.values()):
        parts.append(Part("Test", [_metric_table(runs, test)], "By the best checkpoint on validation."))
    if any(last[run.label] != best[run.label] for run in runs):
        parts.append(Part("Last evaluation", [Folded("metrics", [_metric_table(runs, last)])]))
    return parts


def _metric_table(runs: Sequence[Run], found: Mapping[str, Mapping[str, object]]) -> "Table":
    from bert_jax.tasks.sections import Cell, Table
    from bert_jax.tasks.task import LOWER_IS_BETTER

    rows: list[list[str | Cell]] = [["step", *(str(found[run.label].get("step", _NONE)) for run in runs)]]
    for name in _ordered(runs, (name for line in found.values() for name in line)):
        values = [found[run.label].get(name) for run in runs]
        has_best = _same_task(runs) and _is_score(name) and (name != "loss" or _same_objectives(found.values()))
        rows.append([name, *_numbers(values, has_best, name.endswith(LOWER_IS_BETTER))])
    return Table(["metric", *(run.label for run in runs)], rows, range(1, len(runs) + 1))


def _numbers(values: Sequence[object], has_best: bool, lower_is_better: bool) -> "list[str | Cell]":
    """Returns the values as text; with `has_best` the best one is marked, unless all are equal."""
    from bert_jax.tasks.sections import BEST, Cell

    known = [value for value in values if isinstance(value, (int, float)) and math.isfinite(value)]
    best = (min if lower_is_better else max)(known) if has_best and len(set(known)) > 1 else None
    shown = [f"{value:.6g}" if isinstance(value, (int, float)) else _NONE for value in values]
    marked = (value is not None and value == best for value in values)
    return [Cell(text, BEST) if is_best else text for text, is_best in zip(shown, marked, strict=True)]


def _same_task(runs: Sequence[Run]) -> bool:
    return len({run.config["task"] for run in runs}) == 1


def _same_objectives(lines: Iterable[Mapping[str, object]]) -> bool:
    """Returns whether the losses of all lines are sums of the same objectives, such as MLM and NSP."""
    return len({frozenset(name for name in line if name.endswith("_loss")) for line in lines if line}) < 2


def _speed(runs: Sequence[Run]) -> "list[Block]":
    from bert_jax.tasks.sections import Table

    rows = []
    for name, (title, factor) in _SPEED.items():
        columns = [[x for line in run.of("train") if isinstance(x := line.get(name), (int, float))] for run in runs]
        if any(columns):
            rows.append([title, *(_short(factor * statistics.median(x)) if x else _NONE for x in columns)])
    useful = [next((line.get("useful") for line in reversed(run.of("ledger"))), None) for run in runs]
    if any(useful):
        rows.append(["minutes in training steps", *(f"{x / 60:.1f}" if x else _NONE for x in useful)])
    return [Table(["", *(run.label for run in runs)], rows, range(1, len(runs) + 1))] if rows else []


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _curves(runs: Sequence[Run]) -> "list[Block]":
    """Returns the curves of the loss in training and of the metrics on validation, one colour per run."""
    from bert_jax.lab.plots import series
    from bert_jax.lab.report import study_figures
    from bert_jax.lab.report.documents import Picture, Text
    from bert_jax.lab.report.study_figures import Curves, Scale

    names = _ordered(runs, (name for run in runs for line in run.of("eval") for name in line))
    panels = []
    for split, name in [("train", "loss"), *(("eval", name) for name in names if _is_score(name))]:
        drawn = {run.label: [series(list(run.lines), split, name)] for run in runs}
        if any(steps for [(steps, _)] in drawn.values()):
            title = f"{'training' if split == 'train' else 'validation'}: {name.replace('_', ' ')}"
            panels.append(Curves(title, drawn, Scale(1.0, 3, "")))
    if not panels:
        return [Text("no run has metrics yet")]
    return [Picture(study_figures.curves(panels[:_MOST_PANELS], "curves"), "curves of the runs", "curves")]


def _ordered(runs: Sequence[Run], names: Iterable[str]) -> list[str]:
    """Returns the names of metrics: those by which runs choose their best checkpoint, those that all runs have, the
    others, and at last bounds and what is the same in every evaluation."""
    chosen = {run.config["checkpoint.best_metric"] for run in runs}

    def rank(name: str) -> tuple[bool, bool, bool]:
        is_common = all(any(name in line for line in run.of("eval")) for run in runs)
        return not _is_score(name), name not in chosen, not is_common

    return sorted((name for name in dict.fromkeys(names) if name not in ("step", "split")), key=rank)


def _is_score(name: str) -> bool:
    return not name.endswith(("_low", "_high")) and name not in _LEVELS_OF_CHANCE


if __name__ == "__main__":
    run_command(main)
