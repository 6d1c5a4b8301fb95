"""What is on disk of a study, and reading it: `study.json` in its workdir, `sweep.json` in the folder of each run.

    <workdir>/study.json                  the study, resolved: the question, the stages, every run
    <workdir>/<stage>/<run>/              the workdir of a run, as any other
    <workdir>/<stage>/<run>/sweep.json    how the run fared: status, error, attempts, time, result

`read_study` is for reports: it changes nothing, and believes nothing that it reads to be more than data.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bert_jax.config import Json, UserError
from bert_jax.files import is_locked, write_atomically
from bert_jax.lab.space import Distribution, Search
from bert_jax.lab.study import PlannedRun, Point, Published, Stage, Study
from bert_jax.option import Value

STUDY, RECORD = "study.json", "sweep.json"

COMPLETE, RUNNING, UNFINISHED, FAILED, WAITING, STALE = (
    *("complete", "running", "unfinished", "failed", "waiting", "stale"),
)
PRUNED = "pruned"  # a trial of a search that was given up
STATUSES = {
    COMPLETE: "has a result",
    RUNNING: "a process works on it now",
    UNFINISHED: "was interrupted; the next start of the sweep continues it",
    FAILED: "ended with an error; --rerun=failed makes it again",
    WAITING: "has not started",
    STALE: "is in the workdir, but the study no longer names it",
    PRUNED: "a trial that the search gave up",
}
_FOLDER = re.compile(r"(?!\.)[^/\\\0]{1,255}")  # a name that stays inside its folder


@dataclass(frozen=True)
class RunRecord:
    """One run of a study, as it is on disk."""

    stage: str
    name: str
    levels: dict[str, str]
    overrides: dict[str, Value]
    folder: Path
    status: str = WAITING  # of STATUSES
    error: str = ""  # why it failed, or what it waits for
    seconds: float = 0.0  # of all attempts
    result: dict[str, dict[str, float]] = field(default_factory=dict)  # {"eval" | "last" | "test": {metric: value}}
    attempts: int = 0
    after: str = ""  # key of the run that it starts from
    started: str = ""  # of the last attempt
    host: str = ""
    devices: str = ""  # number and kind
    environment: Json = field(default_factory=dict)  # versions, commit, hash of what is not committed

    @property
    def key(self) -> str:
        """Its folder in the study's workdir: stage/name."""
        return f"{self.stage}/{self.name}"

    def metric(self, name: str) -> float | None:
        """Returns the value of SPLIT.METRIC; None unless the run is complete and has it."""
        split, _, metric = name.partition(".")
        return self.result.get(split, {}).get(metric) if self.status == COMPLETE else None


@dataclass(frozen=True)
class StudyRecord:
    """A study as it is on disk. Runs are in the study's order, stale ones last."""

    workdir: Path
    name: str
    file: str  # FILE[:ARGUMENT]
    study: Study
    runs: list[RunRecord]

    def of(self, stage: str) -> list[RunRecord]:
        """Returns the runs of a stage that the study names."""
        return [run for run in self.runs if run.stage == stage and run.status != STALE]


def read_study(workdir: Path) -> StudyRecord:
    """Returns the study of a workdir. Raises UserError if it holds none, or one that is damaged."""
    workdir = Path(workdir)
    content = _read_json(workdir / STUDY)
    if content is None:
        raise UserError(f"{workdir} is not the workdir of a study: there is no {STUDY}; give the --workdir of a sweep")
    try:
        study = _study_from_json(content)
        planned = [_planned_from_json(run) for run in content["runs"]]
        _check_chains(planned)
        name, file = str(content["name"]), str(content["file"])
    except (KeyError, TypeError, ValueError, AttributeError, UserError) as problem:
        what = f"{type(problem).__name__}: {problem}"
        raise UserError(f"{workdir / STUDY} is damaged ({what}); start the sweep again, which replaces it") from None
    is_swept = is_locked(workdir)
    runs = [_read_run(workdir, run, is_swept) for run in planned]
    statuses = {run.key: run.status for run in runs}
    runs = [_waiting_explained(run, statuses) for run in runs]
    return StudyRecord(workdir, name, file, study, runs + list(_stale_runs(workdir, statuses)))


def write_study(workdir: Path, name: str, file: str, study: Study, runs: Sequence[PlannedRun]) -> None:
    """Writes `study.json`."""
    content = {"name": name, "file": file} | asdict(study)
    content["runs"] = [asdict(run) for run in runs]
    write_atomically(workdir / STUDY, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_record(record: RunRecord) -> None:
    """Writes the `sweep.json` of a run."""
    content = {key: value for key, value in asdict(record).items() if key != "folder"}
    record.folder.mkdir(parents=True, exist_ok=True)
    write_atomically(record.folder / RECORD, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_run(workdir: Path, planned: PlannedRun) -> RunRecord:
    """Returns the record of one run; its status is RUNNING only while a process trains in its folder."""
    return _read_run(workdir, planned, is_swept=False)


def newest_step(folder: Path) -> int:
    """Returns the step of the newest checkpoint in the folder of a run, by its name; 0 if there is none."""
    names = (path.name for path in (folder / "checkpoints").glob("[0-9]*"))
    return max((int(name) for name in names if name.isdecimal()), default=0)


def _read_run(workdir: Path, planned: PlannedRun, is_swept: bool) -> RunRecord:
    folder = workdir / planned.stage / planned.name
    fresh = RunRecord(
        planned.stage, planned.name, dict(planned.levels), dict(planned.overrides), folder, after=planned.after
    )
    content = _read_json(folder / RECORD)
    if content is None:
        has_begun = (folder / "checkpoints").is_dir()
        return replace(fresh, status=UNFINISHED) if has_begun else fresh
    record = _with_fate(fresh, content)
    if record.status == RUNNING and not (is_swept or is_locked(folder)):
        return replace(record, status=UNFINISHED)
    if record.status == COMPLETE and not record.result:
        return replace(record, status=UNFINISHED)
    return record


def _with_fate(record: RunRecord, content: Mapping[str, object]) -> RunRecord:
    """Returns the record with what a sweep.json says, as far as that makes sense."""
    status = content.get("status")
    found: Json = {"status": status if status in STATUSES and status != STALE else UNFINISHED}
    kinds = {"error": str, "seconds": (int, float), "attempts": int, "started": str, "host": str, "devices": str}
    found |= {name: content[name] for name, kind in kinds.items() if isinstance(content.get(name), kind)}
    if isinstance(environment := content.get("environment"), dict):
        found["environment"] = environment
    result = content.get("result")
    found["result"] = {
        split: {name: float(value) for name, value in metrics.items() if isinstance(value, (int, float))}
        for split, metrics in (result if isinstance(result, dict) else {}).items()
        if isinstance(metrics, dict)
    }
    return replace(record, **found)


def _waiting_explained(run: RunRecord, statuses: Mapping[str, str]) -> RunRecord:
    before = statuses.get(run.after)
    if run.status != WAITING or before in (None, COMPLETE):
        return run
    reason = ", which failed" if before == FAILED else ""
    return replace(run, error=f"waits for {run.after}{reason}")


def _stale_runs(workdir: Path, named: Mapping[str, str]) -> Iterator[RunRecord]:
    """Yields the runs of which there is a folder, but which the study does not name."""
    for file in sorted(workdir.glob(f"*/*/{RECORD}")):
        folder = file.parent
        is_hidden = folder.name.startswith(".")  # a run that was made again
        if f"{folder.parent.name}/{folder.name}" in named or is_hidden or file.is_symlink():
            continue
        content = _read_json(file) or {}
        levels, overrides = (
            {} if not isinstance(x := content.get(key), dict) else x for key in ("levels", "overrides")
        )
        fresh = RunRecord(folder.parent.name, folder.name, {k: str(v) for k, v in levels.items()}, overrides, folder)
        yield replace(_with_fate(fresh, content), status=STALE)


def _read_json(file: Path) -> Json | None:
    """Returns the object in a file; None if there is no such file. Raises UserError if there is something else."""
    try:
        if not file.is_file():  # reading a FIFO or a device may never end
            return None
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        content = None
    except OSError as problem:
        raise UserError(f"{file} cannot be read ({problem.strerror}); restore its permissions") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} is not a JSON object; restore it, or delete it and start the sweep again")
    return content


def _study_from_json(content: Mapping[str, Any]) -> Study:
    stages = tuple(
        Stage(
            _folder_name(stage["name"]),
            str(stage["base"]),
            tuple(Point(dict(point["levels"]), dict(point["overrides"])) for point in stage["points"]),
            str(stage["after"]),
            dict(stage.get("overrides", {})),
        )
        for stage in content["stages"]
    )
    published, search = content.get("published"), content.get("search")
    if published is not None:
        published = Published(**published)
        published.check()
    if search is not None:
        space = {name: Distribution(**one) for name, one in search["space"].items()}
        search = Search(**search | {"space": space})
    return Study(
        str(content["question"]),
        stages,
        str(content["factor"]),
        str(content["baseline"]),
        {str(stage): str(metric) for stage, metric in content["metrics"].items()},
        published,
        [(str(better), str(worse), str(stage)) for better, worse, stage in content["expected"]],
        search,
    )


def _planned_from_json(run: Mapping[str, Any]) -> PlannedRun:
    levels = {str(axis): str(text) for axis, text in run["levels"].items()}
    stage, name = _folder_name(run["stage"]), _folder_name(run["name"])
    return PlannedRun(stage, name, levels, dict(run["overrides"]), str(run["after"]))


def _check_chains(planned: Sequence[PlannedRun]) -> None:
    """Raises ValueError for a run that leads back to itself, which would be followed for ever."""
    after = {one.key: one.after for one in planned}
    for key in after:
        seen = set()
        while key in after and key not in seen:
            seen.add(key)
            key = after[key]
        if key in seen:
            raise ValueError(f"{key} starts from itself")


def _folder_name(name: object) -> str:
    """Returns a name of a folder. Raises ValueError for one that would leave the workdir."""
    if not isinstance(name, str) or not _FOLDER.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of a folder")
    return name
