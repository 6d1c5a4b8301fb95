"""How fast a run is, and what the machine could do: operations, bytes, peak memory, the limit that binds."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.stages import Compiled, Wrapped

from bert_jax.config import UserError
from bert_jax.tasks.task import Batch, Sums, Task

DATA_WAIT = "bert_jax data wait"  # names in a profile's trace what the loop spends on waiting for a batch

# Dense bfloat16 peaks in TFLOP/s by a part of `device_kind`, from the makers' data sheets; first match wins.
PEAK_TFLOPS = (
    ("B200", 2250),
    ("H200", 989),
    ("H100 PCIe", 756),
    ("H100 NVL", 835),
    ("H100", 989),
    ("A100", 312),
    ("L40S", 362),
    ("L40", 181),
    ("L4", 121),
    ("A10G", 70),
    ("V100", 125),
    ("T4", 65),
    ("TPU v6", 918),
    ("TPU v5 lite", 197),
    ("TPU v5e", 197),
    ("TPU v5", 459),  # v5p
    ("TPU v4", 275),
    ("TPU v3", 61.5),  # of one core, which is one device
    ("TPU v2", 23),
)


@dataclass(frozen=True)
class Roofline:
    """A step against the device's two limits (Williams, Waterman and Patterson 2009), all devices together."""

    flops: float  # of a step
    bytes: float  # that it reads and writes at the least
    peak: float  # operations a second
    bandwidth: float  # bytes a second

    @property
    def intensity(self) -> float:
        """Operations a byte."""
        return self.flops / self.bytes

    def __str__(self) -> str:
        turn, products, memory = self.peak / self.bandwidth, self.flops / self.peak, self.bytes / self.bandwidth
        limit = "matrix products" if products > memory else "memory"
        return (
            f"a step is {self.flops / 1e12:.3g} TFLOP and moves at least {self.bytes / 1e9:.3g} GB, "
            f"{self.intensity:.3g} FLOP a byte where this machine turns at {turn:.3g}: "
            f"the limit is {limit}, at {max(products, memory):.3g} s a step"
        )


def roofline(task: Task, state: Any, config: Any) -> Roofline:
    """Of a run whose state is a `TrainState`; measures this machine the first time and logs what it found."""
    peak, source = peak_flops(config.train.peak_tflops)
    bandwidth = copy_bandwidth()
    logging.info("peak: %s; memory %.3g GB/s (measured copy)", source, bandwidth / 1e9)
    parameters, optimizer = (
        sum(x.nbytes for x in jax.tree.leaves(part)) for part in (state.parameters, state.optimizer)
    )
    moved = state_traffic(parameters, optimizer, config.train.accumulation) * len(state.step.sharding.device_set)
    return Roofline(task.flops_per_step, task.bytes_per_step + moved, peak, bandwidth)


def state_traffic(parameters: int, optimizer: int, accumulation: int = 1) -> int:
    """Bytes that a step moves for a state of so many bytes.

    Parameters are read by the forward and the backward pass of every micro-batch and by the update, which writes them;
    gradients are written once (each further micro-batch reads and writes them again) and read by the norm and the
    update, which also reads and writes what the optimizer keeps.
    """
    return parameters * (2 * accumulation + 2) + parameters * (2 * accumulation + 1) + 2 * optimizer


def peak_flops(stated_tflops: float) -> tuple[float, str]:
    """Operations a second of all devices together, and where the figure comes from, in this order:

    1. stated in the config (`train.peak_tflops`, of one device)
    2. the data sheet of a known accelerator
    3. a large matrix product, timed now
    """
    devices = jax.devices()
    if stated_tflops:
        return stated_tflops * 1e12 * len(devices), f"{stated_tflops:g} TFLOP/s a device (train.peak_tflops)"
    for name, tflops in PEAK_TFLOPS:
        if name.lower() in devices[0].device_kind.lower():
            return tflops * 1e12 * len(devices), f"{tflops} TFLOP/s a device ({devices[0].device_kind}, data sheet)"
    measured = _measured_flops()
    return measured * _devices_apart(), f"{measured / 1e12:.2f} TFLOP/s (measured bfloat16 product)"


def copy_bandwidth() -> float:
    """Bytes a second that all devices together read and write, by a large copy, timed once in a process."""
    return _measured_bandwidth() * _devices_apart()


class Programs:
    """The programs that a jitted train step is compiled to, one for each shape of a batch."""

    def __init__(self, step: Callable[..., Any], roofline: Roofline):
        self.step, self.roofline = cast(Wrapped, step), roofline
        self.compiled: dict[frozenset, Compiled] = {}
        self.peaks: dict[frozenset, int | None] = {}

    def has(self, batch: Batch) -> bool:
        return _shape(batch) in self.compiled

    def compile(self, state: Any, batch: Batch, key: Any) -> None:
        """What this batch needs; jit, when it is called with it, finds the program made."""
        start = time.perf_counter()
        program = self.step.lower(state, batch, key).compile()
        seconds = time.perf_counter() - start
        if not self.compiled:
            logging.info("%s", self.roofline)
        largest = max((peak or 0 for peak in self.peaks.values()), default=0)
        shape, peak = _shape(batch), peak_bytes(program)
        self.compiled[shape], self.peaks[shape] = program, peak
        if peak is not None and peak > largest:
            rows = "×".join(map(str, batch["input_ids"].shape))
            logging.info("batches of %s: compiled in %.1f s, peak %.3g GB a device", rows, seconds, peak / 1e9)

    def peak_bytes(self, batch: Batch) -> int | None:
        """Of the step with this batch."""
        return self.peaks[_shape(batch)]


class Window:
    """The steps since the last report: their sums, how long they took, and how long this process waited for data.

    The device may still be busy with a step meanwhile: the share of waiting is a bound on its idleness from above.
    Compilation is not counted, nor are evaluations and checkpoints if `restart_clock` is called after them.
    """

    def __init__(self, task: Task, rows: int, programs: Programs):
        self.task, self.rows, self.programs = task, rows, programs
        self.sums: list[Sums] = []
        self.peaks: list[int | None] = []
        self.restart_clock()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        start = time.perf_counter()
        with jax.profiler.TraceAnnotation(DATA_WAIT):
            yield
        self.waited += time.perf_counter() - start

    def launch(self, state: Any, batch: Batch, key: Any) -> tuple[Any, Sums]:
        """The next step; it may still be running when this returns. A CPU hands out its temporary memory at once, so
        there it begins when the one before has ended: two of them would hold it twice."""
        if not self.programs.has(batch):
            self.wait()
            start = time.perf_counter()
            self.programs.compile(state, batch, key)
            self.started += time.perf_counter() - start
        if jax.default_backend() == "cpu":
            self.wait()
        self.launched_peak = self.programs.peak_bytes(batch)
        return self.programs.step(state, batch, key)

    def wait(self) -> None:
        jax.block_until_ready(self.sums[-1:])

    def add(self, sums: Sums) -> None:
        """Keeps the sums of the step just launched, and waits for the one before: at most two run, on a CPU one."""
        self.wait()
        self.sums.append(sums)
        self.peaks.append(self.launched_peak)

    def restart_clock(self) -> None:
        self.started = time.perf_counter()
        self.waited = 0.0
        self.timed_from = len(self.sums)

    def flush(self, step: int) -> dict[str, float]:
        """Metrics over the window that ends with `step`. Raises UserError if the loss is no longer a number."""
        sums = jax.device_get(self.sums)
        seconds, steps = time.perf_counter() - self.started, len(sums) - self.timed_from
        totals = jax.tree.map(lambda *x: np.sum(np.asarray(x, np.float64), axis=0), *sums)
        metrics = self.task.means(totals)
        if not np.isfinite(metrics["loss"]):
            raise UserError(
                f"the loss is {metrics['loss']} at step {step}; the last checkpoint is whole: "
                "start again with a lower optimizer.learning_rate or a longer optimizer.warmup_steps"
            )
        if steps > 0:
            metrics |= {
                "tokens_per_second": steps * self.task.tokens_per_step / seconds,
                "sequences_per_second": steps * self.rows / seconds,
                "step_seconds": seconds / steps,
                "mfu": steps * self.task.flops_per_step / seconds / self.programs.roofline.peak,
                "wait_share": min(self.waited / seconds, 1.0),
            }
        metrics |= self._memory()
        self.sums, self.peaks = [], []
        self.restart_clock()
        return metrics

    def _memory(self) -> dict[str, float]:
        """`peak_bytes` of the window's largest step; `device_peak_bytes`, of the process, where counted."""
        known = [peak for peak in self.peaks if peak is not None]
        counted = jax.local_devices()[0].memory_stats() or {}
        memory = {"peak_bytes": float(max(known))} if known else {}
        if "peak_bytes_in_use" in counted:
            memory["device_peak_bytes"] = float(counted["peak_bytes_in_use"])
        return memory


def peak_bytes(program: Compiled) -> int | None:
    """Memory of one device that a call takes: arguments, results and temporary arrays, what is donated counted once.
    None where the back end does not say."""
    memory = program.memory_analysis()
    if memory is None:
        return None
    arrays = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return arrays - memory.alias_size_in_bytes


@cache
def _measured_flops(repeats: int = 3) -> float:
    size = 2048 if jax.default_backend() == "cpu" else 8192  # long enough for the launch not to count
    x = jnp.tile(jnp.asarray(np.random.default_rng(0).standard_normal((size // 16, size)), jnp.bfloat16), (16, 1))
    product = jax.jit(lambda x: jnp.matmul(x, x, preferred_element_type=jnp.float32))
    return 2 * size**3 / _seconds(lambda: product(x), repeats)


@cache
def _measured_bandwidth(repeats: int = 3) -> float:
    """Each value is read and written in its place: fresh memory would be timed with the kernel's handing it out."""
    size = 128 << 20 if jax.default_backend() == "cpu" else 1 << 30  # over what caches hold
    held = [jnp.zeros(size // 4, jnp.float32)]
    add = jax.jit(lambda x: x + 1, donate_argnums=0)

    def step():
        held[0] = add(held[0])
        return held[0]

    return 2 * size / _seconds(step, repeats)


def _seconds(run: Callable[[], jax.Array], repeats: int) -> float:
    """Of the fastest run after the first, which compiles."""
    run().block_until_ready()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run().block_until_ready()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _devices_apart() -> int:
    """Virtual CPU devices share the cores that are measured; other devices each have their own."""
    return 1 if jax.default_backend() == "cpu" else jax.device_count()


def _shape(batch: Batch) -> frozenset:
    return frozenset((name, x.shape, str(x.dtype)) for name, x in batch.items())
