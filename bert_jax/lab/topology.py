"""The machines that `--topology` names: what their devices have, and how to get hold of them without having them.

    [COUNTx]CHIP:SHAPE    v5e:2x4    v4:2x2x2    2xv5e:4x4 (two slices)    h100:8    cpu:8

The shape is the number of chips along each axis of a TPU slice; of GPUs and CPUs it is their number. Nothing here
imports jax: what `environment` returns has to be set before that.
"""

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bert_jax.config import UserError
from bert_jax.extras import install
from bert_jax.option import can_be

GIB = 1 << 30


@dataclass(frozen=True)
class Chip:
    """What one device has; None is unknown. Its peak of operations is in `training/throughput.py:PEAK_TFLOPS`."""

    platform: str  # as jax calls it
    axes: int  # of a slice
    example: str  # a shape
    memory: float | None = None  # bytes that a program may use
    bandwidth: float | None = None  # bytes per second of its memory
    network: float | None = None  # bytes per second that it can send to the others of its slice or host


# memory: what the compiler of libtpu 0.0.42 reports as available; of the H100, the size that its driver reports.
# bandwidth and network: docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e and NVIDIA's data sheet of the H100 SXM, as
# of 2026. They give the network's bandwidth of a chip for both directions together; half of it counts here.
CHIPS = {
    "v4": Chip("tpu", 3, "2x2x2", 30.75 * GIB, 1228e9, 300e9),
    "v5e": Chip("tpu", 2, "2x4", 15.75 * GIB, 819e9, 200e9),
    "v5p": Chip("tpu", 3, "2x2x2", 95.74 * GIB, 2765e9, 600e9),
    "v6e": Chip("tpu", 2, "4x4", 31.25 * GIB, 1640e9, 400e9),
    "h100": Chip("gpu", 1, "8", 84929347584, 3352e9, 450e9),
    "cpu": Chip("cpu", 1, "8"),
}
GPUS_PER_HOST = 8

_NAME = re.compile(r"(?:(\d{1,4})x)?([a-z]\w*):(\d{1,4}(?:x\d{1,4})*)")
# Modules of which one has to be there, and the extra that brings the first.
_COMPILERS = {
    "tpu": (("libtpu",), "tpu"),
    "gpu": (("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12"), "cuda13"),
    "cpu": (("jax",), ""),
}
# What libtpu asks the machine for, which is no TPU: the type is needed but does not limit what is compiled for.
_FOR_LIBTPU = {
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_LOG_DIR": "disabled",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # another process may be compiling too
}


@dataclass(frozen=True)
class Topology:
    """A machine to compile for."""

    name: str
    chip: str
    shape: tuple[int, ...]
    slices: int = 1

    @classmethod
    def parse(cls, name: str) -> "Topology":
        """Returns the machine of a name. Raises UserError that says which names there are."""
        match = _NAME.fullmatch(name)
        known = ", ".join(f"{chip}:{about.example}" for chip, about in CHIPS.items())
        forms = f"it must be CHIP:SHAPE, such as {known}, or COUNTxCHIP:SHAPE for several slices of TPUs, as 2xv5e:4x4"
        if match is None:
            raise UserError(f"--topology is '{name}'; {forms}")
        chip, sizes = match[2], tuple(map(int, match[3].split("x")))
        if chip not in CHIPS:
            raise UserError(f"--topology is '{name}', and there is no chip '{chip}'; {can_be(chip, CHIPS)}; {forms}")
        about, slices = CHIPS[chip], int(match[1] or 1)
        if len(sizes) != about.axes or 0 in sizes or not slices:
            raise UserError(f"--topology is '{name}'; {chip} needs {_in_words(about)}, as in {chip}:{about.example}")
        if slices > 1 and about.platform != "tpu":
            raise UserError(f"--topology is '{name}'; only TPUs have slices: give the number of all devices, {chip}:N")
        if about.platform == "gpu" and sizes[0] > GPUS_PER_HOST and sizes[0] % GPUS_PER_HOST:
            raise UserError(f"--topology is '{name}'; over {GPUS_PER_HOST} GPUs must fill hosts of {GPUS_PER_HOST}")
        return cls(name, chip, sizes, slices)

    @property
    def has(self) -> Chip:
        return CHIPS[self.chip]

    def check_installed(self) -> None:
        """Raises UserError if the compiler for this machine is not installed."""
        modules, extra = _COMPILERS[self.has.platform]
        if not any(map(_is_installed, modules)):
            raise UserError(f"--topology={self.name} needs {modules[0]}: {install(extra)}")

    def environment(self, current: Mapping[str, str]) -> dict[str, str]:
        """Returns the environment of a process that compiles for this machine."""
        variables = dict(current) | {"JAX_PLATFORMS": "cpu"}
        variables.pop("GLIBC_TUNABLES", None)  # the kept heap (`heap.py`) is for steps that run
        flags = {"cpu": f"--xla_force_host_platform_device_count={self.shape[0]}", "gpu": "--xla_gpu_autotune_level=0"}
        if self.has.platform in flags:  # the last of two flags counts
            variables["XLA_FLAGS"] = f"{current.get('XLA_FLAGS', '')} {flags[self.has.platform]}".strip()
        return variables | (_FOR_LIBTPU if self.has.platform == "tpu" else {})

    def devices(self) -> list[Any]:
        """Returns the devices, which can be compiled for and nothing else. Raises UserError if the compiler knows no
        such machine."""
        import jax
        from jax.experimental import topologies

        if self.has.platform == "cpu":
            return jax.devices("cpu")
        if self.has.platform == "gpu":
            options: dict[str, Any] = {"target_config": target(self.chip), "topology": _hosts(self.shape[0])}
            describe = partial(topologies.get_topology_desc, self.chip, "cuda", **options)
        else:
            options = {"num_slices": self.slices} if self.slices > 1 else {}
            # By default the two cores of a v4 chip are two devices, which no machine offers.
            options |= {"chip_config_name": "megacore"} if self.chip == "v4" else {}
            shape = "x".join(map(str, self.shape))
            describe = partial(topologies.get_topology_desc, f"{self.chip}:{shape}", "tpu", **options)
        try:
            return list(describe().devices)
        except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"--topology={self.name} is not a machine that the compiler knows ({reason})") from error


def target(chip: str) -> str:
    """Returns the description of a GPU for XLA, a GpuTargetConfigProto as text."""
    return (Path(__file__).parent / "targets" / f"{chip}.txtpb").read_text(encoding="utf-8")


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package
        return False


def _hosts(gpus: int) -> str:
    """Returns slices × hosts × GPUs of a host, as XLA writes it."""
    return f"1x{max(1, gpus // GPUS_PER_HOST)}x{min(gpus, GPUS_PER_HOST)}"


def _in_words(about: Chip) -> str:
    return "the number of devices" if about.axes == 1 else f"a size for each of its {about.axes} axes"
