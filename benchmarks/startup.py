"""How long starting takes: `--help`, the imports, and the first training step, cold and with compiled programs at hand.

    python benchmarks/startup.py [--size=base] [--rounds=2] [--batch=8] [--json=out.json]

Each run is the command that a user types, in a process of its own, on the built-in sample of text, which is prepared
beforehand. The time is that from the command to the line that the first step has ended. Of each pair the first run has
an empty folder of compiled programs (cold), the second a workdir of its own and the programs of the first (warm). The
third (after a kill) is killed when it has saved a checkpoint, and started again in its workdir: the time is from that
command to the first step after the checkpoint, and to its launch without the seconds of compiling. The last line is the
second start over the first: median and range of the pairs.
"""

import argparse
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from timing import machine, run_in_scratch, spread

from bert_jax.config import UserError

REPOSITORY = Path(__file__).resolve().parents[1]
_FIRST_STEP = re.compile(r" step 1/\d+ train: ")
_ANY_STEP = re.compile(r" step \d+/\d+ train: ")
_COMPILED = re.compile(r": waited ([0-9.]+) s for the compiler")
AFTER_KILL = "first step, after a kill"
LAUNCH = "its launch less compiling"
IMPORTS = ("jax", "flax.nnx", "orbax.checkpoint", "bert_jax.main", "bert_jax.training.loop")


def main() -> None:
    options = _options()
    run_in_scratch(options, measure)


def measure(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    described = machine(("jax", "flax", "orbax-checkpoint"))
    print("\n".join(f"{key}: {value}" for key, value in described.items()), flush=True)
    seconds: dict[str, list[float]] = {}
    commands = {"--help": ["-m", "bert_jax.main", "--help"]} | {f"import {x}": ["-c", f"import {x}"] for x in IMPORTS}
    for name, command in commands.items():
        _finished(command)  # the files come into the cache of the file system
        seconds[name] = [_finished(command) for _ in range(options.rounds)]
        print(f"{name:28} {spread(seconds[name])} s", flush=True)
    command = _command(options, scratch)
    _finished([*command, "--mode=prepare", f"--workdir={scratch / 'prepare' / 'run'}"])
    seconds |= {"first step, cold": [], "first step, warm": [], AFTER_KILL: [], LAUNCH: []}
    for number in range(options.rounds):
        for state in ("cold", "warm"):  # programs lie beside the workdir
            workdir = scratch / str(number) / state
            seconds[f"first step, {state}"].append(first_step([*command, f"--workdir={workdir}"])[0])
        whole, launch = step_after_kill(command, scratch / str(number) / "killed")
        seconds[AFTER_KILL].append(whole)
        seconds[LAUNCH].append(launch)
    for name in ("first step, cold", "first step, warm", AFTER_KILL, LAUNCH):
        print(f"{name:28} {spread(seconds[name])} s")
    pairs = zip(seconds["first step, cold"], seconds["first step, warm"], strict=True)
    ratios = [warm / cold for cold, warm in pairs]
    print(f"ratio {spread(ratios)}")
    figures = {"machine": described, "options": vars(options), "seconds": seconds}
    return figures | {"ratio": {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}}


def first_step(command: list[str], ends: re.Pattern[str] = _FIRST_STEP) -> tuple[float, float]:
    """Seconds from the start of a training run to the line of its first step, at which it is killed; and to the launch
    of that step, less those that the log gives for compiling."""
    start, launch = time.perf_counter(), 0.0
    with subprocess.Popen(
        [sys.executable, *command], cwd=REPOSITORY, env=_environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        lines: list[str] = []
        for line in process.stderr:
            lines.append(line)
            if compiled := _COMPILED.search(line):
                launch = time.perf_counter() - start - float(compiled[1])
            if ends.search(line):
                seconds = time.perf_counter() - start
                process.send_signal(signal.SIGKILL)
                return seconds, launch
    raise UserError(f"{' '.join(command)}\nended without a first step:\n{''.join(lines)[-3000:]}")


def step_after_kill(command: list[str], workdir: Path) -> tuple[float, float]:
    """What `first_step` returns, where a killed run has left a checkpoint."""
    saving = [*command, "--config.checkpoint.every=2", "--config.train.steps=1000000", f"--workdir={workdir}"]
    with subprocess.Popen(
        [sys.executable, *saving], cwd=REPOSITORY, env=_environment(), stderr=subprocess.DEVNULL
    ) as run:
        while run.poll() is None and not any(path.name.isdecimal() for path in workdir.glob("checkpoints/*")):
            time.sleep(0.05)
        run.kill()
    return first_step(saving, _ANY_STEP)


def _command(options: argparse.Namespace, scratch: Path) -> list[str]:
    settings = {
        "data.prepared": scratch / "prepared",
        "train.batch_size": options.batch,
        "train.log_every": 1,
        "train.steps": 10,
        "eval.at_start": False,
        "eval.every": 1_000_000,
        "checkpoint.every": 1_000_000,
    }
    config = f"--config=experiments/base.py:{options.size}"
    return ["-m", "bert_jax.main", config, *(f"--config.{key}={value}" for key, value in settings.items())]


def _finished(command: list[str]) -> float:
    start = time.perf_counter()
    result = subprocess.run([sys.executable, *command], cwd=REPOSITORY, env=_environment(), capture_output=True)
    if result.returncode:
        raise UserError(f"{' '.join(command)} ended with status {result.returncode}:\n{result.stderr.decode()[-3000:]}")
    return time.perf_counter() - start


def _environment() -> dict[str, str]:
    """A compilation cache of the user's would make the first run warm."""
    return {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--size", default="base")
    add("--batch", type=int, default=8, help="rows a step, of 128 tokens")
    add("--rounds", type=int, default=2)
    add("--json", default="", help="file for the figures")
    return parser.parse_args()


if __name__ == "__main__":
    main()
