"""What the benchmarks share: the machine in words, variants timed in turns, medians and ratios."""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from bert_jax.config import UserError


class Times(NamedTuple):
    """A variant's seconds, round by round: by the clock, and of all threads of this process together."""

    wall: list[float]
    cpu: list[float]


def run_in_scratch(options: argparse.Namespace, compare: Callable[[argparse.Namespace, Path], Any]) -> None:
    """Calls `compare` with `options` and a folder: that of --scratch, or one that is removed afterwards. What it
    returns, if anything, is written to --json. A mistake that a user can correct ends the program with one line."""
    try:
        with tempfile.TemporaryDirectory() as temporary:
            figures = compare(options, Path(getattr(options, "scratch", "") or temporary))
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    if figures is not None and getattr(options, "json", ""):
        Path(options.json).write_text(json.dumps(figures, indent=1) + "\n")


def machine(packages: Sequence[str]) -> dict[str, str]:
    """Processor, cores, load; versions of Python and `packages`; threads."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "machine": f"{cpu}, {usable} cores, load {os.getloadavg()[0]:.1f} at the start",
        "versions": f"Python {platform.python_version()}, {versions}",
        "heap": os.environ.get("GLIBC_TUNABLES", "as the kernel has them"),
    }


def in_turns(variants: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, Times]:
    """A B C A B C …, so that a slow minute of the machine falls on all. Warm them up before."""
    times = {name: Times([], []) for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            times[name].wall.append(time.perf_counter() - wall)
            times[name].cpu.append(time.process_time() - cpu)
    return times


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median and range, as in 1.62 (1.55–1.70)."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


class Ratio(NamedTuple):
    """How many times as fast as the peer ours is: that of the medians, and the range of rounds, each of which compares
    runs that came one after the other."""

    median: float
    low: float
    high: float
    peer: str

    def __str__(self) -> str:
        return f"ratio {self.median:.2f} ({self.low:.2f}–{self.high:.2f})"


def ratio_to_best(ours: Sequence[float], peers: Mapping[str, Sequence[float]]) -> Ratio:
    """Of seconds; the best peer is the one with the lowest median."""
    best = min(peers, key=lambda name: statistics.median(peers[name]))
    rounds = [b / a for a, b in zip(ours, peers[best], strict=True)]
    return Ratio(statistics.median(peers[best]) / statistics.median(ours), min(rounds), max(rounds), best)
