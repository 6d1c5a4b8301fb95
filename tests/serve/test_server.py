"""A real server: answers are those of the model, whatever else is asked at the same time and however badly."""

import asyncio
import base64
import contextlib
import functools
import json
import random
import socket
import time

import numpy as np
import pytest
import uvicorn
from uvicorn.server import ServerState

import bert_jax
from bert_jax.serve import server as serving

from .conftest import Server, eventually, together

TEXTS = ["good", "a b c bad", "z " * 15 + "good", "m n", "[SEP] x", "q w e r t y " * 8]


@pytest.fixture(scope="module")
def loaded(models):
    several = {name: bert_jax.load(models["several"], task_name=name) for name in ("ner", "squad")}
    return {name: bert_jax.load(path) for name, path in models.items()} | several


def scores(model, texts):
    return [{name: x for name, x in one.items() if name != "table"} for one in model.score(texts, by_token=True)]


def close_to(found, expected):
    """Returns whether two values of JSON are equal, numbers but for roundings."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(close_to(found[name], x) for name, x in expected.items())
    if isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(close_to, found, expected))
    if isinstance(expected, float):
        return found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    return found == expected


def test_each_route_answers_as_the_model_does(server, loaded):
    asked = {"question": "a b", "context": "c d e f good"}
    for model, route, inputs, expected in (
        ("sst2", "predict", TEXTS, loaded["sst2"].predict(TEXTS)),
        ("ner", "predict", TEXTS[:3], loaded["ner"].predict(TEXTS[:3])),
        ("squad", "predict", [asked | {"id": "q7"}], loaded["squad"].predict([asked | {"id": "q7"}])),
        ("writer", "generate", TEXTS[:2], loaded["writer"].generate(TEXTS[:2])),
        ("mlm", "embed", TEXTS[:3], [x.tolist() for x in loaded["mlm"].embed(TEXTS[:3], normalize=True)]),
        ("mlm", "score", TEXTS[:2], scores(loaded["mlm"], TEXTS[:2])),
    ):
        name = {"model": "several", "task_name": model} if model in ("ner", "squad") else {"model": model}
        answer = server.post(f"/{route}", name | {"inputs": inputs})
        assert answer.status == 200, answer
        assert close_to(answer.body, expected), (model, route)
        assert answer.headers["x-model"] == name["model"]
        assert answer.headers["x-checkpoint-step"] == ("3" if model == "mlm" else "5")


def test_an_id_comes_back_with_its_answer(server, loaded):
    inputs = [{"text": "good", "id": "a"}, "bad", {"text": "c", "id": 7}, {"text": "d", "id": {"x": 1}}]
    found = server.post("/predict", {"model": "sst2", "inputs": inputs}).body
    assert [one.get("id") for one in found] == ["a", None, 7, None]
    assert close_to(found[0], {"id": "a"} | loaded["sst2"].predict("good"))


def test_tasks_of_one_model_share_its_encoder(server, loaded):
    expected = loaded["ner"].embed(["a b"], normalize=True)
    for task in (None, "ner", "squad"):
        found = server.post("/embed", {"model": "several", "task_name": task, "inputs": ["a b"]})
        np.testing.assert_allclose(found.body, expected, atol=1e-5)
    for body, status, message in (
        ({}, 422, '"task_name" is missing; for /predict it can be ner, squad'),
        ({"task_name": "x"}, 404, "the model 'several' has no task 'x'; it has ner, squad"),
        ({"task_name": 3}, 422, '"task_name" is a number; it must be the name of a task'),
        ({"task_name": "ner", "model": "sst2"}, 404, "the model 'sst2' has no task 'ner'; it has one task, which"),
    ):
        answer = server.post("/predict", {"model": "several", "inputs": ["a"]} | body)
        assert (answer.status, message in answer.body["error"]["message"]) == (status, True), answer
    no_route = server.post("/generate", {"model": "several", "task_name": "ner", "inputs": ["a"]})
    assert (no_route.status, no_route.body["error"]["type"]) == (404, "not_found")
    assert "the task 'ner' of the model 'several' has no /generate" in no_route.body["error"]["message"]


def test_parameters_change_what_is_shown(server, loaded):
    answer = server.post(
        "/fill_mask", {"model": "mlm", "inputs": ["a [MASK] b [MASK]"] * 2, "parameters": {"top_k": 3}}
    )
    expected = loaded["mlm"].fill_mask("a [MASK] b [MASK]", top_k=3)
    for found in answer.body:
        assert close_to([[(x["token"], x["probability"]) for x in one] for one in found["masks"]], expected)
    many = server.post("/fill_mask", {"model": "mlm", "inputs": "[MASK] " * 11})
    assert [len(one) for one in many.body[0]["masks"]] == [5] * 11
    plain = server.post("/embed", {"model": "mlm", "inputs": "a b", "normalize": False}).body[0]
    assert close_to(plain, loaded["mlm"].embed("a b").tolist())
    table = server.post("/score", {"model": "mlm", "inputs": "a b", "by_token": True}).body[0]["table"]
    assert [row["token"] for row in table] == ["a", "b"]
    tokens = server.post("/tokenize", {"model": "mlm", "inputs": "Goods b", "add_special_tokens": False}).body[0]
    assert [(t["text"], t["start"], t["stop"]) for t in tokens] == [("good", 0, 4), ("##s", 4, 5), ("b", 6, 7)]


def test_the_forms_of_others(server, loaded):
    expected = loaded["sst2"].embed(["a", "b c"], normalize=True)
    bare = server.post(
        "/embed", {"inputs": ["a", "b c"], "model": "sst2", "truncate": True}
    )  # text-embeddings-inference
    np.testing.assert_allclose(bare.body, expected, atol=1e-5)
    numbers = server.post("/v1/embeddings", {"input": ["a", "b c"], "model": "sst2", "encoding_format": "float"}).body
    assert (numbers["object"], numbers["model"]) == ("list", "sst2")
    assert numbers["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    assert [(one["object"], one["index"]) for one in numbers["data"]] == [("embedding", 0), ("embedding", 1)]
    np.testing.assert_allclose([one["embedding"] for one in numbers["data"]], expected, atol=1e-5)
    packed = server.post("/v1/embeddings", {"input": "a", "model": "sst2", "encoding_format": "base64"}).body
    vector = np.frombuffer(base64.b64decode(packed["data"][0]["embedding"]), "<f4")
    np.testing.assert_allclose(vector, expected[0], atol=1e-5)
    wrong = server.post("/v1/embeddings", {"input": ["a", 3], "model": "sst2"})
    assert (wrong.status, wrong.body["error"]["type"]) == (422, "invalid_input")
    assert server.post("/v1/embeddings", {"input": "a", "model": "sst2", "dimensions": 3}).status == 422
    assert [one["id"] for one in server.get("/v1/models").body["data"]] == ["sst2", "several", "mlm", "writer"]


def test_one_bad_input_fails_alone_under_its_own_number(server, loaded):
    answer = server.post("/predict", {"model": "sst2", "inputs": ["good", 3, "a \ud800", {"other": "x"}, "bad"]})
    assert answer.status == 200
    assert close_to([answer.body[0], answer.body[4]], loaded["sst2"].predict(["good", "bad"]))
    messages = [answer.body[i]["error"]["message"] for i in (1, 2, 3)]
    assert messages[0].startswith("input 1 is a number") and messages[1].startswith("input 2 is not Unicode")
    assert messages[2].startswith("input 3: ") and "'text'" in messages[2]
    same = server.post("/predict", {"model": "sst2", "inputs": ["go\0od", "good"]}).body
    assert same[0] == same[1]  # BERT's tokenizer drops NUL, as all control characters
    only = server.post("/predict", {"model": "sst2", "inputs": [None]})
    assert (only.status, only.body["error"]["type"]) == (422, "invalid_input")
    cut = server.post("/predict", {"model": "sst2", "inputs": ["good " * 40]})
    assert cut.status == 200 and "lose tokens" not in server.log.read_text()  # clients must not fill the log
    long = server.post("/embed", {"model": "mlm", "inputs": ["a " * 40, "b"], "truncate": False}).body
    assert long[0]["error"] == {"type": "too_large", "message": "input 0 has 42 tokens; the model takes 32"}
    assert len(long[1]) == 16


def test_no_answer_goes_to_another_under_many_clients(server, loaded):
    """Every client knows the answers of its own texts; some send bad inputs, some leave before the answer."""
    words = "abcdefghijklmnopqrstuvwxyz"
    rows = [f"{a} {b} good" for a in words for b in words]
    expected = dict(zip(rows, (x["probabilities"] for x in loaded["sst2"].predict(rows)), strict=True))
    vectors = dict(zip(rows, loaded["sst2"].embed(rows, normalize=True), strict=True))

    def client(number):
        choose, connection = random.Random(number), server.connect()
        for turn in range(12):
            inputs = [choose.choice(rows) for _ in range(choose.choice([1, 1, 1, 2, 7, 40]))]
            if turn % 4 == 3:
                leave(server, inputs)
            if turn % 2:
                found = server.post("/embed", {"model": "sst2", "inputs": inputs}, connection=connection)
                np.testing.assert_allclose(found.body, [vectors[text] for text in inputs], atol=1e-5)
            else:
                bad = choose.randrange(len(inputs) + 1)
                found = server.post(
                    "/predict", {"model": "sst2", "inputs": [*inputs[:bad], 3, *inputs[bad:]]}, connection=connection
                )
                error = found.body.pop(bad)
                assert error["error"]["message"].startswith(f"input {bad} is a number")
                assert all(close_to(x["probabilities"], expected[t]) for x, t in zip(found.body, inputs, strict=True))
        connection.close()

    together(16, client)
    eventually(lambda: server.metric("bert_queue_tokens") == 0 and server.metric("bert_active_requests") == 1)
    batched = server.metric('bert_batch_inputs_sum{model="sst2",route="predict"}')
    assert batched > server.metric('bert_batch_inputs_count{model="sst2",route="predict"}')


def leave(server: Server, inputs):
    body = json.dumps({"model": "sst2", "inputs": inputs}).encode()
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(head("/predict", len(body)) + body)


def head(path, length, host="127.0.0.1"):
    lines = f"POST {path} HTTP/1.1", f"Host: {host}", "Content-Type: application/json", f"Content-Length: {length}"
    return "\r\n".join((*lines, "", "")).encode()


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "message"),
    [
        ("POST", "/predict", b"{", {}, 400, "the body is not JSON"),
        ("POST", "/predict", b"\0", {}, 400, "the body is not JSON"),
        ("POST", "/predict", {"inputs": "a"}, {}, 422, '"model" is missing; it can be sst2, several, mlm, writer'),
        ("POST", "/predict", {"inputs": "a", "model": "../x"}, {}, 404, "there is no model '../x'; there are sst2"),
        (
            "POST",
            "/predict",
            {"inputs": "a", "model": "mlm"},
            {},
            404,
            "'mlm' has no /predict; it has /embed, /fill_mask",
        ),
        (
            "POST",
            "/predict",
            {"inputs": ["a"] * 10_000, "model": "sst2"},
            {},
            413,
            "there are 10000 inputs; this server takes 100",
        ),
        (
            "POST",
            "/predict",
            {"inputs": "a " * 90_000, "model": "sst2"},
            {},
            413,
            "input 0 has 90002 tokens; this server takes 3000",
        ),
        (
            "POST",
            "/predict",
            {"inputs": "a" * 1_000_000},
            {},
            413,
            "the body has 1000014 bytes; this server takes 200000",
        ),
        ("POST", "/predict", {"inputs": "a"}, {"Content_Type": "text/plain"}, 415, "must be application/json"),
        (
            "POST",
            "/score",
            {"inputs": "a " * 2000, "model": "mlm"},
            {},
            413,
            "costs 4008004 tokens; the queue holds 80000",
        ),
        (
            "POST",
            "/tokenize",
            {"inputs": ["a " * 1500] * 60, "model": "mlm"},
            {},
            413,
            "the request has 90120 tokens; this server takes 80000: split it",
        ),
        (
            "POST",
            "/attention",
            {"inputs": ["a " * 60] * 30, "model": "mlm"},
            {},
            413,
            "costs 115320 tokens; the queue holds 80000",
        ),
        ("POST", "/predict/", {"inputs": "a"}, {}, 404, "there is no such path"),
        ("GET", "/predict", None, {}, 405, "another method is needed"),
        ("POST", "/", {"inputs": "a"}, {}, 405, "another method is needed"),
        ("GET", "/../../etc/passwd", None, {}, 404, "there is no such path"),
        ("GET", "/models", None, {"Host": "evil.example:80"}, 421, "names another machine"),
    ],
)
def test_what_is_refused_and_the_server_lives(server, method, path, body, headers, status, message):
    answer = server.ask(method, path, body, **headers)
    assert (answer.status, message in answer.body["error"]["message"]) == (status, True), answer
    assert set(answer.body["error"]) == {"type", "message"}
    assert server.post("/predict", {"model": "sst2", "inputs": ["good"]}).status == 200


def test_slow_and_silent_clients_do_not_stay(server):
    """Nothing, half of a head, half of a body, more of a body after its request was refused: each is closed after
    --client_seconds, and others are served."""
    started, body = time.monotonic(), b'{"inputs": ["a"], "model": "sst2"}'
    starts = (b"", b"POST /predict HTTP/1.1\r\nHost: ", head("/predict", len(body)) + body[:9])
    clients = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in starts]
    for client, start in zip(clients, starts, strict=True):
        client.sendall(start)
    refused = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    refused.sendall(head("/nowhere", 1000))
    assert b" 404 " in refused.recv(65536)
    refused.sendall(b"x")
    assert server.post("/predict", {"model": "sst2", "inputs": ["good"]}).status == 200
    found = []
    for client in clients:
        received = b""
        try:
            while piece := client.recv(65536):
                received += piece
                if b"error" in received:
                    break
        except ConnectionResetError:
            pass
        found.append(received)
        client.close()
    with refused, contextlib.suppress(ConnectionResetError):
        while refused.recv(65536):  # raises if it is held
            pass
    assert found[:2] == [b"", b""] and b" 408 " in found[2] and b"within 2 seconds" in found[2]
    assert 1.5 < time.monotonic() - started < 20


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\r\n\r\n",  # the begin of TLS
        b"GET /models HTTP/1.1\r\n\r\n",  # no header Host
        head("/predict", -5),
        head("/predict", "5\r\nContent-Length: 6") + b"abcdef",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000,
        head("/predict", 0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked") + b"x\r\n\r\n",
    ],
)
def test_what_is_no_http_is_answered_in_json(server, sent):
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(sent)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := client.recv(65536):
                answer += piece
    start, _, body = answer.partition(b"\r\n\r\n")
    assert start.startswith(b"HTTP/1.1 400 ") and json.loads(body)["error"]["type"] == "bad_request", answer
    assert server.get("/health/live").status == 200


def test_one_connection_too_many_is_refused_in_json(monkeypatch):
    """In this process, where few are too many; then one leaves, and the next is served."""
    monkeypatch.setattr(serving, "_MOST_CONNECTIONS", 2)

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async def begin_of_answer(reader):
        return (await asyncio.wait_for(reader.read(4096), 20)).decode()

    async def run():
        config = uvicorn.Config(app, http=serving._protocol(20), lifespan="off", log_config=None)
        config.load()
        state, protocol = ServerState(), config.http_protocol_class
        loop = asyncio.get_running_loop()
        make = functools.partial(protocol, config=config, server_state=state, app_state={})
        async with await loop.create_server(make, "127.0.0.1", 0) as listening:
            port = listening.sockets[0].getsockname()[1]
            clients = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
            refused = await begin_of_answer(clients[2][0])
            assert not await clients[2][0].read()  # closed
            clients[0][1].close()
            while len(state.connections) > 1:
                await asyncio.sleep(0.01)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            served = await begin_of_answer(reader)
            for _, one in [*clients, (reader, writer)]:
                one.close()
            return refused, served

    refused, served = asyncio.run(run())
    assert refused.startswith("HTTP/1.1 503 ") and served.startswith("HTTP/1.1 204 ")
    assert json.loads(refused.partition("\r\n\r\n")[2])["error"] == {
        "type": "unavailable",
        "message": "there are 2 connections already; try again later",
    }


def test_other_protocols_are_not_spoken_and_not_logged(server):
    for name in ("h2c", "websocket"):
        assert server.get("/health/live", Connection="Upgrade", Upgrade=name).status == 200
    assert "pgrade" not in server.log.read_text()


def test_a_declared_length_is_refused_before_the_body_comes(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(head("/predict", 10**12))
        assert b" 413 " in client.recv(65536)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:  # none is declared: in chunks
        client.sendall(head("/predict", 0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked"))
        chunk = b"%x\r\n" % 60_000 + b" " * 60_000 + b"\r\n"
        client.sendall(chunk * 4)
        assert b" 413 " in client.recv(65536)


def test_the_schema_describes_what_there_is(server):
    schema = server.get("/openapi.json").body
    assert schema["openapi"].startswith("3.1")
    assert {"/predict", "/embed", "/fill_mask", "/generate", "/score", "/tokenize", "/v1/embeddings"} <= set(
        schema["paths"]
    )
    body = schema["paths"]["/fill_mask"]["post"]["requestBody"]["content"]["application/json"]
    top_k = body["schema"]["properties"]["parameters"]["properties"]["top_k"]
    assert (top_k["type"], top_k["default"], top_k["minimum"], top_k["maximum"]) == ("integer", 5, 1, 50)
    answer = server.post("/fill_mask", body["example"] | {"model": "mlm"})
    assert answer.status == 200
    docs = server.get("/docs")
    assert (
        docs.status == 200
        and "POST /fill_mask" in docs.body
        and "http" not in docs.body.replace("http://127.0.0.1", "")
    )
    known = server.get("/models").body
    assert [(one["name"], one["input_columns"]) for one in known[:2]] == [("sst2", ["text"]), ("several", [])]
    tasks = {name: (one["input_columns"], "predict" in one["routes"]) for name, one in known[1]["tasks"].items()}
    assert tasks == {"ner": (["0"], True), "squad": (["question", "context"], True)}
    assert "predict" not in known[1]["routes"] and "embed" in known[1]["tasks"]["ner"]["routes"]
    assert "/tmp" not in json.dumps(known)


def test_metrics_count_what_happened(server):
    before = server.metric('bert_requests_total{model="several",route="predict",status="200"}')
    for _ in range(3):
        server.post("/predict", {"model": "several", "task_name": "ner", "inputs": ["a b"]})
    server.post("/predict", {"model": "several", "task_name": "ner", "inputs": [1]})
    assert server.metric('bert_requests_total{model="several",route="predict",status="200"}') == before + 3
    assert server.metric('bert_requests_total{model="several",route="predict",status="422"}') >= 1
    assert server.metric('bert_request_seconds_count{model="several",route="predict"}') >= 3
    assert server.metric('bert_checkpoint_step{model="several"}') == 5
    server.post("/nowhere", {})
    assert "nowhere" not in server.get("/metrics").body
