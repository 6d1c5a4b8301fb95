"""A server under load on this machine: throughput against offline prediction, latency, batching, overload.

    python benchmarks/serving.py runs/sst2 --texts=FILE [--seconds=20] [--serve="--threads=2 --lengths=16,64"]
        [--overload_seconds=1800] [--json=out.json]

FILE has one text per line; each request has one of them. In turn:

    offline     `bert_jax.load(...).predict` of all texts at once, twice; the second time counts
    alone       the server with batches of one input, 32 clients that ask one after the other
    capacity    the server as it comes, 64 such clients
    50 %, 80 %  arrivals at random (Poisson) at these shares of the capacity; a latency begins when a request should
                have been sent, whether or not the client was late
    200 %       the same at twice the capacity: how many are refused, how long the queue grows, what memory does

Clients share the cores with the server, over the loopback interface. Every answer is compared with the offline
prediction of its own text: one that is another's, or missing, ends the benchmark.
"""

import argparse
import asyncio
import contextlib
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from timing import machine

from bert_jax.config import UserError
from bert_jax.heap import restart_with_kept_heap

QUANTILES = (50, 95, 99)
_TOLERANCE = 1e-3  # of a probability: other batches have other roundings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--overload_seconds", type=float, default=0, help="of the part at 200 %%; 0 is --seconds")
    parser.add_argument("--serve", default="", help="further flags of the server")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--offline", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    texts = [line for line in given.texts.read_text(encoding="utf-8").splitlines() if line.strip()]
    if given.offline:
        given.offline.write_text(json.dumps(offline(given.model, texts)))
        return
    found: dict[str, Any] = machine(("jax", "starlette", "uvicorn"))
    expected = _offline_in_a_process(given.model, given.texts)
    found["offline"] = {"texts per second": len(texts) / expected["seconds"]}
    load, words = Load(texts, expected["predictions"]), given.serve.split()
    with server(given.model, [*words, "--batch_tokens=1", "--wait_ms=0"]) as own:
        found["alone"] = asyncio.run(closed(load, own, 32, given.seconds))
    with server(given.model, words) as own:
        found["capacity"] = asyncio.run(closed(load, own, 64, given.seconds))
        rate = found["capacity"]["requests per second"]
        for share in (0.5, 0.8):
            found[f"{share:.0%}"] = asyncio.run(opened(load, own, share * rate, given.seconds))
        found["200%"] = asyncio.run(opened(load, own, 2 * rate, given.overload_seconds or given.seconds))
    found["capacity / offline"] = rate / found["offline"]["texts per second"]
    found["capacity / alone"] = rate / found["alone"]["requests per second"]
    for name, value in found.items():
        print(f"{name:20} {value if isinstance(value, str | float) else json.dumps(value)}")
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


def offline(model: str, texts: Sequence[str]) -> dict[str, Any]:
    """Returns the predictions of all texts at once, and the seconds that the second time took."""
    import bert_jax

    loaded = bert_jax.load(model)
    loaded.predict(list(texts))
    start = time.perf_counter()
    predictions = loaded.predict(list(texts))
    return {"seconds": time.perf_counter() - start, "predictions": predictions}


@dataclass
class Server:
    port: int
    process: int

    def memory(self) -> float:
        """Returns the resident memory in MB."""
        status = Path(f"/proc/{self.process}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+)", status)
        assert found is not None
        return int(found[1]) / 1024


@contextlib.contextmanager
def server(model: str, words: Sequence[str]) -> Iterator[Server]:
    """Starts a server on a free port, waits until it is ready, and stops it in the end."""
    command = [sys.executable, "-m", "bert_jax.serve", f"served={model}", "--port=0", "--attention=False", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line.startswith("serving "):
            raise UserError("the server has not started; its log is above")
        yield Server(int(line.strip().rpartition(":")[2]), process.pid)
        process.terminate()
        if status := process.wait(60):
            raise UserError(f"the server ended with status {status}")
    finally:
        process.kill()
        process.wait()


@dataclass
class Load:
    """Requests with texts in random order, and what is known of their answers."""

    texts: Sequence[str]
    expected: Sequence[dict[str, Any]]
    draw: random.Random = field(default_factory=lambda: random.Random(0))

    def body(self) -> tuple[int, bytes]:
        number = self.draw.randrange(len(self.texts))
        return number, json.dumps({"inputs": [self.texts[number]]}).encode()

    def check(self, number: int, answer: Any) -> None:
        """Raises UserError unless the answer is that of the text."""
        expected = self.expected[number].get("probabilities", {})
        wrong = len(answer) != 1 or any(
            abs(answer[0]["probabilities"][label] - probability) > _TOLERANCE for label, probability in expected.items()
        )
        if wrong:
            raise UserError(f"another's answer for {self.texts[number]!r}: {answer}")


class Connection:
    """A connection that stays open: the least that HTTP needs, as the clients must not be what takes the time."""

    def __init__(self, port: int):
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, body: bytes, path: str = "/predict", method: str = "POST") -> tuple[int, bytes]:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        size = re.search(rb"content-length: (\d+)", answer)
        assert size is not None
        return int(answer.split(b" ", 2)[1]), await reader.readexactly(int(size[1]))


async def closed(load: Load, own: Server, clients: int, seconds: float) -> dict[str, Any]:
    """Clients that send the next request when they have their answer."""
    end, latencies, statuses = time.perf_counter() + seconds, [], Counter()

    async def client() -> None:
        connection = Connection(own.port)
        while time.perf_counter() < end:
            number, body = load.body()
            start = time.perf_counter()
            await _asked(load, connection, number, body, start, latencies, statuses)

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return {"requests per second": statuses[200] / (time.perf_counter() - start)} | _quantiles(latencies)


async def opened(load: Load, own: Server, rate: float, seconds: float) -> dict[str, Any]:
    """Requests that arrive at random, `rate` per second, whatever became of those before."""
    latencies, statuses, free, tasks = [], Counter(), [], set()
    memory, queue = own.memory(), [0.0]

    async def request(due: float) -> None:
        connection = free.pop() if free else Connection(own.port)
        number, body = load.body()
        await _asked(load, connection, number, body, due, latencies, statuses)
        free.append(connection)

    watching = asyncio.create_task(_watch(own, queue))
    start = due = time.perf_counter()
    while due < start + seconds:
        due += load.draw.expovariate(rate)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.add(asyncio.create_task(request(due)))
        if len(tasks) % 64 == 0:
            tasks = {task for task in tasks if not _is_done(task)}
    await asyncio.gather(*tasks)
    watching.cancel()
    found = {
        "arrivals per second": rate,
        "answered": statuses[200] / sum(statuses.values()),
        "statuses": dict(statuses),
    }
    growth = {"MB": own.memory(), "MB more": own.memory() - memory, "most queued tokens": max(queue)}
    return found | _quantiles(latencies) | growth


async def _asked(
    load: Load,
    connection: Connection,
    number: int,
    body: bytes,
    due: float,
    latencies: list[float],
    statuses: Counter[int],
) -> None:
    status, answer = await connection.ask(body)
    statuses[status] += 1
    if status == 200:
        latencies.append(time.perf_counter() - due)
        load.check(number, json.loads(answer))
    elif status != 429:
        raise UserError(f"status {status}: {answer[:200]!r}")


async def _watch(own: Server, queue: list[float]) -> None:
    connection = Connection(own.port)
    while True:
        _, text = await connection.ask(b"", "/metrics", "GET")
        found = re.search(rb'bert_queue_tokens{model="served"} (\S+)', text)
        assert found is not None
        queue.append(float(found[1]))
        await asyncio.sleep(0.5)


def _is_done(task: asyncio.Task[None]) -> bool:
    if task.done():
        task.result()  # raises what it raised
    return task.done()


def _quantiles(latencies: Sequence[float]) -> dict[str, float]:
    """Returns milliseconds."""
    values = np.percentile(latencies, QUANTILES) if latencies else [float("nan")] * len(QUANTILES)
    return {f"p{name} ms": round(1000 * float(value), 1) for name, value in zip(QUANTILES, values, strict=True)}


def _offline_in_a_process(model: str, texts: Path) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [sys.executable, __file__, model, f"--texts={texts}", f"--offline={file.name}"]
        subprocess.run(command, check=True)
        return json.loads(Path(file.name).read_text())


if __name__ == "__main__":
    restart_with_kept_heap()  # as the server does
    main()
