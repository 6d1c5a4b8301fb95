"""Serves models over HTTP: JSON in and out, and a page to try them.

    python -m bert_jax.serve runs/sst2 --port=8000
    python -m bert_jax.serve sst2=runs/sst2 ner=runs/ner
    curl http://127.0.0.1:8000/predict --json '{"inputs": ["a fine film"]}'

A model is whatever `bert_jax.load` opens: a workdir, a checkpoint, a folder of Hugging Face or TensorFlow. A workdir is
watched: a newer checkpoint takes over without a lost request. SIGTERM answers what was taken and ends with status 0.
"""

import gc
import re
import signal
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING

from bert_jax.command import Flags, Parser, run_command
from bert_jax.config import UserError
from bert_jax.extras import install
from bert_jax.heap import release_free_memory, restart_with_kept_heap
from bert_jax.option import Value
from bert_jax.options import INFERENCE, OPTIONS, nearest

if TYPE_CHECKING:
    from bert_jax.inference.loaded import LoadedModel
    from bert_jax.serve.app import State

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_LOCAL = frozenset({"localhost", "127.0.0.1", "[::1]"})  # the same in the header Host


def main(argv: list[str]) -> int:
    """Serves until it is stopped. Heavy imports wait until the flags are known to be right."""
    parser = _parser()
    flags, words = parser.parse_with_names(argv)
    models, lengths, options = _models(words), _lengths(flags["lengths"]), _options(flags["options"])
    token = _token(flags["token_file"])
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise UserError(f"the server needs the extra serve: {install('serve')}") from None
    from bert_jax.serve.server import listen

    with listen(flags["host"], flags["port"]) as where:
        _serve(where, flags, models, lengths, options, token)
    return 0


def _parser() -> Parser:
    parser = Parser("bert_jax.serve MODEL", __doc__ or "")
    flag = parser.flag
    flag("host", "127.0.0.1", "address to listen on; 0.0.0.0 for all of this machine", metavar="ADDRESS")
    flag("port", 8000, "0 chooses a free one")
    flag("token_file", "", "file with a token that every request must have", metavar="FILE")
    flag("allowed_hosts", "", "names in the header Host, besides those of this machine", metavar="NAMES")
    flag("checkpoint", "best", "best, best:METRIC, newest or a step")
    flag("dtype", "", "of the matrix products", choices=("", "bfloat16", "float32"))
    flag(
        "options", "", "options of the config, such as generate.beams=4,predict.backend=openvino", metavar="KEY=VALUE,…"
    )
    flag("task", "", "module.Class of a task of your own, whose code is executed")
    flag("pooling", "mean", "how vectors of texts are made", choices=("mean", "cls", "max"))
    flag("layer", -1, "of which vectors are made", least=-(2**15))
    flag("attention", True, "the page shows the attention of every head")
    flag(
        "lengths",
        "16,32,64,128,192,256,384",
        "lengths of rows, in tokens, that programs are compiled for",
        metavar="NUMBERS",
    )
    flag("batch_size", 32, "most rows of a batch", least=1)
    flag("batch_tokens", 8192, "tokens that are taken from the queue at once", least=1)
    flag("wait_ms", 2, "milliseconds that an input waits for company")
    flag("threads", 1, "threads that run each model on a device", least=1)
    flag("devices", 1, "devices of this machine that run each model; 0 for all", least=0)
    flag("max_body_bytes", 2 << 20, "bytes of a request's body", least=1)
    flag("max_inputs", 1024, "inputs of a request", least=1)
    flag("max_input_tokens", 8192, "tokens of one input", least=1)
    flag("max_queue_tokens", 131_072, "tokens that wait, before requests get status 429", least=1)
    flag("max_requests", 256, "requests at the same time, before others get status 429", least=1)
    flag("client_seconds", 20, "seconds for a client to send a request or to take its answer", least=1)
    flag("stop_seconds", 30, "seconds to answer what was taken, after SIGTERM", least=1)
    flag("reload_seconds", 10, "seconds between two looks for a newer checkpoint; 0 leaves it to SIGHUP")
    flag("debug", False, "show the traceback of an error")
    return parser


def _serve(
    where: socket,
    flags: Flags,
    models: dict[str, str],
    lengths: list[int],
    options: Mapping[str, Value],
    token: str,
) -> None:
    from bert_jax import backend
    from bert_jax.inference.loaded import load_members
    from bert_jax.serve.app import State
    from bert_jax.serve.bodies import Limits
    from bert_jax.serve.routes import Setup
    from bert_jax.serve.served import Slot
    from bert_jax.serve.server import serve

    if folder := next((path for path in models.values() if Path(path).is_dir()), None):
        backend.keep_programs(Path(folder))
    given = {name: flags[name] for name in ("batch_size", "checkpoint", "task")}
    given |= {"dtype": flags["dtype"] or None, "overrides": options}
    setup, slots = Setup(flags["pooling"], str(flags["layer"]), flags["attention"]), {}
    devices = _devices(flags["devices"])

    def loaded(path: str | Path, device: int) -> "dict[str, LoadedModel]":
        return load_members(path, device=device, **given)

    for name, path in models.items():
        slots[name] = Slot(name, path, flags["checkpoint"], loaded, setup, lengths, devices)
    limits = Limits(
        flags["max_body_bytes"],
        flags["max_inputs"],
        flags["max_input_tokens"],
        flags["max_queue_tokens"],
        flags["max_requests"],
        flags["client_seconds"],
    )
    hosts = _hosts(flags["host"], flags["allowed_hosts"])
    state = State(slots, hosts, limits, token)
    how = {name: flags[name] for name in ("batch_tokens", "threads")} | {"wait": flags["wait_ms"] / 1000}
    serve(state, where, partial(_prepare, state, how), stop=flags["stop_seconds"], reload=flags["reload_seconds"])


def _hosts(host: str, allowed: str) -> frozenset[str]:
    """Returns the names by which the server may be called; none for any name."""
    names = {name.strip().lower() for name in allowed.split(",") if name.strip()}
    return _LOCAL | names if names or host in _LOOPBACK else frozenset()


def _devices(number: int) -> int:
    import jax

    if number > (there := jax.local_device_count()):
        raise UserError(f"--devices={number}: this machine has {there}; give no more, or 0 for all of them")
    return number or there


def _prepare(state: "State", how: Flags) -> None:
    """Compiles the programs of all models and starts their threads."""
    for name, slot in state.slots.items():
        observe = partial(state.metrics.batch, name)
        slot.start(observe, queue_tokens=state.limits.queue_tokens, **how)
        state.metrics.watch(name, slot)
    release_free_memory()  # what compiling leaves behind


def _models(words: list[str]) -> dict[str, str]:
    """Returns the path of each model by its name: NAME=PATH, or a path, whose last part is the name."""
    if not words:
        raise UserError("no model is named; python -m bert_jax.serve runs/sst2 --port=8000")
    models: dict[str, str] = {}
    for word in words:
        name, separator, path = word.partition("=")
        if not separator or Path(word).exists():
            name, path = Path(word).absolute().name, word
        if not _NAME.fullmatch(name):
            raise UserError(f"'{name}' cannot be the name of a model; name it as in sst2={path}")
        if name in models:
            raise UserError(
                f"{models[name]} and {path} have one name, '{name}'; name them as in a={models[name]} b={path}"
            )
        models[name] = path
    return models


def _lengths(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if wrong := [word for word in words if not (word.isascii() and word.isdigit() and 0 < int(word[:9]) < 2**20)]:
        raise UserError(f"--lengths has '{wrong[0]}'; it must be numbers of tokens, such as 32,128")
    return sorted({int(word) for word in words})


def _options(text: str) -> dict[str, Value]:
    found = {}
    for word in filter(None, text.split(",")):
        name, separator, value = word.partition("=")
        if name not in OPTIONS:
            raise UserError(f"--options: {name} is not an option; the nearest is {nearest(name)}")
        if name not in INFERENCE or not separator:
            raise UserError(f"--options: {name} cannot be set here; docs/options.md marks those that can with I")
        try:
            found[name] = OPTIONS[name].parse(value)
        except ValueError as problem:
            raise UserError(f"--options: {problem}") from None
    return found


def _token(path: str) -> str:
    if not path:
        return ""
    try:
        token = Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(
            f"--token_file {path} cannot be read ({getattr(problem, 'strerror', 'it is not ASCII')})"
        ) from None
    if len(token) < 16 or not token.isprintable() or " " in token:
        raise UserError(f"--token_file {path}: the token must have 16 or more letters and digits, and no space")
    return token


if __name__ == "__main__":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the server can look for a newer checkpoint
    restart_with_kept_heap()
    gc.set_threshold(50_000)  # as main.py, and for its reason; a pause would be a request's latency
    run_command(main)
