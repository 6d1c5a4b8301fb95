"""The queue in front of a model, and the threads that run it: inputs of several requests share a batch."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bert_jax.serve.bodies import Refused

THREAD = "batches"  # begin of the names of a worker's threads
_LONGEST_RETRY = 60  # seconds that a client is asked to wait at most


@dataclass(eq=False)
class Job:
    """Inputs of one request. `finished` is called, in a thread of the worker, once all `results` are there.

    Inputs of one `kind` may share a batch. A result is a value, a UserError, or Refused for an input that could not be
    run.
    """

    kind: Hashable
    inputs: Sequence[object]
    tokens: Sequence[int]  # what each input costs
    finished: Callable[[], None]
    results: list[object] = field(default_factory=list)
    arrived: float = 0.0
    begun: int = 0  # inputs that are in a batch, or were
    left: int = 0  # inputs without result
    is_cancelled: bool = False


class Worker:
    """Runs the jobs of one model in the order of their arrival, those of one kind together.

    `run(kind, inputs, thread)` returns a result for each input; threads are numbered from 0. A batch has up to
    `batch_tokens` tokens, or one input that has more; it begins when it is full, or when its first input has waited for
    `wait` seconds. Each of the `threads` has one batch at a time. `observe(kind, inputs, tokens, seconds)` is called
    after each.
    """

    def __init__(
        self,
        run: Callable[[Any, list[object], int], list[object]],
        *,
        batch_tokens: int,
        queue_tokens: int,
        wait: float,
        observe: Callable[[Any, int, int, float], None],
        threads: int = 1,
    ):
        self._run, self._observe = run, observe
        self._batch_tokens, self._queue_tokens, self._wait = batch_tokens, queue_tokens, wait
        self._jobs: dict[Hashable, deque[Job]] = {}  # with inputs that are not begun, by kind; none is empty
        self._changed = threading.Condition()
        self._is_closing = False
        self._rate = 0.0  # tokens per second of the last batches
        self.queued_tokens = self.queued_inputs = 0
        self._threads = [
            threading.Thread(target=self._work, args=(i,), name=f"{THREAD} {i}", daemon=True) for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def is_alive(self) -> bool:
        return all(thread.is_alive() for thread in self._threads)

    def submit(self, job: Job) -> None:
        """Takes a job into the queue. Raises Refused if it does not fit, or if the worker is closing."""
        total = sum(job.tokens)
        if total > self._queue_tokens:
            raise Refused(413, f"the request costs {total} tokens; the queue holds {self._queue_tokens}: split it")
        with self._changed:
            if self._is_closing:
                raise Refused(503, "the server is stopping", 1)
            if self.queued_tokens + total > self._queue_tokens:
                seconds = self.queued_tokens / (self._rate * len(self._threads)) if self._rate else 1
                retry = max(1, min(_LONGEST_RETRY, math.ceil(seconds)))
                raise Refused(429, f"the queue is full ({self.queued_tokens} tokens); try again later", retry)
            job.results, job.left, job.arrived = [None] * len(job.inputs), len(job.inputs), time.monotonic()
            self._jobs.setdefault(job.kind, deque()).append(job)
            self.queued_tokens += total
            self.queued_inputs += len(job.inputs)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Drops what is not begun of a job; nobody waits for its results."""
        with self._changed:
            if not job.is_cancelled:
                job.is_cancelled = True
                self._forget(job)
                if left := deque(other for other in self._jobs.get(job.kind, ()) if other is not job):
                    self._jobs[job.kind] = left
                else:
                    self._jobs.pop(job.kind, None)

    def close(self, seconds: float) -> bool:
        """Ends the threads once the queue is empty; what is left after so many seconds gets an error. Returns whether
        all threads have ended."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        end = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        with self._changed:
            left = [job for jobs in self._jobs.values() for job in jobs]
            self._jobs.clear()
        for job in left:
            places = range(job.begun, len(job.inputs))
            self._deliver([(job, place) for place in places], [Refused(503, "the server has stopped")] * len(places))
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self, thread: int) -> None:
        while batch := self._next_batch():
            inputs = [job.inputs[place] for job, place in batch]
            kind, tokens = batch[0][0].kind, sum(job.tokens[place] for job, place in batch)
            start = time.monotonic()
            results = self._results(kind, inputs, thread)
            seconds = time.monotonic() - start
            self._observe(kind, len(batch), tokens, seconds)
            rate = tokens / max(seconds, 1e-6)
            self._rate = 0.8 * self._rate + 0.2 * rate if self._rate else rate
            self._deliver(batch, results)

    def _next_batch(self) -> list[tuple[Job, int]]:
        """Waits for the next batch; returns an empty one when the worker is closed."""
        with self._changed:
            while True:
                waiting = [jobs[0] for jobs in self._jobs.values()]
                if not waiting:
                    if self._is_closing:
                        return []
                    self._changed.wait()
                    continue
                first = min(waiting, key=lambda job: job.arrived)
                left = first.arrived + self._wait - time.monotonic()
                if left <= 0 or self._is_closing or self.queued_tokens >= self._batch_tokens:
                    return self._take(first.kind)
                self._changed.wait(left)

    def _take(self, kind: Hashable) -> list[tuple[Job, int]]:
        batch, room, jobs = [], self._batch_tokens, self._jobs[kind]
        while jobs:
            job = jobs[0]
            tokens = job.tokens[job.begun]
            if batch and tokens > room:
                break
            batch.append((job, job.begun))
            room -= tokens
            self.queued_tokens -= tokens
            self.queued_inputs -= 1
            job.begun += 1
            if job.begun == len(job.inputs):
                jobs.popleft()
        if not jobs:
            del self._jobs[kind]
        if self._jobs:
            self._changed.notify()  # another thread takes what is left
        return batch

    def _results(self, kind: Hashable, inputs: list[object], thread: int) -> list[object]:
        """Returns the results of a batch. If it fails as a whole, each input is run by itself: only those that fail by
        themselves get an error."""
        try:
            return self._run(kind, inputs, thread)
        except Exception as problem:  # a bug, or no memory: that must not end the server
            if len(inputs) > 1:
                logging.warning("a batch of %d failed and is run one by one: %s", len(inputs), problem)
                return [self._results(kind, [one], thread)[0] for one in inputs]
            logging.exception("an input could not be run")
            return [Refused(500, "this input could not be run; the server's log has the reason")]

    def _deliver(self, batch: Sequence[tuple[Job, int]], results: Sequence[object]) -> None:
        done = []
        with self._changed:
            for (job, place), result in zip(batch, results, strict=True):
                job.results[place] = result
                job.left -= 1
                if not job.left:
                    done.append(job)
        for job in done:
            job.finished()

    def _forget(self, job: Job) -> None:
        self.queued_tokens -= sum(job.tokens[job.begun :])
        self.queued_inputs -= len(job.inputs) - job.begun
