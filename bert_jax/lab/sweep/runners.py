"""Where the runs of a study are made: on this machine, several at a time, or by Slurm (`lab/slurm.py`)."""

import contextlib
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from glob import glob
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from bert_jax.config import UserError
from bert_jax.lab.study import PlannedRun

_LOST = 255  # the exit status that multiprocessing reports where the fork server is gone
_MOMENT = 1.0  # seconds
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Runner(Protocol):
    """Makes runs, each in a process of its own."""

    starts_stages: bool  # whether the runs of a stage start together, when the stage before has ended

    def room(self) -> int:
        """Returns how many more runs can start now."""
        ...

    def start(self, planned: Sequence[PlannedRun]) -> None: ...

    def running(self) -> Sequence[PlannedRun]: ...

    def wait(self, seconds: float) -> list[tuple[PlannedRun, str | None]]:
        """Returns the runs that have ended and how the process of each did ("ended with status 2"), None if it was lost
        through no fault of its own; [] if none ends within so many seconds."""
        ...

    def stop(self, planned: PlannedRun, *, at_once: bool = False) -> None:
        """Asks a run to save and end, or ends it at once."""
        ...


class Local:
    """Runs on this machine, each with its share of the cores and, with `gpus`, one of them to itself."""

    starts_stages = False

    def __init__(self, workdir: Path, jobs: int, gpus: Sequence[str] = ()):
        self.workdir = workdir
        self.free = shares(jobs, gpus)
        self.processes: dict[int, tuple[Any, PlannedRun, Any]] = {}  # sentinel → process, run, share
        self.started: dict[int, float] = {}  # process → when

    def room(self) -> int:
        return len(self.free)

    def start(self, planned: Sequence[PlannedRun]) -> None:
        for one in planned:
            share = self.free.pop(0)
            process = _context().Process(target=_work, args=(self.workdir, one, *share), name=one.key)
            process.start()
            self.processes[process.sentinel] = (process, one, share)
            self.started[process.pid] = time.monotonic()

    def running(self) -> Sequence[PlannedRun]:
        return [planned for _, planned, _ in self.processes.values()]

    def wait(self, seconds: float) -> list[tuple[PlannedRun, str | None]]:
        ended = []
        for sentinel in wait(list(self.processes), seconds):
            process, planned, share = self.processes.pop(sentinel)  # type: ignore[arg-type]
            process.join()
            with contextlib.suppress(ProcessLookupError):  # its own children, which it may have left behind
                os.killpg(process.pid, signal.SIGKILL)
            ended.append((planned, _how(process.exitcode)))
            self.free.append(share)
        return ended

    def stop(self, planned: PlannedRun, *, at_once: bool = False) -> None:
        for process, one, _ in self.processes.values():
            # In its first moments a fork ignores signals as the server does, and has nothing to save.
            is_new = time.monotonic() - self.started[process.pid] < _MOMENT
            if one == planned:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL if at_once or is_new else signal.SIGTERM)


def _how(status: int) -> str | None:
    if status == _LOST:
        return None
    if status >= 0:
        return f"ended with status {status}"
    why = " (is the memory too small?)" if status == -signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-status).name}{why}"


def shares(jobs: int, gpus: Sequence[str] = ()) -> list[tuple[tuple[int, ...], dict[str, str]]]:
    """Returns (cores, environment) for each of `jobs` runs at a time. Raises UserError if there are too few cores."""
    cores = sorted(os.sched_getaffinity(0))
    if jobs > len(cores):
        raise UserError(f"--jobs={jobs}: this machine has {len(cores)} cores, and each run needs one; lower it")
    found = []
    for number in range(jobs):
        own = tuple(cores[number * len(cores) // jobs : (number + 1) * len(cores) // jobs]) if jobs > 1 else ()
        environment = {}
        if gpus:
            sharing = -(-jobs // len(gpus))
            environment = {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]}
            environment |= {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / sharing:.3f}"} if sharing > 1 else {}
        found.append((own, environment))
    return found


def visible_gpus() -> list[str]:
    """Returns the GPUs that this process may use, as CUDA numbers them. Raises UserError if there are none."""
    stated = os.environ.get("CUDA_VISIBLE_DEVICES")
    if stated is not None:
        found = [name.strip() for name in stated.split(",") if name.strip()]
    else:
        found = [str(number) for number in range(len(glob("/dev/nvidia[0-9]*")))]
    if not found:
        raise UserError("--gpus: this machine has no GPU of NVIDIA, or CUDA_VISIBLE_DEVICES hides it; leave --gpus out")
    return found


def in_fork(function: Callable[..., Any], *arguments: object, environment: dict[str, str] | None = None) -> Any:
    """Returns what a function returns in a process of its own, which may use jax: this one must not, since it makes
    more processes later. Raises UserError if the function does, or if it crashes."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = _context().Process(target=_call, args=(sender, function, arguments, environment or {}))
    process.start()
    sender.close()
    try:
        kind, value = receiver.recv()
    except EOFError:
        process.join()
        raise UserError(f"the process that checks the runs ended with status {process.exitcode}; start again") from None
    finally:
        if process.is_alive():
            process.join()
    if kind == "error":
        raise UserError(value)
    if kind == "bug":
        raise RuntimeError(value)
    return value


def _call(sender: Connection, function: Callable[..., Any], arguments: Any, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    try:
        sender.send(("value", function(*arguments)))
    except UserError as error:
        sender.send(("error", str(error)))
    except Exception:
        sender.send(("bug", traceback.format_exc()))


def _work(workdir: Path, planned: PlannedRun, cores: tuple[int, ...], environment: dict[str, str]) -> None:
    from bert_jax.lab.sweep.worker import work

    work(workdir, planned, cores, environment)


def _context() -> Any:
    """Returns the context of a fork server that has imported jax and all that a run needs, but uses none of it yet."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bert_jax.lab.sweep.worker"])
    with _for_the_server():
        forkserver.ensure_running()
    return context


@contextlib.contextmanager
def _for_the_server() -> Iterator[None]:
    """Sets what the fork server inherits: it ignores the signals that are meant for the sweep, finds this package, and
    its BLAS has no threads, which a fork would lose."""
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in _IGNORED}
    package, before = str(Path(__file__).parents[3]), dict(os.environ)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [before.get("PYTHONPATH"), package]))
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        for name in ("PYTHONPATH", "OPENBLAS_NUM_THREADS"):
            os.environ.pop(name)
            os.environ |= {name: before[name]} if name in before else {}
        for number, handler in handlers.items():
            signal.signal(number, handler)
