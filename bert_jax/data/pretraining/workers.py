"""A pool of processes that keeps the order of its input and survives neither its parent nor a lost worker.

Each worker has one item at a time, so neither side ever blocks the other's pipe and memory stays flat. The standard
library's pools wait for ever when a worker is killed, and they read their whole input at once.
"""

import contextlib
import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Generic, TypeVar, cast

from bert_jax.config import UserError

_NAME = "bert_jax worker"
Item = TypeVar("Item")
Result = TypeVar("Result")


def in_worker() -> bool:
    """Returns True in a worker, also while it still imports the script that started it."""
    return multiprocessing.current_process().name == _NAME


def in_order(work: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Yields `work(item)` for every item, in order, from `workers` processes (1: from this one).

    `work`, items and results must be picklable. Raises what `work` raises, and UserError for a worker that dies.
    """
    if workers == 1:
        yield from map(work, items)
        return
    pool, expected, ready = _Pool(work, workers), 0, dict[int, Result]()
    try:
        for number, result in pool.results(items):
            ready[number] = result
            while expected in ready:
                yield ready.pop(expected)
                expected += 1
    finally:
        pool.close()


class _Pool(Generic[Item, Result]):
    """The processes, by the connection to each, and the number of the item that each is busy with."""

    def __init__(self, work: Callable[[Item], Result], workers: int):
        self._work, self._workers = work, workers
        self._processes: dict[Connection, SpawnProcess] = {}
        self._busy: dict[Connection, int] = {}

    def results(self, items: Iterable[Item]) -> Iterator[tuple[int, Result]]:
        """Yields (number of the item, result) as they come."""
        for number, item in enumerate(items):
            idle = self._processes.keys() - self._busy
            if len(self._processes) < self._workers:
                connection = self._start(number)
            elif idle:
                connection = idle.pop()
            else:
                connection = cast(Connection, wait(list(self._busy))[0])
                yield self._receive(connection)
            self._busy[connection] = number
            self._send(item, connection, number)
        while self._busy:
            for connection in wait(list(self._busy)):
                yield self._receive(cast(Connection, connection))

    def close(self) -> None:
        for connection in self._processes:
            connection.close()  # the worker sees the end of its pipe, also when this process is killed
        for process in self._processes.values():
            process.join(timeout=5)
            process.kill()

    def _start(self, number: int) -> Connection:
        context = multiprocessing.get_context("spawn")  # JAX's threads do not survive a fork
        connection, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs,), daemon=True, name=_NAME)
        # Ctrl-C goes to every process of the terminal, and is the parent's business: a process started here inherits
        # the blocked signal, so that it prints no traceback of its own while it imports.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        self._processes[connection] = process
        # Not an argument of the process: `start` would wait for ever to hand over as much to one that has died.
        self._send(self._work, connection, number)
        return connection

    def _send(self, what: object, connection: Connection, number: int) -> None:
        try:
            connection.send(what)
        except ConnectionError:
            raise self._died(connection, number) from None

    def _receive(self, connection: Connection) -> tuple[int, Result]:
        number = self._busy.pop(connection)
        try:
            result = connection.recv()
        except (EOFError, ConnectionError):
            raise self._died(connection, number) from None
        if isinstance(result, BaseException):
            raise result
        return number, result

    def _died(self, connection: Connection, number: int) -> UserError:
        process = self._processes[connection]
        process.join(timeout=5)
        reason = "most likely out of memory; lower data.workers"
        if process.exitcode == 1:  # Python's for an exception: the worker never came as far as serving
            reason = 'its error is above; a script needs `if __name__ == "__main__":` around this call'
        return UserError(f"a worker died while preparing block {number} (exit code {process.exitcode}): {reason}")


def _serve(connection: Connection) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    with contextlib.suppress(EOFError, ConnectionError):
        work = connection.recv()
        while True:
            item = connection.recv()
            try:
                result = work(item)
            except MemoryError:
                result = UserError("a worker has no memory left: lower data.workers")
            except Exception as error:  # whatever it is, the parent raises it
                result = _sendable(error)
            connection.send(result)


def _sendable(error: Exception) -> Exception:
    """Returns the exception, unless it holds what cannot be pickled or fails when it is made again."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:  # of the exception's own code
        return UserError(f"a worker failed: {error!r}")
