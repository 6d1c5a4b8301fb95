"""From start to stop: what is wrong at the start is one line, and no request is lost at a reload or a stop."""

import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from bert_jax.config import UserError
from bert_jax.serve.__main__ import main

from .conftest import ROOT, Server, eventually, together, write_classifier

QUICK = ("--lengths=24", "--attention=False", "--reload_seconds=1")
TOKEN = "0123456789abcdef"
GIVEN = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def served(tmp_path):
    """A server of a workdir that may be changed: `served(...)` starts it with further flags."""
    started = []

    def start(*words, wait=True):
        started.append(Server(f"sst2={tmp_path / 'run'}", *QUICK, *words, log=tmp_path / "log", wait=wait))
        return started[-1]

    write_classifier(tmp_path / "run")
    yield start
    for one in started:
        one.kill()


def other(parameters):
    """Returns parameters with which every text is of the last class."""
    changed = dict(parameters)
    changed["heads/classifier/bias"] = np.asarray([-99.0, -99.0, 99.0], np.float32)
    return changed


class Clients:
    """Clients that ask one after the other until they are stopped; every answer is kept."""

    def __init__(self, server, count=4):
        self.answers, self.refused, self._ends = [], [], threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(server, number)) for number in range(count)]
        for thread in self._threads:
            thread.start()

    def _ask(self, server, number):
        while not self._ends.is_set():
            try:
                self.answers.append(server.post("/predict", {"inputs": ["a b", "c"]}))
            except OSError as problem:  # nobody listens any more
                self.refused.append(problem)
                return
            time.sleep(0.005)

    def stop(self):
        self._ends.set()
        for thread in self._threads:
            thread.join()


def test_a_newer_checkpoint_takes_over_a_vanished_one_stays_and_no_request_is_lost_until_the_stop(served, tmp_path):
    server = served("--batch_tokens=8")
    clients = Clients(server)
    eventually(lambda: len(clients.answers) > 20)
    write_classifier(tmp_path / "new", 9, other)
    (tmp_path / "new" / "checkpoints" / "9").rename(tmp_path / "run" / "checkpoints" / "9")
    eventually(lambda: clients.answers[-1].headers["x-checkpoint-step"] == "9", 120)
    count = len(clients.answers)
    shutil.rmtree(tmp_path / "run")
    eventually(lambda: len(clients.answers) > count + 50)
    clients.stop()
    assert {answer.status for answer in clients.answers} == {200} and not clients.refused
    for answer in clients.answers:
        is_new = answer.headers["x-checkpoint-step"] == "9"
        assert not is_new or {one["label"] for one in answer.body} == {"good"}
    assert {one["label"] for one in clients.answers[0].body} != {"good"}
    assert server.metric("bert_checkpoint_step") == 9
    stopping_under_load_answers_what_was_taken(server)


def stopping_under_load_answers_what_was_taken(server):
    clients = Clients(server, 8)
    eventually(lambda: len(clients.answers) > 50)
    status = server.stop()
    clients.stop()
    assert status == 0
    # Whatever got an answer got a whole one: the result, or that the server is stopping.
    assert {answer.status for answer in clients.answers} <= {200, 503}
    assert all(len(answer.body) == 2 for answer in clients.answers if answer.status == 200)
    assert len(clients.refused) == 8
    assert "Traceback" not in server.log.read_text()


def test_before_it_is_ready_it_says_so_and_stops_at_once(served):
    server = served(wait=False)
    eventually(lambda: "so the newest one is taken" in server.log.read_text(), 120)
    server.process.send_signal(signal.SIGHUP)  # while the model is read
    listening = "listening on http://127.0.0.1:"
    eventually(lambda: server.process.poll() is not None or f"{listening}" in server.log.read_text(), 120)
    server.port = int(re.search(rf"{listening}(\d+)", server.log.read_text())[1])
    answers = [server.get("/health/ready"), server.post("/predict", {"inputs": ["a"]}), server.get("/health/live")]
    if answers[0].status == 503:  # unless it was faster than we
        assert answers[0].body["error"]["type"] == "unavailable" and answers[1].headers["retry-after"]
    assert answers[2].status == 200
    assert server.stop() == 0


SLOW = """
import time
from types import SimpleNamespace
from bert_jax.command import log_to_stderr
from bert_jax.serve.app import State
from bert_jax.serve.routes import ROUTES
from bert_jax.serve.server import listen, serve
from bert_jax.serve.worker import Worker

class Slow(SimpleNamespace):
    __hash__ = object.__hash__

served = Slow(tokens=lambda call: [2], costs=lambda route, tokens: tokens)
slot = Slow(name="slow", route=lambda *_: (served, ROUTES[0]), worker=None)

log_to_stderr()

def prepare():
    options = {"batch_tokens": 9, "queue_tokens": 9, "wait": 0, "observe": print}
    slot.worker = Worker(lambda *_: time.sleep(60), **options)

with listen("127.0.0.1", 0) as where:
    serve(State({"slow": slot}, frozenset()), where, prepare, stop=30, reload=0)
"""


def test_a_second_signal_ends_at_once_with_an_answer(tmp_path, request):
    server = Server("-c", SLOW, log=tmp_path / "log")
    request.addfinalizer(server.kill)
    answers = []
    client = threading.Thread(target=lambda: answers.append(server.post("/predict", {"inputs": ["a"]})))
    client.start()
    eventually(lambda: server.metric("bert_active_requests") == 2)  # one is this
    start = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    eventually(lambda: "stopping" in server.log.read_text())
    assert server.stop() == 0 and time.monotonic() - start < 20
    client.join()
    assert (answers[0].status, answers[0].body["error"]["type"]) == (503, "unavailable")
    assert "Traceback" not in server.log.read_text()


@pytest.fixture(scope="module")
def limited(models, tmp_path_factory):
    """A server with a token and narrow limits."""
    folder = tmp_path_factory.mktemp("limited")
    (folder / "token").write_text(TOKEN + "\n")
    limits = ["--max_queue_tokens=60", "--batch_tokens=30", "--max_requests=12"]
    words = [f"sst2={models['sst2']}", *QUICK, *limits, f"--token_file={folder / 'token'}"]
    server = Server(*words, log=folder / "log")
    yield server
    server.kill()


def test_a_token_opens_everything_but_probes_and_the_empty_page(limited):
    for path in ("/models", "/metrics", "/openapi.json"):
        assert limited.get(path).status == 401
        assert limited.get(path, **GIVEN).status == 200
    for wrong in ({}, {"Authorization": TOKEN}, {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": "Bearer é"}):
        answer = limited.post("/predict", {"inputs": ["a"]}, **wrong)
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert limited.post("/predict", {"inputs": ["a"]}, Authorization=f"bearer {TOKEN}").status == 200
    assert [limited.get(path).status for path in ("/", "/health", "/health/live", "/health/ready")] == [200] * 4
    assert TOKEN not in limited.get("/").body and TOKEN not in limited.log.read_text()


def test_too_much_at_a_time_is_429_and_nothing_grows(limited):
    statuses = []

    def client(number):
        for _ in range(10):
            answer = limited.post("/predict", {"inputs": ["a b c"] * 10}, **GIVEN)
            statuses.append(answer.status)
            if answer.status == 429:
                assert int(answer.headers["retry-after"]) >= 1 and answer.body["error"]["type"] == "overloaded"

    together(24, client)
    assert set(statuses) == {200, 429} and len(statuses) == 240
    eventually(lambda: '\nbert_queue_tokens{model="sst2"} 0.0\n' in limited.get("/metrics", **GIVEN).body)
    assert limited.post("/predict", {"inputs": ["a"]}, **GIVEN).status == 200


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no model is named"),
        (["{run}", "--port=x"], "--port is 'x'"),
        (["{run}", "a={run}", "a={run}"], "have one name, 'a'"),
        (["a b={run}"], "'a b' cannot be the name of a model"),
        (["{run}", "--lengths=16,x"], "--lengths has 'x'; it must be numbers of tokens"),
        (["{run}", "--options=generate.beam=4"], "generate.beam is not an option; the nearest is generate.beams"),
        (["{run}", "--options=model.hidden_size=4"], "model.hidden_size cannot be set here"),
        (["{run}", "--token_file={run}/none"], "none cannot be read (No such file or directory)"),
        (["{run}", "--token_file={run}/short"], "the token must have 16 or more letters"),
        (["{run}", "--port={taken}"], "--host=127.0.0.1 --port={taken}: Address already in use; choose another"),
        (["{run}", "--port=70000"], "--port=70000: there is no such port; choose another"),
        (["{run}", "--host=256.0.0.1"], "--host=256.0.0.1 --port=8000"),
        (["{run}/nothing", "--port=0"], "nothing"),
        (["{run}", "--port=0", "--checkpoint=77"], "has no checkpoint of step 77; it has 5"),
        (["{run}", "--prot=0"], "--prot is not a flag; did you mean --port?"),
    ],
)
def test_what_is_wrong_at_the_start_is_one_line(models, tmp_path, words, message):
    run = tmp_path / "run"
    shutil.copytree(models["sst2"], run)
    (run / "short").write_text("abc")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        names = {"run": run, "taken": taken.getsockname()[1]}
        with pytest.raises(UserError) as error:
            main([word.format(**names) for word in words])
    assert message.format(**names) in str(error.value) and "\n" not in str(error.value)


def test_without_the_extra_it_is_one_line(tmp_path):
    code = "import sys; sys.modules['uvicorn'] = None; sys.argv = ['x', 'runs/a']; "
    code += "from bert_jax.serve.__main__ import main; from bert_jax.command import run_command; run_command(main)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr == "error: the server needs the extra serve: pip install -e '.[serve]'\n"
