"""The queue: every input gets its own result, batches keep to their budget, nothing is lost."""

import threading
import time

import pytest

from bert_jax.serve.bodies import Refused
from bert_jax.serve.worker import Job, Worker

from .conftest import eventually, together


class Runs:
    """A model that doubles numbers, remembers its batches, and can be held up."""

    def __init__(self, seconds=0.0):
        self.batches, self.seconds = [], seconds
        self.may_run = threading.Event()
        self.may_run.set()

    def __call__(self, kind, inputs, thread):
        self.batches.append((kind, list(inputs)))
        self.may_run.wait()
        time.sleep(self.seconds)
        if "bad" in inputs:
            raise ValueError("a bug")
        return [2 * one for one in inputs]


def worker_of(runs, **changes):
    options = {"batch_tokens": 10, "queue_tokens": 1000, "wait": 0.001, "observe": lambda *_: None}
    return Worker(runs, **options | changes)


def job_of(inputs, tokens=None, kind="a"):
    done = threading.Event()
    return Job(kind, inputs, tokens or [1] * len(inputs), done.set), done


def results(worker, inputs, tokens=None, kind="a"):
    job, done = job_of(inputs, tokens, kind)
    worker.submit(job)
    assert done.wait(20)
    return job.results


def held(worker, runs, inputs=(0,)):
    """Lets the worker begin a batch, and holds it there; what is submitted then waits."""
    runs.may_run.clear()
    job, done = job_of(list(inputs))
    before = len(runs.batches)
    worker.submit(job)
    eventually(lambda: len(runs.batches) > before)
    return job, done


def test_inputs_of_several_requests_share_a_batch_within_its_tokens():
    runs = Runs()
    worker = worker_of(runs)
    held(worker, runs)
    jobs = [job_of([1, 2], [4, 4]), job_of([3], [2]), job_of([4], [11]), job_of([5], [1])]
    for job, _ in jobs:
        worker.submit(job)
    assert (worker.queued_tokens, worker.queued_inputs) == (22, 5)
    runs.may_run.set()
    assert all(done.wait(20) for _, done in jobs)
    assert [job.results for job, _ in jobs] == [[2, 4], [6], [8], [10]]
    assert [inputs for _, inputs in runs.batches[1:]] == [[1, 2, 3], [4], [5]]  # one input may exceed the budget
    assert (worker.queued_tokens, worker.queued_inputs) == (0, 0)


def test_kinds_take_turns_by_arrival():
    runs = Runs()
    worker = worker_of(runs)
    held(worker, runs)
    jobs = [job_of([number], [6], kind) for number, kind in enumerate("abab")]
    for job, _ in jobs:
        worker.submit(job)
    runs.may_run.set()
    assert all(done.wait(20) for _, done in jobs)
    assert [kind for kind, _ in runs.batches[1:]] == ["a", "b", "a", "b"]


def test_a_lonely_input_waits_and_a_full_batch_does_not():
    runs = Runs()
    worker = worker_of(runs, wait=0.5)
    start = time.monotonic()
    together(2, lambda number: results(worker, [number], [5]))
    full = time.monotonic() - start
    results(worker, [7])
    assert full < 0.4 and time.monotonic() - start - full >= 0.5
    assert [len(inputs) for _, inputs in runs.batches] == [2, 1]


def test_a_request_of_several_batches_runs_on_all_threads():
    runs, used, both = Runs(), set(), threading.Barrier(2)

    def run(kind, inputs, thread):
        used.add(thread)
        both.wait(20)  # raises unless the other thread has a batch meanwhile
        return runs(kind, inputs, thread)

    worker = worker_of(run, threads=2)
    assert results(worker, [1, 2, 3, 4], [10] * 4) == [2, 4, 6, 8] and used == {0, 1}


def test_only_the_input_that_fails_gets_an_error():
    runs = Runs()
    worker = worker_of(runs)
    held(worker, runs)
    job, done = job_of([1, "bad", 3])
    worker.submit(job)
    runs.may_run.set()
    assert done.wait(20)
    assert (job.results[0], job.results[2]) == (2, 6)
    assert isinstance(job.results[1], Refused) and job.results[1].status == 500
    assert results(worker, [4]) == [8] and worker.is_alive


def test_a_full_queue_refuses_and_a_request_that_never_fits_too():
    runs = Runs()
    worker = worker_of(runs, queue_tokens=10)
    held(worker, runs)
    worker.submit(job_of([1], [8])[0])
    with pytest.raises(Refused, match=r"the queue is full \(8 tokens\)") as full:
        worker.submit(job_of([2], [3])[0])
    assert full.value.status == 429 and full.value.retry_after >= 1
    with pytest.raises(Refused, match="costs 11 tokens; the queue holds 10: split it") as never:
        worker.submit(job_of([2], [11])[0])
    assert never.value.status == 413
    worker.submit(job_of([3], [2])[0])
    runs.may_run.set()
    eventually(lambda: worker.queued_tokens == 0)


def test_what_is_cancelled_before_it_begins_is_never_run():
    runs = Runs()
    worker = worker_of(runs)
    _, first = held(worker, runs)
    gone, _ = job_of(["gone"])
    stays, done = job_of([1])
    worker.submit(gone)
    worker.submit(stays)
    worker.cancel(gone)
    worker.cancel(gone)
    assert (worker.queued_tokens, worker.queued_inputs) == (1, 1)
    runs.may_run.set()
    assert first.wait(20) and done.wait(20) and stays.results == [2]
    assert all("gone" not in inputs for _, inputs in runs.batches)


def test_closing_finishes_what_is_queued_and_refuses_the_rest():
    runs = Runs(0.01)
    worker = worker_of(runs, batch_tokens=1)
    jobs = [job_of([number]) for number in range(10)]
    for job, _ in jobs:
        worker.submit(job)
    worker.close(20)
    assert [job.results for job, _ in jobs] == [[2 * number] for number in range(10)]
    with pytest.raises(Refused, match="the server is stopping"):
        worker.submit(job_of([1])[0])


def test_closing_takes_no_longer_than_it_may():
    runs = Runs()
    worker = worker_of(runs)
    held(worker, runs)
    job, done = job_of([1, 2])
    worker.submit(job)
    start = time.monotonic()
    worker.close(0.1)
    assert time.monotonic() - start < 5 and done.is_set()
    assert [result.status for result in job.results] == [503, 503]
    runs.may_run.set()


@pytest.mark.parametrize("threads", [1, 3])
def test_no_result_is_lost_or_given_to_another(threads):
    worker = worker_of(Runs(), batch_tokens=7, wait=0.0005, threads=threads)

    def client(number):
        for turn in range(30):
            inputs = [1000 * number + 10 * turn + i for i in range((number + turn) % 6 + 1)]
            if (number + turn) % 5 == 0:  # somebody leaves
                job, _ = job_of(inputs, kind="b")
                worker.submit(job)
                worker.cancel(job)
            assert results(worker, inputs, [1 + one % 3 for one in inputs], "ab"[turn % 2]) == [2 * x for x in inputs]

    together(12, client)
    assert (worker.queued_tokens, worker.queued_inputs) == (0, 0)
