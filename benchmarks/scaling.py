"""What a pretraining step costs, and a corpus's preparation, as each thing that can grow grows.

    python benchmarks/scaling.py [--axes=batch,length,layers,devices,processes,shares,apart,corpus]
        [--size=mini] [--batch=16] [--length=128] [--rounds=5] [--files='corpus/*.txt'] [--json=out.json]

Every point is a process of its own (`processes`: as many as it says, connected as on a pod), with all else as the flags
say. Seconds are the median of the rounds after two steps of warm-up; peak bytes are those of one device, by the
compiled program; collectives are counted in its text, with the bytes of their results. `devices` are virtual ones of
one CPU: they show what is exchanged and what work is done twice, not a speed-up. `shares` are processes that are each
pinned to their share of the cores and add --batch rows of their own: with two, a step of twice the batch should take at
most 1.1 times as long as with one. `apart` is the same without a connection: each process takes its step alone, so that
what the second adds is the machine's doing (shared caches, memory, clock), not that of the exchange. `corpus` runs
benchmarks/prepare.py on parts of --files. Under each table is the exponent that a cost grows with, fitted to the
logarithms: 1 is in proportion.
"""

import argparse
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from timing import machine
from train_step import VOCAB_SIZE, GivenBatches, random_batch, step_parser, words

from bert_jax.config import UserError
from bert_jax.heap import restart_with_kept_heap
from bert_jax.lab.collectives import collectives
from bert_jax.models.config import bert_config
from bert_jax.sharding import make_mesh, to_mesh
from bert_jax.training.memory import peak_bytes
from bert_jax.training.optimizer import make_optimizer, make_schedule
from bert_jax.training.step import abstract_state, init_state, make_train_step
from experiments import base

# What is measured, besides what --batch, --length and --size say.
AXES: dict[str, Sequence[int]] = {
    "batch": (4, 8, 16, 32, 64),
    "length": (32, 64, 128, 256, 512),
    "layers": (1, 2, 4, 8, 16),
    "devices": (1, 2, 4, 8),
    "processes": (1, 2),
    "shares": (1, 2),
    "apart": (1, 2),
}
_PINNED = ("shares", "apart")
SHARES = "0.125,0.25,0.5,1"  # of --files

FIT = ("seconds", "processor_seconds", "peak_bytes")


def main() -> None:
    parser = step_parser(__doc__ or "")
    parser.set_defaults(size="mini", batch=16, rounds=5)
    parser.add_argument("--axes", type=words, default=[*AXES], help=f"of {', '.join(AXES)}, corpus; comma-separated")
    parser.add_argument("--files", default="", help="corpus: paths and globs, separated by commas")
    parser.add_argument("--point", help="internal: the point to measure, as JSON")
    options = parser.parse_args()
    if options.point:
        print(json.dumps(_measure(options, **json.loads(options.point))))
        return
    try:
        measured = scale(options)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    if options.json:
        options.json.write_text(json.dumps(measured, indent=1) + "\n")


def scale(options: argparse.Namespace) -> dict[str, Any]:
    """Prints a table and exponents for each axis; returns {"machine", "axes": {name: {"points", "exponents"}}}."""
    unknown = [axis for axis in options.axes if axis not in (*AXES, "corpus")]
    if unknown:
        raise UserError(f"--axes has '{unknown[0]}'; it can have {', '.join(AXES)}, corpus")
    if "corpus" in options.axes and not options.files:
        raise UserError("--axes=corpus needs --files")
    about = machine(["jax"]) | {
        "step": f"BERT-{options.size}, batch {options.batch} × {options.length}, unless its axis says otherwise"
    }
    print("\n".join(f"{key}: {value}" for key, value in about.items()), flush=True)
    axes = {}
    for axis in options.axes:
        points = _corpus(options.files) if axis == "corpus" else [_point(options, axis, n) for n in AXES[axis]]
        names = [name for name in FIT if name in points[0]]
        exponents = {name: fitted_exponent([(point[axis], point[name]) for point in points]) for name in names}
        axes[axis] = {"points": points, "exponents": exponents}
        print("\n" + "".join(f"{name:>20}" for name in points[0]))
        print("\n".join("".join(f"{value:>20.6g}" for value in point.values()) for point in points))
        print("exponents: " + ", ".join(f"{name} {value:.2f}" for name, value in exponents.items()), flush=True)
    return {"machine": about, "axes": axes}


def fitted_exponent(points: Sequence[tuple[float, float]]) -> float:
    """The slope of log(cost) over log(size), by least squares."""
    size, cost = np.log(np.asarray(points, float)).T
    return float(np.polyfit(size, cost, 1)[0])


def _point(options: argparse.Namespace, axis: str, value: int) -> dict[str, float]:
    """Returns one point as the first of the processes measures it that are started for it."""
    processes, devices = value if axis in ("processes", *_PINNED) else 1, value if axis == "devices" else 1
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    forwarded = ("size", "batch", "length", "predictions", "rounds", "warm_up")
    command = [sys.executable, __file__, *(f"--{name}={getattr(options, name)}" for name in forwarded)]
    started = []
    for number in range(processes):
        point = {"axis": axis, "value": value, "processes": processes, "number": number, "address": address}
        environment = dict(os.environ)
        if axis in ("devices", "processes", *_PINNED):
            virtual = f"--xla_force_host_platform_device_count={devices}"
            environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": virtual}
        output = subprocess.PIPE if number == 0 else subprocess.DEVNULL
        started.append(
            subprocess.Popen([*command, f"--point={json.dumps(point)}"], env=environment, stdout=output, text=True)
        )
    outputs = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise UserError(f"{axis} {value}: the run failed, see above")
    return {axis: value, **json.loads(outputs[0].splitlines()[-1])}


def _measure(
    options: argparse.Namespace, axis: str, value: int, processes: int, number: int, address: str
) -> dict[str, float]:
    """Compiles and runs the step that the training loop runs, in a process of its own."""
    if axis in _PINNED:
        _pin(number, max(AXES[axis]))
    if axis == "apart":
        processes, number = 1, 0
    if processes > 1:
        jax.distributed.initialize(address, processes, number)
    rows, length = (value if axis == name else getattr(options, name) for name in ("batch", "length"))
    if axis == "shares":
        rows *= processes
    if rows % jax.device_count():
        raise SystemExit(f"--batch {rows} is not a multiple of {jax.device_count()} devices")
    config = base.get_config(options.size)
    if axis == "layers":
        config.model.num_hidden_layers = value
    task = GivenBatches(bert_config(config.model, VOCAB_SIZE))
    schedule = make_schedule(config.optimizer, config.train.steps)
    optimizer, mesh, key = make_optimizer(config.optimizer, schedule), make_mesh(config.mesh), jax.random.key(0)
    graphdef, _ = abstract_state(task, optimizer)
    state = init_state(task, optimizer, 0, mesh)
    mine = slice(number * rows // processes, (number + 1) * rows // processes)
    batch = random_batch(rows, length, min(options.predictions, length - 1))
    arrays = to_mesh(mesh, {name: array[mine] for name, array in batch.items()})
    train_step = make_train_step(task, graphdef, optimizer, schedule, mesh)
    started = time.perf_counter()
    program = train_step.lower(state, {}, arrays, key).compile()
    compile_seconds = time.perf_counter() - started
    wall, cpu = [], []
    for _ in range(options.warm_up + options.rounds):
        clock, processor = time.perf_counter(), time.process_time()
        state, sums = train_step(state, {}, arrays, key)
        jax.block_until_ready((state, sums))
        wall.append(time.perf_counter() - clock)
        cpu.append(time.process_time() - processor)
    exchanged = collectives(program.as_text() or "")
    return {
        "seconds": statistics.median(wall[options.warm_up :]),
        "processor_seconds": statistics.median(cpu[options.warm_up :]),
        "peak_bytes": peak_bytes(program) or float("nan"),
        "process_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0,
        "compile_seconds": compile_seconds,
        "collectives": len(exchanged),
        "collective_bytes": sum(one.bytes for one in exchanged),
    }


def _pin(number: int, shares: int) -> None:
    """Lets this process use one of so many equal shares of the cores; call it before jax starts its threads."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < shares:
        raise SystemExit(f"shares: {len(cores)} cores are fewer than {shares} shares")
    size = len(cores) // shares
    os.sched_setaffinity(0, cores[number * size : (number + 1) * size])


def _corpus(files: str) -> list[dict[str, float]]:
    """Preparation of parts of the corpus; `corpus` is in MB."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(__file__).with_name("prepare.py")
        flags = [f"--files={files}", f"--subsets={SHARES}", f"--peer_share={SHARES.split(',')[0]}", "--peers="]
        flags += ["--workers=1", "--rounds=1", f"--json={folder}/runs"]
        if subprocess.run([sys.executable, script, *flags], stdout=subprocess.DEVNULL).returncode:
            raise UserError("benchmarks/prepare.py failed, see above")
        runs = json.loads(Path(folder, "runs").read_text())["runs"]
    last = {run["share"]: run for run in runs if run["variant"] == "ours 1"}  # the first share runs twice
    return [
        {
            "corpus": run["MB"],
            "seconds": run["seconds"],
            "processor_seconds": run["cpu_seconds"],
            "peak_bytes": run["peak_MB"] * 1e6,
        }
        for run in last.values()
    ]


if __name__ == "__main__":
    restart_with_kept_heap()
    main()
