"""What a pretraining step costs, and a corpus's preparation, as each thing that can grow grows.

    python benchmarks/scaling.py [--axes=batch,length,layers,devices,processes,corpus] [--size=mini] [--batch=16]
        [--length=128] [--rounds=5] [--files='corpus/*.txt'] [--json=out.json]

Every point is a process of its own (`processes`: as many as it says, connected as on a pod), with all else as the flags
say. Seconds are the median of the rounds after two steps of warm-up; peak bytes are those of one device, by the
compiled program; collectives are counted in its text, with the bytes of their results. `devices` are virtual ones of
one CPU: they show what is exchanged and what work is done twice, not a speed-up. `corpus` runs benchmarks/prepare.py
on parts of --files. Under each table is the exponent that a cost grows with, fitted to the logarithms: 1 is in
proportion.
"""

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
from absl import app, flags
from timing import machine
from train_step import BATCH, LENGTH, PREDICTIONS, SIZE, VOCAB_SIZE, GivenBatches, random_batch

from bert_jax.config import UserError
from bert_jax.heap import restart_with_kept_heap
from bert_jax.lab.profile import collectives
from bert_jax.models.config import bert_config
from bert_jax.training.memory import peak_bytes
from bert_jax.training.optimizer import make_optimizer, make_schedule
from bert_jax.training.sharding import make_mesh, to_mesh
from bert_jax.training.step import abstract_state, init_state, make_train_step
from experiments import base

# What is measured, besides what --batch, --length and --size say.
AXES: dict[str, Sequence[int]] = {
    "batch": (4, 8, 16, 32, 64),
    "length": (32, 64, 128, 256, 512),
    "layers": (1, 2, 4, 8, 16),
    "devices": (1, 2, 4, 8),
    "processes": (1, 2),
}
SHARES = "0.125,0.25,0.5,1"  # of --files

AXIS = flags.DEFINE_list("axes", [*AXES], f"of {', '.join(AXES)}, corpus")
FILES = flags.DEFINE_string("files", "", "corpus: paths and globs, separated by commas")
POINT = flags.DEFINE_string("point", "", "internal: the point to measure, as JSON")
FIT = ("seconds", "processor_seconds", "peak_bytes")
flags.FLAGS.set_default("size", "mini")
flags.FLAGS.set_default("batch", 16)
flags.FLAGS.set_default("rounds", 5)


def main(_) -> None:
    if POINT.value:
        print(json.dumps(_measure(**json.loads(POINT.value))))
        return
    try:
        figures = scale()
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    if flags.FLAGS.json:
        Path(flags.FLAGS.json).write_text(json.dumps(figures, indent=1) + "\n")


def scale() -> dict[str, Any]:
    """Prints a table and exponents for each axis; gives {"machine", "axes": {name: {"points", "exponents"}}}."""
    unknown = [axis for axis in AXIS.value if axis not in (*AXES, "corpus")]
    if unknown:
        raise UserError(f"--axes has '{unknown[0]}'; it can have {', '.join(AXES)}, corpus")
    if "corpus" in AXIS.value and not FILES.value:
        raise UserError("--axes=corpus needs --files")
    about = machine(["jax"]) | {
        "step": f"BERT-{SIZE.value}, batch {BATCH.value} × {LENGTH.value}, unless its axis says otherwise"
    }
    print("\n".join(f"{key}: {value}" for key, value in about.items()), flush=True)
    axes = {}
    for axis in AXIS.value:
        points = _corpus() if axis == "corpus" else [_point(axis, value) for value in AXES[axis]]
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


def _point(axis: str, value: int) -> dict[str, float]:
    """One point, measured in processes of its own; what the first of them says."""
    processes, devices = (value if axis == name else 1 for name in ("processes", "devices"))
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    command = [sys.executable, __file__, *(f"--{flag.name}={flag.value}" for flag in _forwarded())]
    started = []
    for number in range(processes):
        point = {"axis": axis, "value": value, "processes": processes, "number": number, "address": address}
        environment = dict(os.environ)
        if axis in ("devices", "processes"):
            virtual = f"--xla_force_host_platform_device_count={devices}"
            environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": virtual}
        output = subprocess.PIPE if number == 0 else subprocess.DEVNULL
        words = [*command, "--verbosity=-1", f"--point={json.dumps(point)}"]  # jax says what platforms there are not
        started.append(subprocess.Popen(words, env=environment, stdout=output, text=True))
    outputs = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise UserError(f"{axis} {value}: the run failed, see above")
    return {axis: value, **json.loads(outputs[0].splitlines()[-1])}


def _forwarded() -> list[Any]:
    return [SIZE, BATCH, LENGTH, PREDICTIONS, flags.FLAGS["rounds"], flags.FLAGS["warm_up"]]


def _measure(axis: str, value: int, processes: int, number: int, address: str) -> dict[str, float]:
    """In a process of its own: compiles and runs the step that the training loop runs."""
    if processes > 1:
        jax.distributed.initialize(address, processes, number)
    rows, length = (value if axis == name else flag.value for name, flag in (("batch", BATCH), ("length", LENGTH)))
    if rows % jax.device_count():
        raise SystemExit(f"--batch {rows} is not a multiple of {jax.device_count()} devices")
    config = base.get_config(SIZE.value)
    if axis == "layers":
        config.model.num_hidden_layers = value
    task = GivenBatches(bert_config(config.model, VOCAB_SIZE))
    schedule = make_schedule(config.optimizer, config.train.steps)
    optimizer, mesh, key = make_optimizer(config.optimizer, schedule), make_mesh(config.mesh), jax.random.key(0)
    graphdef, _ = abstract_state(task, optimizer)
    state = init_state(task, optimizer, 0, mesh)
    mine = slice(number * rows // processes, (number + 1) * rows // processes)
    batch = random_batch(rows, length, min(PREDICTIONS.value, length - 1))
    arrays = to_mesh(mesh, {name: array[mine] for name, array in batch.items()})
    train_step = make_train_step(task, graphdef, optimizer, schedule, 1)
    started = time.perf_counter()
    program = train_step.lower(state, {}, arrays, key).compile()
    compile_seconds = time.perf_counter() - started
    wall, cpu = [], []
    for _ in range(flags.FLAGS.warm_up + flags.FLAGS.rounds):
        clock, processor = time.perf_counter(), time.process_time()
        state, sums = train_step(state, {}, arrays, key)
        jax.block_until_ready((state, sums))
        wall.append(time.perf_counter() - clock)
        cpu.append(time.process_time() - processor)
    exchanged = collectives(program.as_text() or "")
    return {
        "seconds": statistics.median(wall[flags.FLAGS.warm_up :]),
        "processor_seconds": statistics.median(cpu[flags.FLAGS.warm_up :]),
        "peak_bytes": peak_bytes(program) or float("nan"),
        "process_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0,
        "compile_seconds": compile_seconds,
        "collectives": len(exchanged),
        "collective_bytes": sum(one.bytes for one in exchanged),
    }


def _corpus() -> list[dict[str, float]]:
    """Preparation of parts of the corpus; `corpus` is in MB."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(__file__).with_name("prepare.py")
        words = [f"--files={FILES.value}", f"--subsets={SHARES}", f"--peer_share={SHARES.split(',')[0]}", "--peers="]
        words += ["--workers=1", "--rounds=1", f"--json={folder}/runs"]
        if subprocess.run([sys.executable, script, *words], stdout=subprocess.DEVNULL).returncode:
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
    app.run(main)
