"""How fast a run is, and how fast the machine could be: operations, bytes, peak memory, the limit that binds."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jax.stages import Compiled

from bert_jax.backend import current
from bert_jax.sharding import Mesh
from bert_jax.tasks.task import Batch, Sums, Task
from bert_jax.training.memory import peak_bytes
from bert_jax.training.observer import Observer
from bert_jax.training.step import TrainState, batch_shape

# Dense bfloat16 peaks in TFLOP/s by a part of `device_kind`, from the makers' data sheets; the first match counts. TPU
# v5 is v5p; a device of TPU v3 is one core.
PEAK_TFLOPS = {"B200": 2250, "H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "A100": 312}
PEAK_TFLOPS |= {"L40S": 362, "L40": 181, "L4": 121, "A10G": 70, "V100": 125, "T4": 65}
PEAK_TFLOPS |= {"TPU v6": 918, "TPU v5 lite": 197, "TPU v5e": 197, "TPU v5": 459}
PEAK_TFLOPS |= {"TPU v4": 275, "TPU v3": 61.5, "TPU v2": 23}

# Metrics of a training line that are about the machine, and differ between two runs of the same bits.
MEASURED = ("tokens_per_second", "sequences_per_second", "step_seconds", "mfu", "wait_share")
MEASURED += ("peak_bytes", "device_peak_bytes")


class Throughput(Observer):
    """Measures a run: tokens and sequences per second, MFU, the share of time spent waiting for data, peak memory.

    Compiling, evaluating and saving do not count as training time. While this process waits for data the device may
    still be busy with a step, so `wait_share` is an upper bound of the device's idleness.
    """

    def begin(self, task: Task, state: TrainState, mesh: Mesh) -> None:
        self.task, self.device, self.is_new = task, mesh.local_devices[0], True
        self.sizes, self.mesh = jax.eval_shape(lambda x: x, state), mesh
        self.roofline: Roofline | None = None
        self.peaks: dict[frozenset, int] = {}  # by shape of a batch, where the back end says
        self.used: list[int] = []  # peaks of the steps since the last report
        self.restart_clock()

    def enter_phase(self, task: Task) -> None:
        if self.roofline is not None:
            moved = self.roofline.bytes + task.bytes_per_step - self.task.bytes_per_step
            self.roofline = replace(self.roofline, flops=task.flops_per_step, bytes=moved)
        self.task, self.is_new = task, True

    def before_batch(self) -> None:
        self.asked = time.perf_counter()

    def before_step(self, batch: Batch) -> None:
        self.waited += time.perf_counter() - self.asked
        self.shape = batch_shape(batch)

    def compiled(self, batch: Batch, program: Compiled, waited: float) -> None:
        if self.roofline is None:  # nothing else runs now that would make the machine look slower than it is
            start = time.perf_counter()
            self.roofline = roofline(self.task, self.sizes, self.mesh)
            self.started += time.perf_counter() - start
        self.started += waited
        if self.is_new:
            logging.info("%s", self.roofline)
            self.is_new = False
        largest, peak = max(self.peaks.values(), default=0), peak_bytes(program)
        if peak is not None:
            self.peaks[batch_shape(batch)] = peak
            if peak > largest:
                rows = "×".join(map(str, batch["input_ids"].shape))
                text = "batches of %s: waited %.1f s for the compiler, peak %.3g GB per device"
                logging.info(text, rows, waited, peak / 1e9)

    def after_step(self, sums: Sums) -> bool:
        self.steps += 1
        self.used += [self.peaks[self.shape]] if self.shape in self.peaks else []
        return False

    def restart_clock(self) -> None:
        self.started = time.perf_counter()
        self.waited, self.steps = 0.0, 0

    def report(self) -> dict[str, float]:
        """Returns rates of the steps since the clock was restarted, and `peak_bytes` of the largest step since the last
        report; `device_peak_bytes`, of the whole process, where the back end counts it."""
        metrics = {"peak_bytes": float(max(self.used))} if self.used else {}
        seconds = time.perf_counter() - self.started
        if self.steps and self.roofline is not None:
            metrics |= {
                "tokens_per_second": self.steps * self.task.tokens_per_step / seconds,
                "sequences_per_second": self.steps * self.task.config.train.batch_size / seconds,
                "step_seconds": seconds / self.steps,
                "mfu": self.steps * self.task.flops_per_step / seconds / self.roofline.peak,
                "wait_share": min(self.waited / seconds, 1.0),
            }
        counted = self.device.memory_stats() or {}
        if "peak_bytes_in_use" in counted:
            metrics["device_peak_bytes"] = float(counted["peak_bytes_in_use"])
        self.used = []
        self.restart_clock()
        return metrics


@dataclass(frozen=True)
class Roofline:
    """A step against the two limits of its devices (Williams, Waterman and Patterson 2009), all devices together."""

    flops: float  # floating-point operations of a step
    bytes: float  # a lower bound of the bytes that it reads and writes
    peak: float  # operations per second
    bandwidth: float  # bytes per second

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.flops / self.bytes

    def __str__(self) -> str:
        turn, products, memory = self.peak / self.bandwidth, self.flops / self.peak, self.bytes / self.bandwidth
        limit = "matrix products" if products > memory else "memory"
        return (
            f"a step has {self.flops / 1e12:.3g} TFLOP and moves at least {self.bytes / 1e9:.3g} GB, "
            f"{self.intensity:.3g} FLOP per byte; this machine's limits meet at {turn:.3g}: "
            f"the limit is {limit}, at {max(products, memory):.3g} s per step"
        )


def roofline(task: Task, state: TrainState, mesh: Mesh) -> Roofline:
    """Returns the roofline of a run; measures this machine the first time and logs the result."""
    train = task.config.train
    peak, source = peak_flops(train.peak_tflops, mesh)
    bandwidth = copy_bandwidth(mesh)
    logging.info("peak: %s; memory %.3g GB/s (measured copy)", source, bandwidth / 1e9)
    parts = (state.parameters, (state.optimizer, state.average))  # which are both read and written once
    parameters, optimizer = (sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(part)) for part in parts)
    moved = state_traffic(parameters, optimizer, train.accumulation) * mesh.size
    return Roofline(task.flops_per_step, task.bytes_per_step + moved, peak, bandwidth)


def state_traffic(parameters: int, optimizer: int, accumulation: int = 1) -> int:
    """Returns the bytes that a step moves for a state of so many bytes."""
    # Parameters are read by the forward and the backward pass of every micro-batch and by the update, which writes
    # them; gradients are written once (each further micro-batch reads and writes them again) and read by the norm and
    # the update, which also reads and writes the optimizer's state.
    return parameters * (2 * accumulation + 2) + parameters * (2 * accumulation + 1) + 2 * optimizer


def peak_flops(stated_tflops: float, mesh: Mesh) -> tuple[float, str]:
    """Returns the operations per second of all devices of the mesh, and the source of the number: 1. the config
    (`train.peak_tflops`, of one device), 2. the data sheet of a known accelerator, 3. a large product, timed now."""
    kind, tflops = mesh.devices.flat[0].device_kind, known_tflops(stated_tflops, mesh)
    if tflops is None:
        measured = _measured_flops()
        return measured * _independent(mesh), f"{measured / 1e12:.2f} TFLOP/s (measured bfloat16 product)"
    source = "train.peak_tflops" if stated_tflops else f"{kind}, data sheet"
    return tflops * 1e12 * mesh.size, f"{tflops:g} TFLOP/s per device ({source})"


def known_tflops(stated_tflops: float, mesh: Mesh) -> float | None:
    """Returns the peak of one device by the config or its data sheet; None if neither says."""
    kind = mesh.devices.flat[0].device_kind
    known = (tflops for name, tflops in PEAK_TFLOPS.items() if name.lower() in kind.lower())
    return stated_tflops or next(known, None)


def copy_bandwidth(mesh: Mesh) -> float:
    """Returns the bytes per second that all devices of the mesh read and write, by a large copy, timed once per
    process."""
    return _measured_bandwidth() * _independent(mesh)


def _independent(mesh: Mesh) -> int:
    """Returns how often the measured speed is there: virtual CPU devices share the cores that were measured."""
    return 1 if mesh.backend.is_cpu else mesh.size


@cache
def _measured_flops() -> float:
    size = 2048 if current().is_cpu else 8192  # long enough for the launch not to count
    x = jnp.tile(jnp.asarray(np.random.default_rng(0).standard_normal((size // 16, size)), jnp.bfloat16), (16, 1))
    product = jax.jit(lambda x: jnp.matmul(x, x, preferred_element_type=jnp.float32))
    return 2 * size**3 / _seconds(lambda: product(x))


@cache
def _measured_bandwidth() -> float:
    """Values are read and written in place: with fresh memory the time of the kernel that hands it out would count."""
    size = 128 << 20 if current().is_cpu else 1 << 30  # over what caches hold
    held = [jnp.zeros(size // 4, jnp.float32)]
    add = jax.jit(lambda x: x + 1, donate_argnums=0)

    def step():
        held[0] = add(held[0])
        return held[0]

    return 2 * size / _seconds(step)


def _seconds(run: Callable[[], jax.Array], repeats: int = 3) -> float:
    """Returns the time of the fastest run after the first, which compiles."""
    run().block_until_ready()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run().block_until_ready()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
