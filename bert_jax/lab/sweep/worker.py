"""The process of one run of a study: it trains in the run's folder, and says in `sweep.json` how that went.

A fork server imports this module, and with it jax and all rooms, once; each run is a fork of it. So a run starts
without the seconds that the imports take, and shares nothing else with the others: it may crash as it likes.
"""

import contextlib
import errno
import gc
import json
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

# All but jax: what runs import when they need it, half of the seconds of a short run.
import grain  # noqa: F401
import jax
import matplotlib.figure  # noqa: F401
import scipy.stats  # noqa: F401
import seqeval.metrics  # noqa: F401
import sklearn.metrics  # noqa: F401
import tensorflow_datasets  # noqa: F401

from bert_jax import run as runs
from bert_jax.command import run_command
from bert_jax.config import Json, UserError, from_json_dict
from bert_jax.lab.provenance import code_and_packages, read_environments
from bert_jax.lab.records import COMPLETE, FAILED, RUNNING, UNFINISHED, read_run, write_record
from bert_jax.lab.space import named_metrics
from bert_jax.lab.study import PlannedRun
from bert_jax.lab.sweep.planning import REQUEST
from bert_jax.lab.sweep.schedule import DISK_FULL
from bert_jax.tasks import TASKS, task_class

for _name in TASKS:
    task_class(_name)
code_and_packages()  # of the code that was imported, whatever is edited later

LOG = "log.txt"  # in the folder of a run: what it printed


def work(workdir: Path, planned: PlannedRun, cores: Sequence[int], environment: Mapping[str, str]) -> None:
    """Makes or continues one run in this process, on these cores (all, if none is given), and ends the process with the
    status of the command that would. What it prints goes to the end of its log."""
    for number in (signal.SIGTERM, signal.SIGHUP):  # the fork server ignores them
        signal.signal(number, signal.SIG_DFL)
    os.setpgid(0, 0)  # Ctrl-C in a terminal is for the sweep, which tells its runs
    threading.Thread(target=_die_with_parent, daemon=True).start()
    log_to(workdir, planned)
    if cores:
        os.sched_setaffinity(0, cores)
    os.environ.update(environment)
    gc.set_threshold(50_000)  # as main.py
    run_command(lambda _: make_run(workdir, planned))


def log_to(workdir: Path, planned: PlannedRun) -> None:
    """Sends what this process prints to the end of the run's log."""
    with open(workdir / planned.key / LOG, "ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)


def make_run(workdir: Path, planned: PlannedRun) -> int:
    """Makes or continues one run, and returns the exit status of a command that does."""
    before = read_run(workdir, planned)
    started = time.strftime("%Y-%m-%d %H:%M:%S %z")
    record = replace(before, status=RUNNING, error="", attempts=before.attempts + 1, started=started, result={})
    record = replace(record, host=socket.gethostname())
    write_record(record)
    clock = time.monotonic()

    def end(status: str, error: str = "", **more: object) -> None:
        seconds = round(before.seconds + time.monotonic() - clock, 2)
        environments: list[Json] = []
        with contextlib.suppress(UserError):
            environments = read_environments(record.folder)
        more |= {"environment": environments[-1]} if environments else {}
        write_record(replace(record, status=status, error=error, seconds=seconds, **more))

    try:
        request = json.loads((record.folder / REQUEST).read_text(encoding="utf-8"))
        config = from_json_dict(request["config"])
        record = replace(record, devices=_devices())
        result = runs.run(config, record.folder)
    except KeyboardInterrupt:
        end(UNFINISHED, "interrupted")
        raise
    except BaseException as problem:
        text = " ".join(str(problem).split()) or type(problem).__name__
        if _is_of_full_disk(problem):
            with contextlib.suppress(OSError):
                end(UNFINISHED, f"{DISK_FULL}: {text}")
        else:
            end(FAILED, text if isinstance(problem, UserError) else f"{type(problem).__name__}: {text}")
        raise
    if result.signal is not None:
        end(UNFINISHED, f"stopped by {signal.Signals(result.signal).name} at step {result.step}")
        return result.status
    found = {"eval": result.best, "last": result.last, "test": result.test}
    found = {split: metrics for split, metrics in found.items() if metrics}
    names = [f"{split}.{name}" for split, metrics in found.items() for name in metrics]
    missing = [name for name in named_metrics(request["metric"]) if name not in names]
    if not names or missing:
        has = f"it has {', '.join(names)}" if names else "it was evaluated on nothing"
        end(FAILED, f"there is no {missing[0] if missing else 'result'}: {has}", result=found)
        return 2
    end(COMPLETE, result=found)
    return 0


def _devices() -> str:
    devices = jax.local_devices()
    return f"{len(devices)} × {devices[0].device_kind}"


def _is_of_full_disk(problem: BaseException | None) -> bool:
    """Returns whether an error, or the one that caused it, is about space on a disk."""
    full = (errno.ENOSPC, errno.EDQUOT)
    while problem is not None:
        if isinstance(problem, OSError) and problem.errno in full:
            return True
        if any(os.strerror(number) in str(problem) for number in full):  # TensorStore's errors have only a text
            return True
        problem = problem.__cause__ or problem.__context__
    return False


def _die_with_parent() -> None:
    """Ends this process, and those that it has started, when the sweep is gone however it went."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.killpg(0, signal.SIGKILL)
