"""How much the machine could do: the denominator of model FLOPs utilisation (MFU)."""

import time

import jax
import jax.numpy as jnp
import numpy as np

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
    # Virtual CPU devices share the cores that were just measured; other devices each have their own.
    devices_apart = 1 if devices[0].platform == "cpu" else len(devices)
    return measured * devices_apart, f"{measured / 1e12:.2f} TFLOP/s (measured bfloat16 product)"


def _measured_flops(size: int = 2048, repeats: int = 5) -> float:
    x = jnp.asarray(np.random.default_rng(0).standard_normal((size, size)), jnp.bfloat16)
    product = jax.jit(lambda x: jnp.matmul(x, x, preferred_element_type=jnp.float32))
    product(x).block_until_ready()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        product(x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)
