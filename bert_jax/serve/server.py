"""Listening, stopping and reloading, and what keeps slow or silent clients from holding the server."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from bert_jax.command import say
from bert_jax.config import UserError
from bert_jax.serve import worker
from bert_jax.serve.app import State, make_app
from bert_jax.serve.bodies import Refused

_IDLE_SECONDS = 30  # that a connection stays open between two requests
_MOST_CONNECTIONS = 2048
_END_SECONDS = 1.0  # for a thread to end by itself, after the last answer


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that is bound, before anything that takes long. Raises UserError if it cannot be."""
    if port > 65535:  # which getaddrinfo takes for another one
        raise UserError(f"--port={port}: there is no such port; choose another")
    found = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(_MOST_CONNECTIONS)
    except OSError as problem:
        if found is not None:
            found.close()
        raise UserError(f"--host={host} --port={port}: {problem.strerror or problem}; choose another") from None
    return found


def serve(state: State, where: socket.socket, prepare: Callable[[], None], *, stop: float, reload: float) -> None:
    """Answers requests until SIGTERM or SIGINT, and then for up to `stop` seconds those that it has taken.

    `prepare`, in a thread, makes the models ready. Every `reload` seconds (0 = never), and at SIGHUP, they change to
    newer checkpoints. Raises what `prepare` raises.
    """
    config = uvicorn.Config(
        make_app(state),
        http=_protocol(state.limits.seconds),
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nothing depends on who asks
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=max(1, round(stop)),
    )
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_not_of_a_batch)
    server, failed = _Server(config), []
    hurry = threading.Event()  # set to look for newer checkpoints at once

    def work() -> None:
        try:
            prepare()
        except BaseException as problem:
            failed.append(problem)
            server.should_exit = True
            return
        state.is_ready = True
        say(f"serving {', '.join(state.slots)} on {_address(where)}")
        sys.stdout.flush()  # whoever started the server may wait for this line
        while not server.should_exit:
            asked = hurry.wait(reload or None)
            hurry.clear()
            if not server.should_exit:
                _reload(state, asked=asked)

    thread = threading.Thread(target=work, daemon=True)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, _stop, state, server)
        loop.add_signal_handler(signal.SIGHUP, hurry.set)
        thread.start()
        logging.info("listening on %s; programs are being compiled", _address(where))
        await server.serve([where])

    asyncio.run(run())
    server.should_exit = state.is_stopping = True
    hurry.set()
    # Nobody waits for a result any more.
    are_closed = [slot.worker.close(_END_SECONDS) for slot in state.slots.values() if slot.worker is not None]
    if failed:
        raise failed[0]
    thread.join(_END_SECONDS)
    if thread.is_alive() or not all(are_closed):
        # They are in the compiler or in a program, under which an interpreter cannot be taken down.
        logging.shutdown()
        sys.stdout.flush()
        os._exit(0)


def _stop(state: State, server: uvicorn.Server) -> None:
    if state.is_stopping:  # the second signal
        server.force_exit = True
    logging.info("stopping: requests that were taken are answered first")
    state.is_stopping = server.should_exit = True


def _reload(state: State, *, asked: bool) -> None:
    for slot in state.slots.values():
        try:
            slot.reload(anyway=asked)
        except Exception:  # the older checkpoint serves as before
            logging.exception("%s: step %d stays", slot.name, slot.step)


def _is_not_of_a_batch(record: logging.LogRecord) -> bool:
    """Returns False for what tasks say of each batch, such as that a text was cut: clients must not fill the log."""
    return record.module == worker.__name__.rpartition(".")[2] or not str(record.threadName).startswith(worker.THREAD)


def _address(where: socket.socket) -> str:
    host, port = where.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """uvicorn's, with signals left to `serve`: its own handlers raise a signal again once it has stopped, which would
    be the exit status."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _protocol(seconds: float) -> type[H11Protocol]:
    """Returns uvicorn's protocol, which closes connections whose client takes over so many seconds to send the head of
    a request or to take what was sent to it, and answers in JSON what is no HTTP and whoever is one too many. (The body
    has its time in `bodies.read_json`.)"""

    class Timed(H11Protocol):
        head: asyncio.TimerHandle | None = None
        taking: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.head = self.loop.call_later(seconds, transport.abort)
            if len(self.connections) > _MOST_CONNECTIONS:
                self.refuse(Refused(503, f"there are {_MOST_CONNECTIONS} connections already; try again later"))

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            # A head comes, or the rest of a body whose request was refused.
            waits = self.conn.their_state is h11.IDLE or self.conn.our_state is h11.DONE
            waits = waits and not self.transport.is_closing()
            if waits and self.head is None:
                self.head = self.loop.call_later(seconds, self.transport.abort)
            elif not waits:
                self.head = _cancelled(self.head)

        def send_400_response(self, msg: str) -> None:
            self.refuse(Refused(400, "this is not HTTP/1.1 that can be read"))

        def refuse(self, why: Refused) -> None:
            """Answers what is no request, or not yet, and closes the connection."""
            content = json.dumps(why.content).encode()
            headers = {"Content-Type": "application/json", "Content-Length": str(len(content)), "Connection": "close"}
            answer = h11.Response(
                status_code=why.status, headers=list(headers.items()), reason=STATUS_PHRASES[why.status]
            )
            for event in (answer, h11.Data(data=content), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

        def _unsupported_upgrade_warning(self) -> None:
            """The request is answered without: whoever asks must not fill the log."""

        def pause_writing(self) -> None:
            super().pause_writing()
            self.taking = self.taking or self.loop.call_later(seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self.taking = _cancelled(self.taking)

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self.head, self.taking = _cancelled(self.head), _cancelled(self.taking)

    return Timed


def _cancelled(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
