"""Real servers in processes of their own, with small models whose parameters are random and large."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import numpy as np
import pytest

from bert_jax.entries import add_entry
from experiments import classify, finetune, translate
from tests.inference.test_open import pretrained
from tests.lab.inspect.conftest import CLASSES, fine_tuned

ROOT = Path(__file__).resolve().parents[2]


class Answer(NamedTuple):
    status: int
    body: Any  # of JSON, else text
    headers: dict[str, str]


class Server:
    """A process of `python -m bert_jax.serve`, or of code of a test's own."""

    def __init__(self, *words: str, log: Path, wait: bool = True, devices: int = 1):
        command = [sys.executable, "-m", "bert_jax.serve", *map(str, words), "--port=0"]
        if words[0] == "-c":
            command = [sys.executable, *words]
        flags = re.sub(r"(device_count=)\d+", rf"\g<1>{devices}", os.environ["XLA_FLAGS"])
        self.log = log
        self.schema: dict[str, Any] = {}  # once it is there, every answer is checked against it
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | {"XLA_FLAGS": flags},
            )
        self.port = 0
        if wait:
            self.wait()

    def wait(self) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("serving "), self.log.read_text()
        self.port = int(re.search(r":(\d+)$", line.strip())[1])

    def connect(self, timeout: float = 60) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def ask(self, method: str, path: str, body: Any = None, connection=None, **headers: str) -> Answer:
        """Sends a body: bytes as they are, anything else as JSON."""
        own = connection or self.connect()
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        given = {"Content-Type": "application/json"} if content is not None else {}
        own.request(method, path, content, given | {k.replace("_", "-"): v for k, v in headers.items()})
        response = own.getresponse()
        text = response.read().decode()
        found = {name.lower(): value for name, value in response.getheaders()}
        if connection is None:
            own.close()
        kind = found.get("content-type", "").partition(";")[0]
        answer = Answer(response.status, json.loads(text) if kind == "application/json" else text, found)
        if path in self.schema.get("paths", ()) and answer.status != 405:
            described = self.schema["paths"][path][method.lower()]["responses"][str(answer.status)]["content"]
            jsonschema.validate(answer.body, described[kind]["schema"] | {"components": self.schema["components"]})
        return answer

    def post(self, path: str, body: Any, **options: Any) -> Answer:
        return self.ask("POST", path, body, **options)

    def get(self, path: str, **options: Any) -> Answer:
        return self.ask("GET", path, **options)

    def metric(self, name: str) -> float:
        """Returns the value of a line of /metrics, whose name includes the labels."""
        text = self.get("/metrics").body
        return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))

    def stop(self, number: int = signal.SIGTERM, seconds: float = 60) -> int:
        self.process.send_signal(number)
        return self.process.wait(seconds)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


def together(count: int, work) -> None:
    """Calls `work(number)` in so many threads; raises what the first of them raised."""
    wrong: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as problem:
            wrong.append(problem)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong:
        raise wrong[0]


def eventually(check, seconds: float = 30) -> None:
    """Waits until `check()` is true."""
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, check
        time.sleep(0.02)


def write_classifier(workdir: Path, step: int = 5, change=lambda parameters: parameters):
    return fine_tuned(workdir / "checkpoints" / str(step), classify.get_config(), CLASSES, change, step)


def write_several(workdir: Path) -> None:
    """A model of the tasks ner and squad."""
    config = finetune.get_config("multitask", "mean")
    add_entry(config, "tasks.ner", task="tagging", data={"text": "0", "label": "-1", "long_texts": "windows"})
    add_entry(config, "tasks.squad", task="span_qa", data={"max_query_length": 4, "window_stride": 4})
    known = {
        "ner": {"task": "tagging", "description": {"labels": ["O", "B-X", "I-X"], "characters": False}},
        "squad": {"task": "span_qa", "description": {"may_have_no_answer": False, "threshold": 0.0}},
    }

    def every_word(parameters):
        """Returns parameters with which every word is an entity."""
        return parameters | {"heads/ner/classifier/bias": np.asarray([-99.0, 0.0, 0.0], np.float32)}

    fine_tuned(workdir / "checkpoints" / "5", config, {"tasks": known}, every_word)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Workdirs: sst2 (three classes), several, mlm and writer."""
    folder = tmp_path_factory.mktemp("served")
    write_classifier(folder / "sst2")
    write_several(folder / "several")
    writes = translate.get_config()
    writes.data.target_length = 6
    fine_tuned(folder / "writer" / "checkpoints" / "5", writes, {})
    pretrained(folder / "mlm" / "checkpoints" / "3")
    return {name: folder / name for name in ("sst2", "several", "mlm", "writer")}


@pytest.fixture(scope="session")
def server(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory):
    """One server of all models, whose limits are small enough to meet them."""
    words = [f"{name}={path}" for name, path in models.items()]
    limits = [
        "--max_body_bytes=200000",
        "--max_inputs=100",
        "--max_input_tokens=3000",
        "--client_seconds=2",
        "--max_queue_tokens=80000",
    ]
    found = Server(*words, *limits, "--lengths=32", "--batch_size=4", log=tmp_path_factory.mktemp("server") / "log")
    found.schema = found.get("/openapi.json").body
    yield found
    found.kill()
