"""Runs of a study as Slurm jobs: an array per stage, by submitit (extra `lab`)."""

import contextlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bert_jax.config import UserError
from bert_jax.extras import install
from bert_jax.files import write_atomically
from bert_jax.lab.study import PlannedRun

JOBS = "jobs.json"  # in <workdir>/slurm: the job of each run, for a sweep that is started again while jobs wait or run
_POLL = 0.5  # seconds between two looks at the jobs; submitit asks Slurm at most once a minute
# Names that submitit has of its own; all others go to sbatch as they are.
_OWN = {"time": "slurm_time", "partition": "slurm_partition", "parallel": "slurm_array_parallelism"}


class Slurm:
    """Submits the runs of a stage as one array when the stage before has ended."""

    starts_stages = True

    def __init__(self, workdir: Path, text: str, *, is_search: bool = False):
        """`text` is --slurm: NAME=VALUE of sbatch, comma-separated; `parallel` is the number of runs of an array at a
        time, or of trials of a search; cluster=local makes the jobs processes of this machine, to try a study out.
        Raises UserError."""
        self.workdir, self.folder = workdir, workdir / "slurm"
        options = _parsed(text)
        submitit = _submitit()
        cluster = options.pop("cluster", "slurm")
        try:
            self.executor = submitit.AutoExecutor(folder=self.folder, cluster=cluster)
            own: dict[str, Any] = {_OWN[name]: options.pop(name) for name in list(options) if name in _OWN}
            if "slurm_array_parallelism" in own:
                own["slurm_array_parallelism"] = int(own["slurm_array_parallelism"])
            elif is_search:
                raise UserError(f"--slurm={text}: a search needs parallel=N, the trials at a time; it learns from them")
            self.most = own["slurm_array_parallelism"] if is_search else None
            self.executor.update_parameters(**own, slurm_additional_parameters=options)
        except (RuntimeError, ValueError, TypeError, NameError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"--slurm={text}: {reason}; it must be NAME=VALUE of sbatch, on a machine that has it"
            ) from None
        self.jobs: dict[str, tuple[PlannedRun, Any]] = {}  # by the key of the run

    def adopt(self, planned: Sequence[PlannedRun]) -> None:
        """Takes over the jobs of an earlier sweep that are still waiting or running."""
        with contextlib.suppress(OSError, ValueError):
            known = json.loads((self.folder / JOBS).read_text(encoding="utf-8"))
            for one in planned:
                if isinstance(number := known.get(one.key), str):
                    job = self.executor._executor.job_class(self.folder, number)
                    if not job.done():
                        self.jobs[one.key] = (one, job)

    def room(self) -> int:
        return 1 << 30 if self.most is None else self.most - len(self.jobs)  # Slurm has a queue

    def start(self, planned: Sequence[PlannedRun]) -> None:
        jobs = self.executor.map_array(make_run_in_job, [self.workdir] * len(planned), planned)
        self.jobs |= {one.key: (one, job) for one, job in zip(planned, jobs, strict=True)}
        numbers = {key: job.job_id for key, (_, job) in self.jobs.items()}
        write_atomically(self.folder / JOBS, json.dumps(numbers, indent=1) + "\n")

    def running(self) -> Sequence[PlannedRun]:
        return [one for one, _ in self.jobs.values()]

    def wait(self, seconds: float) -> list[tuple[PlannedRun, str | None]]:
        until = time.monotonic() + seconds
        while True:
            ended = [one for one, job in self.jobs.values() if job.done()]
            if ended or time.monotonic() >= until:
                return [(one, _how(self.jobs.pop(one.key)[1])) for one in ended]
            time.sleep(min(_POLL, seconds))

    def stop(self, planned: PlannedRun, *, at_once: bool = False) -> None:
        if planned.key in self.jobs:
            self.jobs[planned.key][1].cancel()  # SIGTERM, and SIGKILL after Slurm's KillWait


def make_run_in_job(workdir: Path, planned: PlannedRun) -> int:
    """Makes or continues one run in the process of a job, and returns the status of the command that would. What it
    prints goes to the end of the run's log."""
    from bert_jax.command import exit_status, log_to_stderr
    from bert_jax.lab.sweep.worker import log_to, make_run

    log_to(workdir, planned)
    log_to_stderr()
    return exit_status(lambda _: make_run(workdir, planned), [])


def _how(job: Any) -> str:
    # The record says how the run fared; submitit's own result is a pickle, which is not opened.
    return f"ended as {job.state} (job {job.job_id})"


def _submitit() -> Any:
    try:
        import submitit
    except ImportError:
        raise UserError(f"--slurm needs the extra lab: {install('lab')}") from None
    return submitit


def _parsed(text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(",")]
    for name, equals, value in pairs:
        if not (equals and name.strip() and value):
            raise UserError(f"--slurm={text}: '{name}' is not NAME=VALUE, e.g. partition=gpu,time=60")
    return {name.strip(): value for name, _, value in pairs}
