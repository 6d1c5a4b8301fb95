"""Servers in processes of their own, and the load that benchmarks/serving.py puts on them: clients that ask one after
the other, or that arrive at random; every answer is checked."""

import asyncio
import contextlib
import json
import os
import random
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.config import UserError

QUANTILES = (50, 95, 99)
_TOLERANCE = 0.02  # of a probability or of a vector: other batches have other roundings, and bfloat16 has 8 bits
_HEADERS = "Content-Type: application/json\r\nHost: 127.0.0.1"
_IDLE_SECONDS = 3.0  # after which a connection is not used again: uvicorn ends one after 5


@dataclass
class Server:
    port: int
    process: int
    is_ours: bool = True

    def memory(self) -> float:
        """Returns the resident memory in MB."""
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.process}/status").read_text())
        assert found is not None
        return int(found[1]) / 1024

    def cpu_seconds(self) -> float:
        """Returns the processor time of all its threads until now."""
        fields = Path(f"/proc/{self.process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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


@contextlib.contextmanager
def peer_server(model: str, dtype: str, library: str) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = str(Path(__file__).with_name("serving_peer.py"))
    command = [sys.executable, script, model, f"--port={port}", f"--dtype={dtype}", f"--library={library}"]
    process = subprocess.Popen(command)
    try:
        while process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.2)
        else:
            raise UserError("the peer has not started; its log is above")
        yield Server(port, process.pid, is_ours=False)
    finally:
        process.kill()
        process.wait()


@dataclass
class Load:
    """Requests with 1 to `most` texts in random order, and what is known of their answers."""

    texts: Sequence[str]
    expected: Sequence[Any]
    path: str = "/predict"
    most: int = 1
    leaving: float = 0.0  # share of clients that leave before their answer
    draw: random.Random = field(default_factory=lambda: random.Random(0))

    def body(self) -> tuple[list[int], bytes]:
        numbers = [self.draw.randrange(len(self.texts)) for _ in range(self.draw.randint(1, self.most))]
        inputs: list[Any] = [self.texts[i] for i in numbers]
        if self.path == "/predict":
            inputs = [{"text": text, "id": f"text {i}"} for i, text in zip(numbers, inputs, strict=True)]
        return numbers, json.dumps({"inputs": inputs}).encode()

    def check(self, numbers: Sequence[int], answers: Any) -> None:
        """Raises UserError unless the answers are those of the texts."""
        if len(answers) != len(numbers) or not all(map(self._is_of, numbers, answers)):
            raise UserError(f"another's answer for {[self.texts[i][:60] for i in numbers]}: {str(answers)[:300]}")

    def _is_of(self, number: int, answer: Any) -> bool:
        expected = self.expected[number]
        if self.path == "/embed":  # of length 1
            return float(np.dot(expected, answer)) > 1 - _TOLERANCE
        pairs = ((answer["probabilities"][label], p) for label, p in expected["probabilities"].items())
        return answer["id"] == f"text {number}" and all(abs(found - p) < _TOLERANCE for found, p in pairs)


class Connection:
    """A connection that stays open: the least that HTTP needs, as the clients must not be what takes the time."""

    def __init__(self, port: int):
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._used = 0.0

    async def ask(self, body: bytes, path: str, method: str = "POST") -> tuple[int, bytes]:
        reader, _ = await self.send(body, path, method)
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        size = re.search(rb"content-length: (\d+)", answer)
        assert size is not None
        content = await reader.readexactly(int(size[1]))
        self._used = time.monotonic()
        return int(answer.split(b" ", 2)[1]), content

    async def send(
        self, body: bytes, path: str, method: str = "POST"
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is not None and time.monotonic() - self._used > _IDLE_SECONDS:
            self._streams[1].close()
            self._streams = None
        self._used = time.monotonic()
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 22)
        head = f"{method} {path} HTTP/1.1\r\n{_HEADERS}\r\nContent-Length: {len(body)}\r\n\r\n"
        self._streams[1].write(head.encode() + body)
        return self._streams

    async def leave(self, body: bytes, path: str) -> None:
        """Sends a request and does not wait for its answer."""
        _, writer = await self.send(body, path)
        await writer.drain()
        writer.close()
        self._streams = None


@dataclass
class Tally:
    """What became of the requests of one measurement."""

    own: Server
    latencies: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    texts: int = 0
    start: float = field(default_factory=time.perf_counter)
    cpu: float = field(default_factory=time.process_time)
    servers_cpu: float = 0.0

    def __post_init__(self):
        self.servers_cpu = self.own.cpu_seconds()

    async def ask(self, load: Load, connection: Connection, due: float | None = None) -> None:
        numbers, body = load.body()
        due = due or time.perf_counter()
        if load.leaving and load.draw.random() < load.leaving:
            return await connection.leave(body, load.path)
        status, answer = await connection.ask(body, load.path)
        self.statuses[status] += 1
        if status == 200:
            self.latencies.append(time.perf_counter() - due)
            self.texts += len(numbers)
            load.check(numbers, json.loads(answer))
        elif status != 429:
            raise UserError(f"status {status}: {answer[:200]!r}")

    def row(self) -> dict[str, Any]:
        seconds = time.perf_counter() - self.start
        values = np.percentile(self.latencies, QUANTILES) if self.latencies else [float("nan")] * len(QUANTILES)
        times = {f"p{name}, ms": round(1000 * float(x), 1) for name, x in zip(QUANTILES, values, strict=True)}
        rates = {"texts/s": round(self.texts / seconds, 1), "requests/s": round(self.statuses[200] / seconds, 1)}
        cpu = {
            "clients, cores": round((time.process_time() - self.cpu) / seconds, 2),
            "CPU ms per text": round(1000 * (self.own.cpu_seconds() - self.servers_cpu) / max(1, self.texts), 2),
        }
        return rates | times | cpu


async def closed(load: Load, own: Server, clients: int, seconds: float) -> dict[str, Any]:
    """Clients that send the next request when they have their answer."""
    tally, end = Tally(own), time.perf_counter() + seconds

    async def client() -> None:
        connection = Connection(own.port)
        while time.perf_counter() < end:
            await tally.ask(load, connection)

    await asyncio.gather(*(client() for _ in range(clients)))
    return tally.row()


async def opened(load: Load, own: Server, rate: float, seconds: float) -> dict[str, Any]:
    """Requests that arrive at random, `rate` per second, whatever became of those before."""
    tally, free, tasks = Tally(own), list[Connection](), set[asyncio.Task[None]]()
    memory, queue = own.memory(), [0.0]

    async def request(due: float) -> None:
        connection = free.pop() if free else Connection(own.port)
        await tally.ask(load, connection, due)
        free.append(connection)

    watching = asyncio.create_task(_watch(own, queue)) if own.is_ours else None
    due = tally.start
    while due < tally.start + seconds:
        due += load.draw.expovariate(rate)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.add(asyncio.create_task(request(due)))
        if len(tasks) % 64 == 0:
            tasks = {task for task in tasks if not _is_done(task)}
    await asyncio.gather(*tasks)
    refused = tally.statuses[429] / max(1, sum(tally.statuses.values()))
    row = {"arrivals/s": round(rate, 1)} | tally.row() | {"refused": f"{refused:.1%}"}
    if watching is not None:
        watching.cancel()
        row |= {
            "MB": round(own.memory()),
            "MB more": round(own.memory() - memory, 1),
            "most queued tokens": int(max(queue)),
        }
    return row


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
