"""What a sweep would do: its runs, what they need, how long they may take, and which differences they can show."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bert_jax.command import say
from bert_jax.lab.records import COMPLETE, RunRecord, StudyRecord, read_run
from bert_jax.lab.space import Search, label
from bert_jax.lab.statistics.levels import compare_levels
from bert_jax.lab.statistics.power import detectable_difference
from bert_jax.lab.study import PlannedRun, Stage, Study

if TYPE_CHECKING:
    from bert_jax.lab.sweep.estimate import Estimate, Examined

_START = 10.0  # seconds of a run for reading its data, compiling and evaluating


def describe(study: Study, planned: Sequence[PlannedRun], workdir: Path, examined: "Examined", jobs: int) -> None:
    """Prints the plan of a study."""
    say(study.question)
    if study.search is not None:
        _describe_search(
            study.search, study.stages[0], [examined.estimates[one.key] for one in planned], examined, jobs
        )
        return
    done = {one.key: read_run(workdir, one) for one in planned}
    complete = sum(record.status == COMPLETE for record in done.values())
    stages = len({one.stage for one in planned})
    say(f"{len(planned)} runs in {stages} stages, {complete} of them complete; workdir {workdir}")
    hours = 0.0
    for stage in study.stages:
        own = [one for one in planned if one.stage == stage.name]
        if not own:  # --only leaves the stage out
            continue
        after = f", after {stage.after}" if stage.after else ""
        say(f"\n{stage.name}: {len(own)} runs of {stage.base}{after}")
        shown = ", ".join(f"{key}={label(value)}" for key, value in stage.overrides.items())
        if shown:
            say(f"  all: {shown}")
        for point in stage.points:
            levels = ", ".join(f"{axis}={text}" for axis, text in point.levels.items()) or "one point"
            overrides = ", ".join(f"{key}={label(value)}" for key, value in point.overrides.items())
            say(f"  {levels}: {overrides or 'as the base'}" + (f" × each run of {stage.after}" if stage.after else ""))
        seconds = [done[one.key].seconds for one in own if done[one.key].status == COMPLETE]
        left = len(own) - len(seconds)
        each, how = _seconds(seconds, [examined.estimates[one.key] for one in own], examined.basis, jobs)
        say(f"  {_needs([examined.estimates[one.key] for one in own])}")
        if each is None:
            say("  time: unknown (its steps follow from data that is not read yet)")
            continue
        total = each * left / 3600 / jobs
        say(f"  time: {each:.0f} s per run ({how}), {total:.2f} h for the {left} left, {jobs} at a time")
        hours += total
    say(f"\nin all about {hours:.2f} h, as far as it is known")
    if examined.problem:
        say(f"cannot start: {examined.problem}")
    for line in _power(study, planned):
        say(line)


def _describe_search(
    search: Search, stage: Stage, estimates: Sequence["Estimate | None"], examined: "Examined", jobs: int
) -> None:
    how = f"sampler {search.sampler}, pruner {search.pruner}, seed {search.seed}"
    say(f"{search.trials} trials of {stage.base} for the {search.direction}imum of {search.metric} ({how})")
    for name, one in search.space.items():
        scale = ", by its logarithm" if one.log else ""
        values = (
            f"{label(one.low)} to {label(one.high)}{scale}" if not one.choices else " or ".join(map(label, one.choices))
        )
        say(f"  {name}: {values}")
    say(f"  {_needs(estimates)}")
    each, how = _seconds([], estimates, examined.basis, jobs)
    if each is not None:
        say(f"  time: {each:.0f} s per trial ({how}), at most {each * search.trials / 3600 / jobs:.2f} h")
    if examined.problem:
        say(f"cannot start: {examined.problem}")


def _needs(estimates: Sequence["Estimate | None"]) -> str:
    """Returns a line about what the runs of a stage need; ranges where they differ."""
    known = [estimate for estimate in estimates if estimate is not None]
    if not known:
        return "needs: unknown (the task is not one of bert_jax's)"
    parts = [
        f"{_range([one.parameters / 1e6 for one in known])} M parameters",
        f"{_range([one.memory / 1e9 for one in known])} GB of memory (estimated from parameters and batch)",
        f"{_range([one.disk / 1e9 for one in known])} GB on disk",
    ]
    if all(one.steps is not None and one.tokens is not None and one.flops is not None for one in known):
        parts += [
            f"{_range([one.steps or 0 for one in known])} steps",
            f"at most {_range([(one.tokens or 0) / 1e6 for one in known])} M tokens",
            f"{_range([(one.flops or 0) / 1e12 for one in known])} TFLOP",
        ]
    return "each: " + ", ".join(parts)


def _range(numbers: Sequence[float]) -> str:
    low, high = f"{min(numbers):.3g}", f"{max(numbers):.3g}"
    return low if low == high else f"{low} to {high}"


def _seconds(
    measured: Sequence[float], estimates: Sequence["Estimate | None"], basis: str, jobs: int
) -> tuple[float | None, str]:
    """Returns the time of a run and where it comes from: complete runs of the stage, or else its FLOPs."""
    if measured:
        return statistics.median(measured), f"median of {len(measured)} complete"
    by_flops = [estimate.seconds for estimate in estimates if estimate is not None and estimate.seconds is not None]
    if len(by_flops) < len(estimates):
        return None, ""
    mean = statistics.fmean(by_flops) * jobs + _START
    return mean, f"{_START:.0f} s + FLOPs at {basis}, shared by {jobs}; rough"


def _power(study: Study, planned: Sequence[PlannedRun]) -> list[str]:
    """Returns what can be told if every run succeeds: one line for the stages that are alike."""
    stages: dict[tuple[int, int, bool, str], list[str]] = {}
    for one in compare_levels(_as_if_complete(study, planned)):
        differences = [level.difference for level in one.levels if level.difference]
        if differences:
            least = min(min(found.n, found.n_baseline) for found in differences)
            is_paired = any(found.test != "Welch" for found in differences)
            names = stages.setdefault((least, len(differences), is_paired, one.unit), [])
            names += [one.stage] if one.stage not in names else []
    lines = []
    for (least, comparisons, is_paired, unit), names in stages.items():
        if least < 2:
            found = f"one {unit} per level cannot show a difference; add seeds to it, e.g. grid(…, seeds(5))"
        else:
            size = detectable_difference(least, comparisons=comparisons, paired=is_paired)
            spread = "of the differences between pairs" if is_paired else "between seeds"
            found = (
                f"{least} {unit.replace('run', 'runs', 1)} per level show a difference of {size:.2g} standard "
                f"deviations {spread} with a power of 80 % ({comparisons} comparison{'s' if comparisons > 1 else ''}, "
                "α = 0.05 by Holm)"
            )
        lines.append(f"{', '.join(names)}: {found}")
    return lines


def _as_if_complete(study: Study, planned: Sequence[PlannedRun]) -> StudyRecord:
    """Returns the record that the study has once every run has a result."""
    runs = []
    for one in planned:
        result: dict[str, dict[str, float]] = {}
        for metric in study.columns(one.stage).values():
            split, _, name = metric.partition(".")
            result.setdefault(split, {})[name] = 0.0
        place = one.stage, one.name, dict(one.levels), dict(one.overrides), Path(one.key)
        runs.append(RunRecord(*place, COMPLETE, result=result, after=one.after))
    return StudyRecord(Path(), "", "", study, runs)
