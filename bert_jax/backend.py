"""What differs between CPU, GPU and TPU, decided once from the devices that a program runs on.

Whoever builds a program for a mesh traces it by `Mesh.traced` (sharding.py); the code of models and tasks asks
`current()`. So a program for a TPU can be traced on a machine that has none.
"""

import contextlib
import logging
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cache, wraps
from pathlib import Path
from types import MappingProxyType
from typing import Any, ParamSpec, TypeVar

import jax

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Backend:
    """The decisions for one kind of device.

    The constants were measured on the machine named beside them. They decide speed, never what is computed, except
    that another order of products changes the last bits.
    """

    platform: str
    is_cpu: bool = False
    float32_accumulators: bool = False  # the product of bfloat16 operands is asked for in float32
    row_major_operands: bool = False  # products take operands and give results that lie row-major in memory
    smallest_side: int = 0  # products with a shorter side are computed in float32
    unrolls_layers: bool = False  # under model.layers=auto; a loop compiles faster
    vocabulary_multiple: int = 128  # the vocabulary of the MLM product is padded to it: the size of a tile
    bfloat16_is_fast: bool = True  # whether its products take less time than those of float32
    fused_attention: bool = False  # model.attention=auto may use cuDNN
    steps_in_flight: int = 2
    tokens_per_batch: int | None = None  # of a prediction batch; None = as many as the batch size allows
    flops: float = 5e13  # per second: half of what a device reaches at best, to weigh compiling against computing
    compiler_options: Mapping[str, int | bool | str] = field(default_factory=dict)
    # Measured on the CPUs below, on 21 November 2026; no other device has values of its own yet.
    seconds_per_layer: float = 1.0  # that compiling a step takes
    attention_share: float = 25.0  # of `crossover_length`
    saved_share: float = 0.005  # of the tokens of a prediction call that one more program has to save

    def accumulator(self, dtype: str) -> str:
        """Returns the dtype in which a product costs nothing extra."""
        return "float32" if self.float32_accumulators else dtype

    def crossover_length(self, hidden_size: int, heads: int) -> float:
        """Returns the length of rows at which attention takes as long as the rest of a layer (MiniLM: 500 tokens)."""
        return hidden_size**2 / (self.attention_share * heads)


def _unless_in_xla_flags(options: Mapping[str, int | bool | str]) -> Mapping[str, int | bool | str]:
    """Returns the options that the user does not set: options of a program would win over those of XLA_FLAGS, which
    XLA too reads once."""
    given = {word.removeprefix("--").partition("=")[0] for word in os.environ.get("XLA_FLAGS", "").split()}
    return MappingProxyType({name: value for name, value in options.items() if name not in given})


def _has_fast_bfloat16() -> bool:
    """Returns False for x86 CPUs without AMX: those that have AVX512-BF16 take 1.6 times as long for the products of
    a MiniLM in bfloat16 as in float32, be it by XLA or OpenVINO, and others have no such instructions at all."""
    information = Path("/proc/cpuinfo")
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return not is_x86 or not information.is_file() or "amx_bf16" in information.read_text()


# 2-core x86 CPUs with AMX, November 2026: oneDNN's bfloat16 kernels are reached only by row-major operands and float32
# results, and gain nothing under 16. A padded table costs more than it gains. LLVM's higher optimisation levels take a
# quarter of the compile time and gain nothing. A batch of 2,048 tokens stays in the caches (MiniLM: 64 rows of 128
# tokens take an eighth more time per token than 16 do, 16 rows of 512 a fifth more than 4). Memory is allocated at
# launch.
CPU = Backend(
    "cpu",
    is_cpu=True,
    float32_accumulators=True,
    row_major_operands=True,
    smallest_side=16,
    bfloat16_is_fast=_has_fast_bfloat16(),
    unrolls_layers=True,
    vocabulary_multiple=1,
    steps_in_flight=1,
    tokens_per_batch=2048,
    flops=4e11,
    compiler_options=_unless_in_xla_flags({"xla_backend_optimization_level": 1}),
)
GPU = Backend("gpu")
TPU = Backend("tpu")

_current: ContextVar[Backend | None] = ContextVar("backend", default=None)


@cache
def backend_of(device: Any) -> Backend:  # jax.Device is not a type for pyright
    """Returns the backend of a device."""
    if device.platform == "cpu":
        return CPU
    if device.platform == "gpu":  # cuDNN's kernel needs Ampere or later; AMD's devices have names in place of numbers
        capability = str(getattr(device, "compute_capability", ""))
        return replace(GPU, fused_attention=capability.replace(".", "").isdigit() and float(capability) >= 8)
    return TPU


def current() -> Backend:
    """Returns the backend that `use_backend` set, or else that of the process's default device."""
    return _current.get() or _default()


@contextlib.contextmanager
def use_backend(backend: Backend) -> Iterator[None]:
    """Lets `current()` return `backend` for what is traced inside."""
    token = _current.set(backend)
    try:
        yield
    finally:
        _current.reset(token)


def traced_for(backend: Backend, function: Callable[P, R]) -> Callable[P, R]:
    """Returns the function as it is traced under `use_backend(backend)`, whenever that happens."""

    @wraps(function)
    def traced(*args: P.args, **kwargs: P.kwargs) -> R:
        with use_backend(backend):
            return function(*args, **kwargs)

    return traced


@cache
def _default() -> Backend:
    return backend_of(jax.devices()[0])


def keep_programs(workdir: Path) -> None:
    """Keeps compiled programs beside the workdir for later runs, also small ones: by itself jax keeps those that took
    a second, which an evaluation's does not. jax's own settings have precedence."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = workdir.absolute().parent / ".compiled"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as problem:  # costs time, nothing else
            logging.warning("%s cannot be written to (%s): programs are not kept", folder, problem.strerror)
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.02)
