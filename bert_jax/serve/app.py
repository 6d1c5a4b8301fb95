"""The application: who may ask, how much at a time, and what an answer looks like."""

import asyncio
import base64
import contextlib
import hmac
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route as Path

from bert_jax.config import Json, UserError
from bert_jax.inference.encode import InputError
from bert_jax.inference.output import json_line
from bert_jax.serve.bodies import Call, Limits, Refused, read_call, read_json, texts_of
from bert_jax.serve.documents import EMBEDDINGS, documentation, openapi, page, policy
from bert_jax.serve.metrics import Metrics
from bert_jax.serve.routes import ROUTES, Route, unit
from bert_jax.serve.served import Served, Slot, described
from bert_jax.serve.worker import Job

_LONG = 4000  # characters from which a request is tokenized in a thread: its tokens take more than a millisecond
_MANY = 8  # elements of an answer from which it is written in a thread: a vector takes up to a millisecond
_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}

_Handler = Callable[[Request], Awaitable[Response]]


@dataclass
class State:
    """What requests share. `hosts` are the names by which the server may be called; empty for any."""

    slots: dict[str, Slot]
    hosts: frozenset[str]
    limits: Limits = field(default_factory=Limits)
    token: str = ""
    metrics: Metrics = field(default_factory=Metrics)
    is_ready: bool = False
    is_stopping: bool = False
    active: int = 0


def make_app(state: State) -> Starlette:
    """Returns the ASGI application that answers for these models."""
    server = _Server(state)
    posts = {f"/{route.name}": server.model_route(route) for route in ROUTES}
    posts["/v1/embeddings"] = server.openai_embeddings
    gets: dict[str, _Handler] = {
        "/models": server.models,
        "/v1/models": server.openai_models,
        "/metrics": server.metrics,
        "/openapi.json": server.openapi,
    }
    paths = [Path(path, server.guarded(path, handler), methods=["POST"]) for path, handler in posts.items()]
    paths += [Path(path, server.guarded(path, handler), methods=["GET"]) for path, handler in gets.items()]
    # Without a token: they say nothing of a model, and probes and browsers have none to send.
    opened = {"/": server.page, "/docs": server.docs, "/health/live": server.live, "/health/ready": server.ready}
    opened["/health"] = server.ready  # where text-embeddings-inference has it
    paths += [Path(path, server.on_this_host(handler), methods=["GET"]) for path, handler in opened.items()]
    state.metrics.watch_active(lambda: state.active)
    handlers: dict[Any, Any] = {HTTPException: _http_error, Refused: _refused, Exception: _bug}
    app = Starlette(routes=paths, exception_handlers=handlers)
    app.router.redirect_slashes = False  # a redirection would name the host that the client did, whichever it is
    return app


class _Server:
    def __init__(self, state: State):
        self._state = state
        # Lists of tokens take a hundred times the memory of their texts, and need no batch: two at a time.
        self._few = asyncio.Semaphore(2)

    def model_route(self, route: Route) -> _Handler:
        """Returns the handler of a route, whose answer is a list with an element for each input."""

        async def answer(request: Request) -> Response:
            call = read_call(await read_json(request, self._limits), route.parameters, self._limits)
            (name, step), results, _ = await self._run(request, route.name, call)
            content = await _written(len(results), lambda: _json_list(_shown(route, results, call)))
            return _Answer(content + b"\n", name, step)

        return answer

    async def openai_embeddings(self, request: Request) -> Response:
        call = read_call(await read_json(request, self._limits), EMBEDDINGS, self._limits, key="input")
        (name, step), results, tokens = await self._run(request, "embed", call)
        if wrong := next((x for x in results if isinstance(x, UserError | Refused)), None):
            raise wrong if isinstance(wrong, Refused) else Refused(422, str(wrong))
        vectors = [x for x in results if isinstance(x, np.ndarray)]
        if (dimensions := call.parameters["dimensions"]) not in (None, len(vectors[0])):
            raise Refused(422, f"dimensions is {dimensions}; vectors of this model have {len(vectors[0])}")
        as_text = call.parameters["encoding_format"] == "base64"
        data = (
            {"object": "embedding", "index": i, "embedding": _encoded(x) if as_text else unit(x).tolist()}
            for i, x in enumerate(vectors)
        )
        written = await _written(len(vectors), lambda: _json_list(data))
        usage = {"prompt_tokens": sum(tokens), "total_tokens": sum(tokens)}
        rest = json_line({"object": "list", "model": name, "usage": usage})
        return _Answer(b'{"data": ' + written + b", " + rest[1:], name, step)

    async def models(self, request: Request) -> Response:
        return JSONResponse([described(slot) for slot in self._state.slots.values()])

    async def openai_models(self, request: Request) -> Response:
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "bert_jax"} for name in self._state.slots]
        return JSONResponse({"object": "list", "data": data})

    async def metrics(self, request: Request) -> Response:
        return Response(self._state.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(openapi(list(self._state.slots), self._state.limits, bool(self._state.token)))

    async def page(self, request: Request) -> Response:
        return HTMLResponse(page(), headers={"Content-Security-Policy": policy()})

    async def docs(self, request: Request) -> Response:
        text = documentation(list(self._state.slots), self._state.limits, bool(self._state.token))
        return HTMLResponse(text, headers={"Content-Security-Policy": policy()})

    async def live(self, request: Request) -> Response:
        workers = [slot.worker for slot in self._state.slots.values() if slot.worker is not None]
        if all(worker.is_alive for worker in workers):
            return JSONResponse({"status": "live"})
        raise Refused(503, "a thread that runs a model has ended; start the server again")

    async def ready(self, request: Request) -> Response:
        self._check_ready()
        return JSONResponse({"status": "ready"})

    def guarded(self, path: str, handler: _Handler) -> _Handler:
        """Returns the handler behind the checks that all have: host, token, readiness, number of requests. What
        happened is counted."""
        state, name = self._state, path[1:]

        async def checked(request: Request) -> Response:
            start, status = time.perf_counter(), 500
            state.active += 1
            try:
                self._check_token(request)
                if request.method == "POST":
                    self._check_ready()
                    if state.active > state.limits.requests:
                        raise Refused(429, f"{state.limits.requests} requests are being answered; try again later", 1)
                response = await handler(request)
                status = response.status_code
                return response
            except Refused as refused:
                status = refused.status
                raise
            except asyncio.CancelledError:
                status = 503
                raise Refused(status, "the server has stopped before this was answered", 1) from None
            finally:
                state.active -= 1
                model = getattr(request.state, "model", "")
                state.metrics.request(model, name, status, time.perf_counter() - start)

        return self.on_this_host(checked)

    def on_this_host(self, handler: _Handler) -> _Handler:
        """Returns the handler for requests that call the server by one of its names: a page of a name that was rebound
        to this machine does not."""

        async def checked(request: Request) -> Response:
            host, hosts = request.headers.get("host", ""), self._state.hosts
            name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
            if hosts and name.lower() not in hosts:
                raise Refused(421, "the header Host names another machine; --allowed_hosts adds names")
            response = await handler(request)
            response.headers.update(_HEADERS)
            return response

        return checked

    @property
    def _limits(self) -> Limits:
        return self._state.limits

    def _check_token(self, request: Request) -> None:
        if not self._state.token:
            return
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        expected = self._state.token.encode()
        if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode("latin-1"), expected):
            raise Refused(401, "the header Authorization must be 'Bearer' and the token of this server")

    def _check_ready(self) -> None:
        if self._state.is_stopping:
            raise Refused(503, "the server is stopping", 1)
        if not self._state.is_ready:
            raise Refused(503, "the server is not ready yet: programs are being compiled", 5)

    def _slot(self, name: str) -> Slot:
        slots = self._state.slots
        if not name and len(slots) > 1:
            raise Refused(422, f'"model" is missing; it can be {", ".join(slots)}')
        found = slots.get(name) if name else next(iter(slots.values()))
        if found is None:
            shown = name[:60].encode(errors="backslashreplace").decode()
            raise Refused(404, f"there is no model '{shown}'; there are {', '.join(slots)}")
        return found

    async def _run(self, request: Request, name: str, call: Call) -> tuple[tuple[str, int], list[object], list[int]]:
        """Returns name and step of the model that answers; of each input a result or an error, and its tokens."""
        slot = self._slot(call.model)
        request.state.model = slot.name
        served, route = slot.route(name, call.task_name)
        problems: dict[int, Any] = {i: UserError(text) for i, text in call.problems.items()}
        if not route.takes_objects:
            objects = (i for i, one in enumerate(call.inputs) if isinstance(one, dict) and i not in problems)
            problems |= {i: UserError(f"input {i} is an object; /{name} takes texts") for i in objects}
        long = sum(len(text) for one in call.inputs for text in texts_of(one)) > _LONG
        tokens = await run_in_threadpool(served.tokens, call) if long else served.tokens(call)
        problems |= self._too_long(served, route, call, tokens)
        places = [i for i in range(len(call.inputs)) if i not in problems]
        found = await self._queued(
            request, slot, served, route, [call.inputs[i] for i in places], [tokens[i] for i in places]
        )
        results = problems | {i: _numbered(result, i) for i, result in zip(places, found, strict=True)}
        return (slot.name, served.model.step), [results[i] for i in range(len(call.inputs))], tokens

    def _too_long(self, served: Served, route: Route, call: Call, tokens: Sequence[int]) -> dict[int, Refused]:
        most, why = self._limits.input_tokens, "this server takes"
        if call.parameters.get("truncate") is False:
            most, why = min(most, served.model.max_length), "the model takes"
        return {
            i: Refused(413, f"input {i} has {count} tokens; {why} {most}")
            for i, count in enumerate(tokens)
            if count > most
        }

    async def _queued(
        self, request: Request, slot: Slot, served: Served, route: Route, inputs: list[object], tokens: list[int]
    ) -> list[object]:
        """Returns the results of the inputs; drops them if the client leaves before they are begun."""
        if not inputs:
            return []
        if route.tool is None:
            most, total = self._limits.queue_tokens, sum(tokens)
            if total > most:
                raise Refused(413, f"the request has {total} tokens; this server takes {most}: split it")
            async with self._few:
                if await request.is_disconnected():
                    raise Refused(499, "the client left")
                return await run_in_threadpool(served.run, route.name, inputs)
        loop = asyncio.get_running_loop()
        finished = asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended before its last answers
                loop.call_soon_threadsafe(finished.set)

        assert slot.worker is not None
        job = Job((served, route.name), inputs, served.costs(route, tokens), wake)
        slot.worker.submit(job)
        waiting = [asyncio.create_task(finished.wait()), asyncio.create_task(_left(request))]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
            if not finished.is_set():
                slot.worker.cancel(job)
        if not finished.is_set():
            raise Refused(499, "the client left")
        return job.results


class _Answer(Response):
    """JSON of a model, with the name and the step of the checkpoint that is serving."""

    media_type = "application/json"

    def __init__(self, content: bytes, model: str, step: int):
        super().__init__(content, headers={"X-Model": model, "X-Checkpoint-Step": str(step)})


async def _written(elements: int, write: Callable[[], bytes]) -> bytes:
    """Returns what `write` returns; in a thread if there are many elements, as others wait meanwhile."""
    return await run_in_threadpool(write) if elements > _MANY else write()


def _json_list(elements: Iterable[Any]) -> bytes:
    """Returns a list as JSON. Each element is encoded by itself: no other thread runs while one is."""
    return b"[" + b", ".join(json_line(one)[:-1] for one in elements) + b"]"


async def _left(request: Request) -> None:
    """Returns when the client is gone; the body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _shown(route: Route, results: Sequence[object], call: Call) -> list[object]:
    """Returns the elements of the answer. Raises Refused if there are errors only."""
    errors = [x for x in results if isinstance(x, UserError | Refused)]
    if len(errors) == len(results):
        raise errors[0] if isinstance(errors[0], Refused) else Refused(422, str(errors[0]))
    return [_error(x) if isinstance(x, UserError | Refused) else route.shown(x, call.parameters) for x in results]


def _numbered(result: object, number: int) -> Any:
    """Returns what is wrong with an input under its number in the request instead of that in the batch."""
    if not isinstance(result, InputError):
        return result
    return UserError(str(result).replace(f"input {result.number}", f"input {number}", 1))


def _error(problem: UserError | Refused) -> Json:
    return problem.content if isinstance(problem, Refused) else Refused(422, str(problem)).content


def _encoded(vector: np.ndarray) -> str:
    return base64.b64encode(unit(vector).astype("<f4").tobytes()).decode()


async def _refused(request: Request, refused: Exception) -> Response:
    assert isinstance(refused, Refused)
    headers = dict(_HEADERS)
    if refused.retry_after:
        headers["Retry-After"] = str(refused.retry_after)
    if refused.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(refused.content, refused.status, headers)


async def _http_error(request: Request, problem: Exception) -> Response:
    """A path or a method that there is not."""
    assert isinstance(problem, HTTPException)
    names = ", ".join(f"/{route.name}" for route in ROUTES)
    hint = (
        f"this server has POST {names}, /v1/embeddings and GET /models, /metrics, /health/ready; /docs describes them"
    )
    message = f"there is no such path; {hint}" if problem.status_code == 404 else f"another method is needed; {hint}"
    headers = dict(problem.headers or {}) | _HEADERS
    return JSONResponse(Refused(problem.status_code, message).content, problem.status_code, headers)


async def _bug(request: Request, problem: Exception) -> Response:
    return JSONResponse(Refused(500, "this is a bug; the server's log has the traceback").content, 500, _HEADERS)
