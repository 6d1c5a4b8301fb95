"""Several processes that are one run: how they find each other, agree, share out the rows, and end together."""

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from bert_jax.config import Json, UserError, differences
from bert_jax.data.batching.reader import TrainBatches

# Exit status of a process that another one, a device or a disk keeps from going on: the same command continues.
STOPPED_BY_OTHERS = os.EX_TEMPFAIL  # 75
WRONG = 2  # that of a mistake which the user can correct

# Process 0 may draw curves while the others wait at the end, but it does so in `on_first_process`, which they wait for
# without limit. So this is only how long a process that failed alone keeps the others.
_SHUTDOWN_SECONDS = 60

# A process that waits for others for longer than this says so: they may never have been started.
_SILENT_SECONDS = 15

# Process 0 has jax's service: when it is gone, jax aborts the others before they can say why they end.
_OTHERS_FIRST_SECONDS = 3

_LEAVING = threading.Lock()

# What the libraries of collectives and jax's own service say when another process is gone.
_GONE = ("gloo", "nccl", "connection reset", "connection closed", "connection refused", "broken pipe", "heartbeat")
_GONE += ("coordination service", "barrier", "unavailable", "socket closed", "preempted")


@dataclass(frozen=True)
class Launcher:
    """A program that starts the processes of a run, and the variables in which it tells each their number and its
    own."""

    name: str
    count: str
    number: str


LAUNCHERS = (
    Launcher("Slurm", "SLURM_NTASKS", "SLURM_PROCID"),
    Launcher("Open MPI", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    Launcher("MPI", "PMI_SIZE", "PMI_RANK"),
    Launcher("Kubernetes", "JAX_NUM_PROCESSES", "JOB_COMPLETION_INDEX"),  # which does not tell a pod the number of pods
)


def join_processes(environment: Mapping[str, str], seconds: int) -> None:
    """Makes one run of several processes, unless that is done already, by JAX_COORDINATOR_ADDRESS:

    - `auto`: jax asks the cluster, which can be Slurm, Open MPI, MPI with mpi4py, a TPU pod or Kubernetes;
    - `host:port` of process 0, with JAX_NUM_PROCESSES and JAX_PROCESS_ID, which a launcher's own variables replace;
    - unset: as `auto` if the launcher started several processes, else this process is a run of its own;
    - `none`: this process is a run of its own.

    Raises UserError, also if the processes have not found each other after so many seconds.
    """
    address = environment.get("JAX_COORDINATOR_ADDRESS")
    if address == "none" or jax.distributed.is_initialized():  # several seeds are several runs
        return
    launcher = _launched_several(environment)
    if address is None and launcher is None:
        return
    how = f"JAX_COORDINATOR_ADDRESS={address}" if address else f"{launcher} started several processes"
    remedy = "start all of them, where they reach the first one; JAX_COORDINATOR_ADDRESS=none makes separate runs"
    late = partial(leave, f"{how}: not all came within {seconds} s (mesh.join_seconds): {remedy}", WRONG)
    said = partial(logging.warning, "%s: waiting for the other processes, at most %d s", how, seconds)
    # When its own time is up, jax aborts the process.
    with _alarm(min(_SILENT_SECONDS, seconds / 2), said), _alarm(seconds, late):
        try:
            if address is None or address == "auto":
                os.environ.pop("JAX_COORDINATOR_ADDRESS", None)  # jax would take `auto` for a host
                join = partial(jax.distributed.initialize, cluster_detection_method=_detection(environment))
            else:
                join = partial(jax.distributed.initialize, _checked_address(address), *_numbers(environment))
            join(initialization_timeout=2 * seconds + 60, shutdown_timeout_seconds=_SHUTDOWN_SECONDS)
        except (KeyError, ValueError, RuntimeError) as error:  # no cluster, or one of another kind
            reason = str(error).partition("\n")[0]
            raise UserError(f"{how}: the processes cannot be joined ({reason}); {remedy}") from error


def several_processes() -> bool:
    """Returns whether this process is one of several that were joined. Initialises no device if it is not."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def check_same(values: Mapping[str, object]) -> None:
    """Raises UserError on every process, naming the first key and two values, unless all processes hold the same.
    `values` is JSON, maybe nested."""
    if not several_processes():
        return
    text = json.dumps(values, sort_keys=True, default=str).encode()
    digests = multihost_utils.process_allgather(np.frombuffer(hashlib.sha256(text).digest(), np.uint8))
    if np.all(digests == digests[0]):
        return
    lengths = multihost_utils.process_allgather(np.int32(len(text)))
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    texts = multihost_utils.process_allgather(padded)
    first, *others = (json.loads(row[:length].tobytes()) for row, length in zip(texts, lengths, strict=True))
    for number, other in enumerate(others, 1):
        if found := differences(first, other):
            key, one, two = found[0]
            more = f", and in {len(found) - 1} more" if len(found) > 1 else ""
            raise UserError(
                f"the processes differ in {key}: {one!r} on process 0, {two!r} on process {number}{more}; start all of "
                "them with the same options, and let all read the same files"
            )


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Guards what every process does: if it fails on one, it fails on all, which would wait for ever for the one that
    has ended. Raises UserError where only another process failed."""
    succeeded = False
    try:
        yield
        succeeded = True
    finally:
        if several_processes():
            others = multihost_utils.process_allgather(np.int32(succeeded))
            if succeeded and not others.all():
                raise UserError(f"process {int(others.argmin())} failed; its output says why")


def on_first_process(action: Callable[[], object]) -> None:
    """Runs `action` on process 0, while the others wait. If it fails, every process does."""
    with together():
        if not several_processes() or jax.process_index() == 0:
            action()


def as_on_first_process(step: int | None) -> int | None:
    """Returns process 0's value on all: the folder that another one sees may lag behind on a network disk."""
    if not several_processes():
        return step
    number = int(multihost_utils.broadcast_one_to_all(np.int32(-1 if step is None else step)))
    return None if number < 0 else number


def parts_of_batch(rows: Sharding) -> tuple[list[int], int]:
    """Returns which parts of a batch this process reads: their numbers, ascending, and how many parts there are.

    Usually process k of n reads part k of n. On a TPU slice neighbours on the mesh may belong to several processes: a
    process then reads several smaller parts. Processes that share rows along another axis read the same parts.
    """
    length = rows.num_devices  # of a batch with a whole number of rows on each device
    size = rows.shard_shape((length,))[0]
    indices = [index for index in rows.addressable_devices_indices_map((length,)).values() if index]
    own = sorted({(index[0].start or 0) // size for index in indices})
    count = length // size
    # The largest parts that this process reads whole; single shards always are.
    fitting = (n for n in range(len(own), 0, -1) if count % n == 0 and len({one // n for one in own}) * n == len(own))
    shards = next(fitting)
    return sorted({one // shards for one in own}), count // shards


class SeveralParts:
    """The training batches of a process that reads several parts of each."""

    def __init__(self, readers: Sequence[TrainBatches]):
        self._readers = readers

    def __next__(self) -> dict[str, np.ndarray]:
        return joined([next(reader) for reader in self._readers])

    def state(self) -> Json:
        return self._readers[0].state()

    def close(self) -> None:
        for reader in self._readers:
            reader.close()


def joined(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Returns the rows of several parts of a batch, one part after the other."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@contextlib.contextmanager
def ends_with_the_others() -> Iterator[None]:
    """Ends this process with one line and STOPPED_BY_OTHERS when a collective fails because another one has ended."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        first = str(error).partition("\n")[0]
        if not several_processes() or not any(sign in str(error).lower() for sign in _GONE):
            raise
        leave(
            f"another process of this run has ended or cannot be reached ({first}); its output says why; the same "
            "command continues from the last checkpoint"
        )


def leave(message: str, status: int = STOPPED_BY_OTHERS) -> NoReturn:
    """Ends this process at once, with one line. Exit handlers do not run: jax's would wait for processes that no longer
    answer."""
    _LEAVING.acquire()  # who comes second, in another thread, waits for the end without a line of its own
    # While the processes are being joined, jax cannot be asked for this one's number.
    number = jax.process_index() if status == STOPPED_BY_OTHERS and several_processes() else None
    who = "" if number is None else f"process {number}: "
    with contextlib.suppress(OSError, ValueError):
        print(f"error: {who}{' '.join(message.split())}", file=sys.stderr, flush=True)
        sys.stdout.flush()
    if number == 0:
        time.sleep(_OTHERS_FIRST_SECONDS)
    os._exit(status)


@contextlib.contextmanager
def _alarm(seconds: float, action: Callable[[], object]) -> Iterator[None]:
    """Calls `action` in another thread unless what is inside `with` ends within so many seconds."""
    timer = threading.Timer(seconds, action)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _launched_several(environment: Mapping[str, str]) -> str | None:
    """Returns the name of what started several processes as its variables tell; None if it started one, or if they do
    not tell it."""
    # In a shell inside a Slurm allocation, SLURM_NTASKS is that of the job, and the step has one task.
    if environment.get("SLURM_STEP_NUM_TASKS") == "1" or "SLURM_STEP_NODELIST" not in environment:
        environment = {name: value for name, value in environment.items() if name != "SLURM_NTASKS"}
    for launcher in LAUNCHERS[:3]:  # an index of Kubernetes may number independent runs
        if launcher.number in environment and environment.get(launcher.count, "1") != "1":
            return launcher.name
    hosts = environment.get("TPU_PROCESS_ADDRESSES", environment.get("TPU_WORKER_HOSTNAMES", ""))
    return "a TPU pod" if "," in hosts and "TPU_WORKER_ID" in environment else None


def _detection(environment: Mapping[str, str]) -> str | None:
    """Returns the method by which jax is to find the cluster; None lets it choose. It uses mpi4py on request only, and
    has no other way to an MPI that is not Open MPI 4 or older."""
    is_mpi = any(launcher.number in environment for launcher in LAUNCHERS[1:3])
    if not is_mpi or "OMPI_MCA_orte_hnp_uri" in environment:
        return None
    if importlib.util.find_spec("mpi4py") is None:
        raise UserError(
            "this MPI does not tell where process 0 runs: install mpi4py, or set JAX_COORDINATOR_ADDRESS to host:port "
            "of that process"
        )
    return "mpi4py"


def _numbers(environment: Mapping[str, str]) -> tuple[int, int]:
    """Returns the number of processes, and this one's."""
    names = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    found = [environment.get(name) for name in names]
    for launcher in LAUNCHERS:
        if launcher.number in environment:
            told = (environment.get(launcher.count), environment[launcher.number])
            found = [one if one is not None else other for one, other in zip(found, told, strict=True)]
            break
    if any(not (text or "").isdecimal() for text in found):
        raise UserError("JAX_COORDINATOR_ADDRESS is set; set JAX_NUM_PROCESSES and JAX_PROCESS_ID to numbers too")
    count, number = (int(text or "") for text in found)
    if number >= count:
        raise UserError(f"JAX_PROCESS_ID is {number}; it must be below JAX_NUM_PROCESSES, which is {count}")
    return count, number


def _checked_address(address: str) -> str:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise UserError(f"JAX_COORDINATOR_ADDRESS is '{address}'; it must be host:port, auto or none")
    return address
