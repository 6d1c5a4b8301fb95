"""What the server says about itself: its OpenAPI schema, the same for readers, and the page to try a model."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources

from bert_jax.config import Json
from bert_jax.lab.report import html
from bert_jax.option import Option
from bert_jax.serve.bodies import KINDS, Limits
from bert_jax.serve.routes import ROUTES, Route
from bert_jax.tasks.sections import Table

EMBEDDINGS = (
    Option("encoding_format", str, "float", "numbers, or the bytes of little-endian float32", ("float", "base64")),
    Option("dimensions", int, None, "if given, it must be the size of the model's vectors", range="[1, 2^20]"),
    Option("user", str, None, "is not looked at"),
)
_STATUS = {
    400: "the body is not JSON, or not UTF-8",
    401: "the token is missing or another one",
    404: "there is no such model or task, or it does not have this route; the message names those that there are",
    405: "the path needs another method",
    408: "the body did not arrive in time",
    413: "the body, its inputs or one of them are too large; the message has both numbers",
    415: "the body is not declared as application/json",
    421: "the header Host names another machine",
    422: "a value in the body is wrong, or each of the inputs is",
    429: "too many requests, or a full queue; the header Retry-After has the seconds to wait",
    500: "a bug; the server's log has the traceback",
    503: "programs are being compiled, or the server is stopping",
}
_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}


def openapi(models: Sequence[str], limits: Limits, needs_token: bool) -> Json:
    """Returns the schema of all routes, OpenAPI 3.1."""
    paths: Json = {f"/{route.name}": {"post": _operation(route, models, limits)} for route in ROUTES}
    paths["/v1/embeddings"] = {"post": _openai(models, limits)}
    paths |= {path: {"get": _read(path, meaning)} for path, meaning in _READ.items()}
    schema: Json = {
        "openapi": "3.1.0",
        "info": {"title": "bert_jax", "version": "1", "description": "BERT models behind HTTP."},
        "paths": paths,
        "components": {"schemas": {"Error": _ERROR}},
    }
    if needs_token:
        schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"token": []}]
    return schema


def documentation(models: Sequence[str], limits: Limits, needs_token: bool) -> str:
    """Returns the routes as a page that loads nothing."""
    body = [html.paragraph("Bodies and answers are JSON. /openapi.json has the same as a schema.", "note")]
    body.append(html.paragraph(f"Models: {', '.join(models)}. With several, a body says which: “model”."))
    if needs_token:
        body.append(html.paragraph("Every request needs the header “Authorization: Bearer” with the server's token."))
    for route in ROUTES:
        rows = [[o.name, o.allowed, json.dumps(o.default), o.meaning] for o in route.parameters]
        parts = html.table(Table(["parameter", "value", "default", "meaning"], rows, set())) if rows else ""
        call = f"curl http://127.0.0.1:8000/{route.name} --json '{json.dumps(route.example)}'"
        said = html.paragraph(f"The answer is a list; of each input it has {route.answer}.")
        body.append(html.section(f"POST /{route.name}", html.code(call) + said + parts, route.meaning))
    body.append(html.section("POST /v1/embeddings", "", f"{_OPENAI}: “input”, “model”, “encoding_format”."))
    rows = [[path, meaning] for path, meaning in _READ.items()]
    body.append(html.section("GET", html.table(Table(["path", "answer"], rows, set()))))
    errors = [[str(status), KINDS[status], meaning] for status, meaning in _STATUS.items()]
    note = (
        'An error is {"error": {"type", "message"}}. It stands in the place of the result of an input that is wrong '
        "while others are right, with status 200."
    )
    body.append(html.section("Errors", html.table(Table(["status", "type", "when"], errors, {0})), note))
    limit_rows = [[name.replace("_", " "), f"{value:g}"] for name, value in vars(limits).items()]
    body.append(html.section("Limits", html.table(Table(["of", "at most"], limit_rows, {1}))))
    return html.page("Routes", body, "bert_jax")


@cache
def page() -> str:
    return resources.files("bert_jax.serve").joinpath("page.html").read_text(encoding="utf-8")


@cache
def policy() -> str:
    """Returns the Content-Security-Policy of the pages: scripts are those of the page, and nothing is loaded."""
    scripts = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in _scripts()
    )
    return (
        f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _scripts() -> Iterator[str]:
    """Yields the scripts of the page, and of the frame in it, which has the page's policy."""
    yield from re.findall(r"<script>(.*?)</script>", page(), re.DOTALL)
    yield resources.files("bert_jax.lab.inspect").joinpath("attention.js").read_text(encoding="utf-8")


_READ = {
    "/": "The page to try a model",
    "/docs": "This description for readers",
    "/models": "Names, steps, tasks, routes and input columns of the models",
    "/v1/models": "The models in OpenAI's form",
    "/health": "As /health/ready",
    "/health/live": "200 while the threads that run models are alive",
    "/health/ready": "200 once all programs are compiled; 503 before, and when the server stops",
    "/metrics": "Prometheus' text format",
    "/openapi.json": "This description as a schema",
}
_KINDS_READ: dict[str, tuple[str, Json]] = {
    "/": ("text/html", {"type": "string"}),
    "/docs": ("text/html", {"type": "string"}),
    "/metrics": ("text/plain", {"type": "string"}),
    "/models": ("application/json", {"type": "array", "items": {"type": "object", "required": ["name", "routes"]}}),
}
_ERROR_CONTENT = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
_OPENAI_ANSWER: Json = {
    "type": "object",
    "required": ["object", "data", "model", "usage"],
    "properties": {
        "object": {"const": "list"},
        "model": {"type": "string"},
        "usage": {"type": "object", "required": ["prompt_tokens", "total_tokens"]},
        "data": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["object", "index", "embedding"],
                "properties": {
                    "index": {"type": "integer"},
                    "embedding": {"anyOf": [{"type": "array", "items": {"type": "number"}}, {"type": "string"}]},
                },
            },
        },
    },
}
_OPENAI = "Vectors in OpenAI's form; they have length 1"
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {
                "type": {"type": "string", "enum": sorted({*KINDS.values()})},
                "message": {"type": "string"},
            },
        }
    },
}


def _operation(route: Route, models: Sequence[str], limits: Limits) -> Json:
    one: Json = {"type": "string"}
    if route.takes_objects:
        one = {"anyOf": [one, {"type": "object", "description": "the columns of the task; GET /models names them"}]}
    inputs = {"anyOf": [one, {"type": "array", "items": one, "minItems": 1, "maxItems": limits.inputs}]}
    parameters = {option.name: _property(option) for option in route.parameters}
    properties = {"inputs": inputs} | _choices(models)
    properties["parameters"] = {"type": "object", "properties": parameters, "additionalProperties": False}
    body = {"type": "object", "required": ["inputs"], "properties": properties | parameters}
    answer: Json = {"type": "array", "description": f"of each input {route.answer}, or an error"}
    answer["items"] = {"anyOf": [route.schema, {"$ref": "#/components/schemas/Error"}]}
    return _post(route.name, route.meaning, body, answer, route.example)


def _openai(models: Sequence[str], limits: Limits) -> Json:
    text = {"type": "string"}
    inputs = {"anyOf": [text, {"type": "array", "items": text, "minItems": 1, "maxItems": limits.inputs}]}
    properties = {"input": inputs} | _choices(models)
    properties |= {option.name: _property(option) for option in EMBEDDINGS}
    body = {"type": "object", "required": ["input"], "properties": properties}
    return _post("embeddings", _OPENAI, body, _OPENAI_ANSWER, {"input": ["a fine film"]})


def _choices(models: Sequence[str]) -> Json:
    task = "of a model of several tasks; GET /models names them"
    return {"model": {"type": "string", "enum": list(models)}, "task_name": {"type": "string", "description": task}}


def _read(path: str, meaning: str) -> Json:
    """Returns the description of a path for GET. Those that browsers and probes use need no token."""
    kind, schema = _KINDS_READ.get(path, ("application/json", {"type": "object"}))
    responses: Json = {"200": {"description": meaning, "content": {kind: {"schema": schema}}}}
    is_open = path in ("/", "/docs") or path.startswith("/health")
    for status in [421, *([503] if path.startswith("/health") else []), *([] if is_open else [401])]:
        responses[str(status)] = {"description": _STATUS[status], "content": _ERROR_CONTENT}
    name = path.strip("/").replace("/", "_") or "page"
    return {"operationId": f"get_{name}", "summary": meaning, "responses": responses} | (
        {"security": []} if is_open else {}
    )


def _post(name: str, meaning: str, body: Json, answer: Json, example: Json) -> Json:
    responses: Json = {"200": {"description": "answered", "content": {"application/json": {"schema": answer}}}}
    responses |= {str(status): {"description": text, "content": _ERROR_CONTENT} for status, text in _STATUS.items()}
    content = {"application/json": {"schema": body, "example": example}}
    return {
        "operationId": name,
        "summary": meaning,
        "requestBody": {"required": True, "content": content},
        "responses": responses,
    }


def _property(option: Option) -> Json:
    schema: Json = {"type": _TYPES[option.type], "description": f"{option.meaning} ({option.allowed})"}
    if option.choices:
        schema["enum"] = list(option.choices)
    if option.range:
        schema["minimum"], schema["maximum"] = option.ends
    return schema if option.default is None else schema | {"default": option.default}
