"""A study: all its runs, on this machine or by Slurm, as often as it takes.

    python -m bert_jax.lab.sweep --study=experiments/studies/objectives.py --workdir=runs/objectives --dry_run
    python -m bert_jax.lab.sweep --study=experiments/studies/objectives.py --workdir=runs/objectives --jobs=2

The same command continues a study that was interrupted: complete runs are not made again, interrupted ones continue
from their checkpoints. The exit status is 0 when all runs are complete, 2 for a mistake that you can correct or if a
run has failed, and 128 + n when signal n stopped the sweep, which the same command continues. See docs/sweeps.md.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bert_jax.command import Parser, run_command, say
from bert_jax.config import Json, UserError
from bert_jax.experiment import load_from_file, split_argument
from bert_jax.files import only_writer
from bert_jax.heap import restart_with_kept_heap
from bert_jax.lab.records import COMPLETE, FAILED, RunRecord, read_run, write_study
from bert_jax.lab.study import PlannedRun, Study, plan, probes
from bert_jax.lab.sweep import planning
from bert_jax.lab.sweep.progress import Progress, say_summary
from bert_jax.lab.sweep.runners import Local, Runner, in_fork, shares, visible_gpus
from bert_jax.lab.sweep.schedule import Schedule
from bert_jax.lab.sweep.slurm import Slurm

if TYPE_CHECKING:
    from bert_jax.lab.sweep.search import OptunaTrials


def main(argv: list[str]) -> int:
    """Makes the runs of a study."""
    parser = Parser("bert_jax.lab.sweep", __doc__ or "")
    flag = parser.flag
    flag("study", "", "file with get_study(), e.g. experiments/studies/objectives.py", metavar="FILE[:ARGUMENT]")
    flag("workdir", "", "folder of the study [runs/<name of the file>]", metavar="DIR")
    flag("dry_run", False, "show the runs, what they need and what they can show; start none")
    flag("jobs", 1, "runs at a time on this machine; they share its cores", least=1)
    flag("gpus", False, "give each run a GPU of its own, or a share of one if --jobs is higher than their number")
    flag("slurm", "", "submit job arrays, e.g. partition=gpu,time=60,gres=gpu:1", metavar="NAME=VALUE,…")
    flag("only", "", "make only the runs of this name, and those that they start from", metavar="PATTERN")
    flag("rerun", "", "make these runs again: failed, or the name of runs, such as sst2/*seed=3*", metavar="PATTERN")
    flag("debug", False, "show the traceback of an error")
    flags, rest = parser.parse(argv)
    for word in rest:
        parser.refuse(word)
    if not flags["study"]:
        raise UserError("--study is missing, e.g. --study=experiments/studies/objectives.py")
    name = split_argument(flags["study"])[0].stem
    workdir = Path(flags["workdir"] or Path("runs") / name).absolute()
    study = load_study(flags["study"])
    return sweep(study, name, flags["study"], workdir, **{key: flags[key] for key in _OPTIONS})


_OPTIONS = ("dry_run", "jobs", "gpus", "slurm", "only", "rerun")


def load_study(text: str) -> Study:
    """Returns the study of FILE[:ARGUMENT]. Raises UserError, which begins with the file, for whatever is wrong in
    it."""

    def check(study: Study) -> Study:
        plan(study)  # raises for what cannot be made
        return study

    return load_from_file(text, "study", Study, check)


def sweep(
    study: Study,
    name: str,
    file: str,
    workdir: Path,
    *,
    dry_run: bool = False,
    jobs: int = 1,
    gpus: bool = False,
    slurm: str = "",
    only: str = "",
    rerun: str = "",
) -> int:
    """Makes the runs of a study, or with `dry_run` says what they need. Returns the exit status."""
    if study.search is not None and (only or rerun not in ("", FAILED)):
        raise UserError("--only and --rerun are for runs that a study names; of a search only --rerun=failed")
    planned = plan(study) if study.search is None else probes(study.search, study.stages[0])
    configs = planning.resolve(study, planned, workdir, file)
    before = planning.read_before(workdir, name)
    planning.check_search(before, study.search)
    devices = visible_gpus() if gpus else []
    jobs = 1 if slurm else max(jobs, len(devices))
    wanted = planning.with_parents(planned, planning.matching(planned, only, "--only")) if only else None
    with contextlib.nullcontext() if dry_run else _alone_in(workdir):
        again = planning.to_make_again(planned, workdir, rerun)  # of a search none yet
        changed = planning.changed_keys(workdir, planned, configs)
        _refuse_changes(changed, again)
        requests = _requests(study, planned, configs, workdir, again)
        environment = shares(jobs, devices)[0][1]
        examined = in_fork(_examine, workdir, requests, jobs, dry_run, environment=environment)
        if dry_run:
            from bert_jax.lab.sweep.dry_run import describe

            describe(study, [one for one in planned if wanted is None or one.key in wanted], workdir, examined, jobs)
            return 0
        if examined.problem:
            raise UserError(examined.problem)
        writer = _Writer(study, name, file, workdir, jobs)
        trials = None if study.search is None else _trials(study, name, workdir, writer)
        if trials is None:
            planning.tell_changes(planned, before)
            for one in planned:
                if one.key in again:
                    planning.reset(workdir, one, from_scratch=rerun != FAILED or one.key in changed)
        else:
            planned = trials.planned()
            for one in planned:
                if rerun and read_run(workdir, one).status == FAILED:
                    planning.reset(workdir, one, from_scratch=False)
            configs = planning.resolve(study, planned, workdir, file)
        writer.write(planned, configs)
        runner = _runner(workdir, planned, slurm, jobs, devices, is_search=trials is not None)
        schedule = Schedule(workdir, planned, runner, Progress(study, jobs), wanted, trials)
        try:
            stopped_by = schedule.run()
        finally:
            schedule.progress.close()
    if trials is not None:
        say(trials.best())
        trials.close()
    return _finish(workdir, list(schedule.records.values()), stopped_by)


def _trials(study: Study, name: str, workdir: Path, writer: "_Writer") -> "OptunaTrials":
    from bert_jax.lab.sweep.search import OptunaTrials  # an extra

    return OptunaTrials(study, name, workdir, writer.admit)


def _runner(
    workdir: Path, planned: Sequence[PlannedRun], slurm: str, jobs: int, devices: Sequence[str], *, is_search: bool
) -> Runner:
    if not slurm:
        return Local(workdir, jobs, devices)
    runner = Slurm(workdir, slurm, is_search=is_search)
    runner.adopt(planned)
    return runner


class _Writer:
    """Writes the study, and what the processes of its runs read."""

    def __init__(self, study: Study, name: str, file: str, workdir: Path, jobs: int):
        self.study, self.name, self.file, self.workdir = study, name, file, workdir
        self.workers = max(1, len(shares(jobs)[0][0])) if jobs > 1 else None  # not by the cores of the whole machine
        self.planned: list[PlannedRun] = []

    def write(self, planned: Sequence[PlannedRun], configs: planning.Configs) -> None:
        """Writes the study of these runs, and the requests of those that are not complete."""
        self.planned = list(planned)
        write_study(self.workdir, self.name, self.file, self.study, self.planned)
        for one in planned:
            config = configs[one.key]
            if self.workers is not None and config.data.workers is None:
                config.data.workers = self.workers
            if read_run(self.workdir, one).status != COMPLETE:
                planning.write_request(self.workdir, one, config, self._metric(one.stage))

    def admit(self, one: PlannedRun) -> None:
        """Adds a run to the study."""
        if one.key not in {other.key for other in self.planned}:
            planned = [*self.planned, one]
            self.write(planned, planning.resolve(self.study, planned, self.workdir, self.file))

    def _metric(self, stage: str) -> str:
        return self.study.metrics.get(stage, "" if self.study.search is None else self.study.search.metric)


@contextlib.contextmanager
def _alone_in(workdir: Path) -> Iterator[None]:
    """Holds the lock of the study's workdir. Raises UserError that says who holds it."""
    with contextlib.ExitStack() as held:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            held.enter_context(only_writer(workdir))
        except BlockingIOError as problem:
            raise UserError(f"{workdir} is {problem.strerror}; wait for its end, or stop it") from None
        except OSError as problem:
            raise UserError(f"{workdir} cannot be written to ({problem.strerror}); choose another --workdir") from None
        yield


def _refuse_changes(changed: Mapping[str, str], again: frozenset[str]) -> None:
    """Raises UserError for runs that were made under another config and keep their name."""
    for key, differing in changed.items():
        if key not in again:
            raise UserError(
                f"{key} was made with another config ({differing}); restore it, give its level another label, "
                f"or make the run again with --rerun='{key}'"
            )


def _requests(
    study: Study, planned: Sequence[PlannedRun], configs: planning.Configs, workdir: Path, again: frozenset[str]
) -> list[tuple[PlannedRun, Json, str, bool]]:
    """Returns for each run what has to be examined: config, metric, and whether it is done."""
    return [
        (
            one,
            configs[one.key].to_dict(),
            study.metrics.get(one.stage, ""),
            one.key not in again and read_run(workdir, one).status == COMPLETE,
        )
        for one in planned
    ]


def _examine(workdir: Path, requests: Sequence[Any], jobs: int, timed: bool) -> Any:
    from bert_jax.lab.sweep.estimate import Request, examine  # jax, in a process of its own

    return examine(workdir, [Request(*request) for request in requests], jobs, timed)


def _finish(workdir: Path, records: Sequence[RunRecord], stopped_by: int | None) -> int:
    """Prints the end of the sweep and returns its exit status. Raises UserError if a run has failed."""
    say_summary(workdir, records)
    if stopped_by is not None:
        logging.warning("stopped; the same command continues")
        return 128 + stopped_by
    failed = [record for record in records if record.status == FAILED]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(records)} runs failed, the first is {failed[0].key}: {failed[0].error}; "
            "remove the cause and add --rerun=failed"
        )
    return 0


def run() -> None:
    restart_with_kept_heap()  # the processes of the runs inherit it
    run_command(main)
