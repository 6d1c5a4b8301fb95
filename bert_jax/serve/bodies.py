"""What a request asks: its body as JSON within the limits, checked before anything is computed."""

import asyncio
import difflib
import json
from dataclasses import dataclass, field
from typing import Any, NoReturn

from starlette.requests import ClientDisconnect, Request

from bert_jax.config import Json
from bert_jax.data.text.text_files import is_unicode
from bert_jax.option import Option

KINDS = {
    400: "bad_request",
    401: "unauthorized",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    413: "too_large",
    415: "unsupported_media_type",
    421: "wrong_host",
    422: "invalid_input",
    429: "overloaded",
    499: "client_left",  # in the metrics only: nobody receives it
    500: "internal",
    503: "unavailable",
}
_CHOICES = {"model": "model", "task_name": "task"}  # names in a body that stand beside the inputs


class Refused(Exception):
    """A request that is not answered, or an input: the HTTP status, and a message for whoever asked."""

    def __init__(self, status: int, message: str, retry_after: int = 0):
        super().__init__(message)
        self.status, self.retry_after = status, retry_after

    @property
    def content(self) -> Json:
        return {"error": {"type": KINDS[self.status], "message": str(self)}}


@dataclass(frozen=True)
class Limits:
    """What one client may ask for, and all of them together."""

    body_bytes: int = 2 << 20
    inputs: int = 1024  # of a request
    input_tokens: int = 8192  # of one input
    queue_tokens: int = 131_072
    requests: int = 256  # at the same time
    seconds: float = 20  # for a client to send its request or to take its answer


@dataclass(frozen=True)
class Call:
    """The content of a body. `problems` are the inputs that cannot be read, by their number."""

    model: str
    task_name: str  # of a model of several tasks
    inputs: list[object]
    parameters: dict[str, Any]
    problems: dict[int, str] = field(default_factory=dict)


async def read_json(request: Request, limits: Limits) -> object:
    """Returns the JSON of a request's body. Raises Refused for a body that is no JSON, too large or too slow."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # What a page of another origin may send without asking is text or a form: it must not reach a model.
    if kind != "application/json":
        raise Refused(415, "the header Content-Type must be application/json (curl has --json)")
    most = limits.body_bytes
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared[:20]) > most:
        raise Refused(413, f"the body has {declared[:20]} bytes; this server takes {most}")
    content = bytearray()
    try:
        async with asyncio.timeout(limits.seconds):
            async for piece in request.stream():
                content += piece
                if len(content) > most:
                    raise Refused(413, f"the body has more than {most} bytes, which this server takes at most")
    except TimeoutError:
        raise Refused(408, f"the body did not arrive within {limits.seconds:g} seconds") from None
    except ClientDisconnect:
        raise Refused(400, "the client left before its request was whole") from None
    return parsed(bytes(content))


def parsed(content: bytes) -> object:
    """Returns the value of a JSON text in UTF-8. Raises Refused."""
    try:
        return json.loads(content.decode(), parse_constant=_no_number)
    except UnicodeDecodeError as problem:
        raise Refused(400, f"the body is not UTF-8 at byte {problem.start}") from None
    except json.JSONDecodeError as problem:
        raise Refused(400, f"the body is not JSON: {problem.msg} at character {problem.pos}") from None
    except RecursionError:
        raise Refused(400, "the body is not JSON that can be read: it is nested too deeply") from None
    except ValueError:  # a whole number of thousands of digits
        raise Refused(400, "the body is not JSON that can be read: it has a number that is too long") from None


def read_call(body: object, parameters: tuple[Option, ...], limits: Limits, *, key: str = "inputs") -> Call:
    """Returns what a body asks for. Parameters are in `parameters`, or beside the inputs as text-embeddings-inference
    has them. Raises Refused for anything that is wrong with the body as a whole."""
    if not isinstance(body, dict):
        raise Refused(422, f'the body is {_kind(body)}; it must be an object such as {{"{key}": ["a text"]}}')
    if key not in body:
        raise Refused(422, f'"{key}" is missing; it is a list of texts or objects')
    known = {option.name: option for option in parameters}
    given = body.get("parameters")
    if given is not None and not isinstance(given, dict):
        raise Refused(422, f'"parameters" is {_kind(given)}; it must be an object')
    beside = {name: value for name, value in body.items() if name not in (key, "parameters", *_CHOICES)}
    values = {option.name: option.default for option in parameters}
    for name, value in (beside | (given or {})).items():
        if name not in known:
            _refuse_parameter(name, list(known))
        if problem := known[name].problem(value):
            raise Refused(422, f"parameter {problem}")
        values[name] = value
    choices = [body.get(name) for name in _CHOICES]
    for (name, kind), value in zip(_CHOICES.items(), choices, strict=True):
        if value is not None and not isinstance(value, str):
            raise Refused(422, f'"{name}" is {_kind(value)}; it must be the name of a {kind}')
    inputs = body[key] if isinstance(body[key], list) else [body[key]]
    if len(inputs) > limits.inputs:
        raise Refused(413, f"there are {len(inputs)} inputs; this server takes {limits.inputs} in a request")
    if not inputs:
        raise Refused(422, f'"{key}" is empty; give at least one input')
    problems = {number: problem for number, one in enumerate(inputs) if (problem := input_problem(number, one))}
    model, task_name = (value or "" for value in choices)
    return Call(model, task_name, inputs, values, problems)


def input_problem(number: int, value: object) -> str | None:
    """Returns why an input can be read by no model, if that is so: it is neither a text nor an object, or has half of a
    surrogate pair, which JSON can write and UTF-8 cannot."""
    if not isinstance(value, str | dict):
        return f"input {number} is {_kind(value)}; it must be a text, or an object with the columns of the task"
    if not all(map(is_unicode, texts_of(value))):
        return f"input {number} is not Unicode text: it has half of a surrogate pair"
    return None


def texts_of(value: object) -> list[str]:
    """Returns all texts in a value of JSON: names, values and what lists have."""
    found, left = [], [value]
    while left:
        one = left.pop()
        if isinstance(one, str):
            found.append(one)
        elif isinstance(one, dict):
            left += [*one, *one.values()]
        elif isinstance(one, list):
            left += one
    return found


def _refuse_parameter(name: str, known: list[str]) -> NoReturn:
    shown = name[:60].encode(errors="backslashreplace").decode()
    close = difflib.get_close_matches(name, known, 1)
    has = f"it has {', '.join(known)}" if known else "it has none"
    hint = f" (did you mean {close[0]}?)" if close else ""
    raise Refused(422, f"'{shown}' is not a parameter of this route; {has}{hint}")


def _kind(value: object) -> str:
    names = {type(None): "null", bool: "a truth value", int: "a number", float: "a number", str: "a text"}
    return names.get(type(value), "a list" if isinstance(value, list) else "an object")


def _no_number(name: str) -> NoReturn:
    raise Refused(400, f"the body is not JSON: {name} is no number there")
