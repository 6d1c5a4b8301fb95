"""What the application does without a model: how answers are written, and who is no longer there."""

import asyncio
import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from starlette.requests import Request

from bert_jax.serve import app
from bert_jax.serve.bodies import Refused
from bert_jax.serve.routes import ROUTES


def test_a_long_answer_is_written_beside_the_event_loop():
    places = []

    def write():
        places.append(threading.get_ident())
        return app._json_list([{"x": float(value)} for value in np.float32([1.5, np.nan])])

    written = [asyncio.run(app._written(count, write)) for count in (1, 1024)]
    assert [json.loads(one) for one in written] == [[{"x": 1.5}, {"x": None}]] * 2
    assert places[0] == threading.get_ident() != places[1]


def test_tokens_are_not_listed_for_a_client_that_left():
    async def receive():
        return {"type": "http.disconnect"}

    tokenize = next(route for route in ROUTES if route.name == "tokenize")
    run = SimpleNamespace(run=lambda *_: pytest.fail("nobody waits for it"))
    server = app._Server(app.State({}, frozenset()))
    with pytest.raises(Refused) as left:
        asyncio.run(server._queued(Request({"type": "http"}, receive), None, run, tokenize, ["a"], [3]))
    assert left.value.status == 499
