"""A study: a question and the runs that answer it, declared in a file with a function `get_study`.

    def get_study(argument: str = "") -> Study:
        pretrain = Stage("pretrain", "experiments/tiny.py", grid(choice("objective", {...}), seeds(5)))
        sst2 = Stage("sst2", "experiments/glue.py:sst2", after="pretrain")
        return Study("Does NSP help?", (pretrain, sst2), "objective", "MLM + NSP", {"sst2": "eval.accuracy"})

`python -m bert_jax.lab.sweep --study=FILE[:ARGUMENT]` makes the runs (docs/sweeps.md). Nothing here imports jax.
"""

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from bert_jax.config import UserError
from bert_jax.lab.space import Distribution, Search, check_metric, label, named_metrics
from bert_jax.option import Value, can_be

Levels = Mapping[str, str]  # {name of an axis: label}
Overrides = Mapping[str, Value]  # {option: value}

_NAME = re.compile(r"[A-Za-z0-9][\w.+-]{0,63}", re.ASCII)  # of a stage, which becomes a folder
_UNSAFE = re.compile(r"[^\w.+=,%-]+")  # what a folder's name must not have
_LONGEST_NAME = 120  # characters; file systems allow 255 bytes


@dataclass(frozen=True)
class Axis:
    """What a study varies: a name, and what each of its levels overrides."""

    name: str
    levels: Mapping[str, Overrides]


@dataclass(frozen=True)
class Point:
    """One combination of levels, and the options that they override."""

    levels: Levels = field(default_factory=dict)
    overrides: Overrides = field(default_factory=dict)


Points = tuple[Point, ...]


@dataclass(frozen=True)
class Stage:
    """Runs of one kind: a base experiment (FILE[:ARGUMENT]) with the overrides of each point.

    A stage `after` another has a run for each of its points × each run of the other stage; it starts from that run's
    checkpoint, and inherits its levels and its seed (unless it overrides `seed` itself).
    """

    name: str
    base: str
    points: Points = (Point(),)
    after: str = ""
    overrides: Overrides = field(default_factory=dict)  # of all its runs; a point's own come after them


@dataclass(frozen=True)
class Published:
    """A table of the source, to stand beside the study's own."""

    title: str
    source: str
    columns: Sequence[str]
    rows: Mapping[str, Sequence[float | None]]

    def check(self) -> None:
        """Raises UserError for a row that has not a number, or None, for each column."""
        for name, row in self.rows.items():
            is_row = isinstance(row, Sequence) and len(row) == len(self.columns)
            if not is_row or not all(x is None or isinstance(x, (int, float)) for x in row):
                wanted = f"a number, or None, for each of {', '.join(self.columns)}"
                raise UserError(f"published: the row of {name} is {row!r}; it must have {wanted}")


@dataclass(frozen=True)
class Study:
    """A question and what answers it.

    `factor` is the axis whose levels are compared with `baseline`, by the metric of each stage (SPLIT.METRIC, where the
    split is eval, last or test as in `run.Result`; several are comma-separated). `expected` are the orderings that the
    source reports: (better level, worse level, stage), or in place of the stage one of its columns.
    """

    question: str
    stages: tuple[Stage, ...]
    factor: str = ""
    baseline: str = ""
    metrics: Mapping[str, str] = field(default_factory=dict)
    published: Published | None = None
    expected: Sequence[tuple[str, str, str]] = ()
    search: Search | None = None

    def columns(self, stage: str) -> dict[str, str]:
        """Returns the columns of a stage in the study's table, each with its metric: named as the stage, or after the
        metrics where it has several ("dapt general/mlm_loss"; "dapt eval.loss" if two differ by the split alone)."""
        metrics = named_metrics(self.metrics.get(stage, ""))
        if len(metrics) == 1:
            return {stage: metrics[0]}
        short = {metric: metric.partition(".")[2] for metric in metrics}
        counts = Counter(short.values())
        return {f"{stage} {name if counts[name] == 1 else metric}": metric for metric, name in short.items()}


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study. `after` is the key of the run that it starts from, or ""."""

    stage: str
    name: str
    levels: Levels
    overrides: Overrides
    after: str = ""

    @property
    def key(self) -> str:
        """Its folder in the study's workdir: stage/name."""
        return f"{self.stage}/{self.name}"


def choice(name: str, levels: Mapping[str, Overrides]) -> Axis:
    """Returns an axis whose levels have labels and override any options: {"MLM": {"data.pairing": "none"}, …}."""
    return Axis(name, dict(levels))


def values(option: str, values: Iterable[Value], name: str = "") -> Axis:
    """Returns an axis of values of one option; they are the labels. `name` is the axis's name, by default the
    option's."""
    labelled = [(label(value), value) for value in values]
    for text, count in Counter(text for text, _ in labelled).items():
        if count > 1:
            raise UserError(f"values of {option} contain {text} {count} times; each run would be made twice")
    return Axis(name or option, {text: {option: value} for text, value in labelled})


def seeds(count: int, first: int = 0) -> Axis:
    """Returns the axis "seed" of `count` seeds from `first` on."""
    return values("seed", range(first, first + count))


def grid(*axes: Axis | Points) -> Points:
    """Returns every combination of levels; without axes the one point that overrides nothing. A part may also be the
    points that `listed`, `zipped` or `sampled` returns."""
    return tuple(_joined(parts) for parts in itertools.product(*map(_points, axes)))


def zipped(*axes: Axis | Points) -> Points:
    """Returns the first levels of all axes together, then the second ones, and so on. Raises UserError if their numbers
    differ."""
    parts = [_points(axis) for axis in axes]
    if len({len(points) for points in parts}) > 1:
        raise UserError(
            f"zipped() has axes of {', '.join(str(len(points)) for points in parts)} levels; give all alike"
        )
    return tuple(_joined(combination) for combination in zip(*parts, strict=True))


def listed(variants: Mapping[str, Overrides], name: str = "variant") -> Points:
    """Returns one point per variant."""
    return _points(Axis(name, dict(variants)))


def sampled(count: int, seed: int, space: Mapping[str, Distribution]) -> Points:
    """Returns `count` points drawn at random, the same ones for the same seed: one more leaves the others as they
    are."""
    random, points = Random(seed), []
    for _ in range(count):
        drawn = {option: distribution.draw(random) for option, distribution in space.items()}
        points.append(Point({option: label(value) for option, value in drawn.items()}, drawn))
        if points[-1] in points[:-1]:
            alike = ", ".join(f"{option}={text}" for option, text in points[-1].levels.items())
            raise UserError(f"two of {count} sampled points are alike ({alike}): draw fewer, or take a grid")
    return tuple(points)


def plan(study: Study) -> list[PlannedRun]:
    """Returns all runs, stage by stage; of a search none, since it makes them up as it goes. Raises UserError for a
    study that cannot be made."""
    runs: dict[str, list[PlannedRun]] = {}
    for stage in _in_order(study.stages):
        if not stage.points:
            raise UserError(f"stage {stage.name} has no points: an axis or a list in it is empty")
        before = runs[stage.after] if stage.after else [None]
        runs[stage.name] = [_planned(stage, point, parent) for parent in before for point in stage.points]
        names = Counter(run.name for run in runs[stage.name])
        if twice := [name for name, count in names.items() if count > 1]:
            levels = next(dict(run.levels) for run in runs[stage.name] if run.name == twice[0])
            raise UserError(
                f"stage {stage.name} has two runs of the name {twice[0]} ({levels}); give levels other labels"
            )
    _check_comparison(study, [run for stage in runs.values() for run in stage])
    if study.published is not None:
        study.published.check()
    if study.search is not None:
        stage, *others = study.stages
        if others or stage.points != (Point(),):
            raise UserError("a study with a search has one stage, without points: its trials are the points")
        study.search.check()
        return []
    return [run for stage in study.stages for run in runs[stage.name]]


def probes(search: Search, stage: Stage) -> list[PlannedRun]:
    """Returns runs at the ends of a search's space, whose checks stand for those of its trials."""
    ends = [{**stage.overrides, **overrides} for overrides in search.ends()]
    return [PlannedRun(stage.name, f"end={number}", {}, overrides) for number, overrides in enumerate(ends)]


def run_name(levels: Levels) -> str:
    """Returns the name of a run: what differs, as a folder's name."""
    parts = (f"{axis.rpartition('.')[2] if axis.count('.') == 1 else axis}={text}" for axis, text in levels.items())
    name = _UNSAFE.sub("_", ",".join(parts)) or "run"
    if len(name.encode()) > _LONGEST_NAME:
        digest = hashlib.blake2b(name.encode(), digest_size=4).hexdigest()
        name = f"{name.encode()[: _LONGEST_NAME - 9].decode(errors='ignore')}-{digest}"
    return name


def _points(part: Axis | Points) -> Points:
    if not isinstance(part, Axis):
        return part
    if not part.levels:
        raise UserError(f"axis {part.name} has no levels; give at least one")
    for text, overrides in part.levels.items():
        if not isinstance(text, str) or not isinstance(overrides, Mapping):
            raise UserError(
                f"axis {part.name}: levels must be {{label: {{option: value}}}}, not {text!r}: {overrides!r}"
            )
    return tuple(Point({part.name: text}, dict(overrides)) for text, overrides in part.levels.items())


def _joined(parts: Sequence[Point]) -> Point:
    levels: dict[str, str] = {}
    overrides: dict[str, Value] = {}
    for part in parts:
        if twice := next((name for name in part.levels if name in levels), None):
            raise UserError(f"two axes have the name {twice}; give one of them another name")
        if twice := next((name for name in part.overrides if name in overrides), None):
            raise UserError(f"two axes set {twice} ({', '.join([*levels, *part.levels])}); let only one of them do so")
        levels |= part.levels
        overrides |= part.overrides
    return Point(levels, overrides)


def _in_order(stages: Sequence[Stage]) -> list[Stage]:
    """Returns the stages, each behind the one that it comes after."""
    if not stages:
        raise UserError("the study has no stages; give at least one")
    names = [stage.name for stage in stages]
    for stage in stages:
        if not _NAME.fullmatch(stage.name):
            raise UserError(
                f"stage {stage.name!r}: the name becomes a folder; use up to 64 letters, digits and . _ + -"
            )
        if names.count(stage.name) > 1:
            raise UserError(f"two stages have the name {stage.name}; give one of them another name")
        if stage.after and stage.after not in names:
            raise UserError(f"stage {stage.name} is after {stage.after!r}; {can_be(stage.after, names)}")
        for point in stage.points:
            if "init_from" in {**stage.overrides, **point.overrides} and stage.after:
                raise UserError(f"stage {stage.name} sets init_from, which after={stage.after!r} sets; leave one out")
    ordered: list[Stage] = []
    while len(ordered) < len(stages):
        done = {"", *(stage.name for stage in ordered)}
        ready = [stage for stage in stages if stage.after in done and stage.name not in done]
        if not ready:
            circle = [stage.name for stage in stages if stage.name not in done]
            raise UserError(f"stages {', '.join(circle)} come after each other in a circle; one must be first")
        ordered += ready
    return ordered


def _planned(stage: Stage, point: Point, parent: PlannedRun | None) -> PlannedRun:
    own = {**stage.overrides, **point.overrides}
    if parent is None:
        return PlannedRun(stage.name, run_name(point.levels), dict(point.levels), own)
    inherited = {
        name if name not in point.levels else f"{parent.stage}.{name}": text for name, text in parent.levels.items()
    }
    levels = inherited | dict(point.levels)
    seed = {"seed": parent.overrides["seed"]} if "seed" in parent.overrides else {}
    return PlannedRun(stage.name, run_name(levels), levels, seed | own, parent.key)


def _check_comparison(study: Study, runs: Sequence[PlannedRun]) -> None:
    stages = [stage.name for stage in study.stages]
    for stage, metric in study.metrics.items():
        if stage not in stages:
            raise UserError(f"metrics name the stage {stage!r}; {can_be(stage, stages)}")
        for one in named_metrics(metric) or [metric]:
            check_metric(one, f"the metric of stage {stage}")
    axes = {axis for run in runs for axis in run.levels}
    if study.factor and study.factor not in axes and study.search is None:
        raise UserError(f"factor is {study.factor!r}, which is no axis; {can_be(study.factor, sorted(axes))}")
    found = {run.levels[study.factor] for run in runs if study.factor in run.levels}
    levels = {"baseline": study.baseline} if study.baseline else {}
    levels |= {f"expected ({better}, {worse}, {stage})": better for better, worse, stage in study.expected}
    levels |= {f"expected ({better}, {worse}, {stage}) ": worse for better, worse, stage in study.expected}
    for where, text in levels.items():
        if text not in found:
            raise UserError(f"{where.strip()}: {text!r} is no level of {study.factor!r}; {can_be(text, sorted(found))}")
    columns = dict.fromkeys([*stages, *(column for stage in stages for column in study.columns(stage))])
    for *_, column in study.expected:
        if column not in columns:
            raise UserError(f"expected names the stage {column!r}; {can_be(column, list(columns))}")
