"""Parameters in fewer bits on disk: bfloat16, float16, or int8 with scales. They are float32 wherever they are used.

int8 is symmetric and of weights alone: x ≈ number · scale, with one scale for each output of a kernel and for each row
of the word table. Scales are float32 arrays beside them (`…/kernel_scale`). Biases, LayerNorms, positions and heads,
which are small, stay float32. What it saves is size: every product is still one of float32 numbers.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from bert_jax.config import UserError

DTYPES = ("float32", "bfloat16", "float16", "int8")
SCALE = "_scale"
_LARGEST = 127  # −128 is left out, so that x and −x are rounded alike


def stored(parameters: Mapping[str, object], dtype: str) -> dict[str, np.ndarray]:
    """Returns the parameters as they are stored in one of DTYPES. Raises UserError for numbers beyond its range."""
    arrays = {name: np.asarray(x, np.float32) for name, x in parameters.items()}
    if dtype == "float32":
        return arrays
    if dtype != "int8":
        kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
        largest = float(ml_dtypes.finfo(kind).max)
        for name, x in arrays.items():
            if x.size and np.max(np.abs(x)) > largest:
                raise UserError(f"--dtype={dtype}: {name} has numbers beyond {largest:g}; choose bfloat16 or float32")
        return {name: x.astype(kind) for name, x in arrays.items()}
    found: dict[str, np.ndarray] = {}
    for name, x in arrays.items():
        axis = _axis(name)
        if axis is None:
            found[name] = x
            continue
        scale = np.max(np.abs(x), axis, keepdims=True) / np.float32(_LARGEST)
        scale[scale == 0] = 1  # a row of zeros, such as those that fill up a vocabulary
        found[name] = np.rint(x / scale).astype(np.int8)
        found[name + SCALE] = scale
    return found


def widened(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Returns stored parameters in float32. They may be of JAX or NumPy; float32 ones are returned as they are."""
    whole = {}
    for name, x in parameters.items():
        if name.endswith(SCALE) and name.removesuffix(SCALE) in parameters:
            continue
        x = x if x.dtype == jnp.float32 else x.astype(jnp.float32)
        scale = parameters.get(name + SCALE)
        whole[name] = x if scale is None else x * scale
    return whole


def _axis(name: str) -> int | None:
    """Returns the axis along which the numbers of one scale lie; None for a parameter that stays float32."""
    if name.startswith("heads/"):
        return None
    if name == "embeddings/word/embedding":
        return -1
    return -2 if name.endswith("/kernel") else None
