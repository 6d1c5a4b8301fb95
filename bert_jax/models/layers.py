"""The basic layers of all models: matrix products, Linear, LayerNorm, Embedding, dropout, GELU.

Initialisation (source: google-research/bert, modeling.py):

    kernels, embeddings   normal(0, σ), truncated at ±2σ and not rescaled: the effective σ is 0.88 of it
    biases                0
    LayerNorm             scale 1, bias 0

σ is model.initializer_range; with another model.initializer than fixed, that of kernels in the trunk and of the MLM
head's transform is

    width         initializer_range · √(768 / inputs): the variance is proportional to 1 / inputs, and tables stay as
                  they are (Yang et al. 2022). By default 0.55 / √inputs; Nguyen and Salazar (2019) have 0.63 / √inputs
    width_depth   the same, ÷ √(2 · layers) for the output kernels of attention and feed-forward parts, of which the
                  residual stream is the sum (Radford et al. 2019, section 2.3)
"""

import math
from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental.custom_partitioning import custom_partitioning
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float, Int, Key, UInt32

from bert_jax import backend


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def gelu(x: Float[Array, "..."], approximate: bool) -> Float[Array, "..."]:
    """Returns x · Φ(x) (Hendrycks and Gimpel 2016); if `approximate`, Φ is approximated by a tanh.

    Computed in float32, whatever the dtype of x, which is also that of the result. The backward pass needs x alone.
    Autodiff would also keep the intermediate results, which take a quarter of the
    memory of a small model's step. The exact Φ is (1 + erf(x / √2)) / 2, as in BERT's and PyTorch's code. `jax.nn.gelu`
    uses erfc instead, which is more precise where Φ vanishes, and takes twice as long on a CPU.
    """
    y = x.astype(jnp.float32)
    return (jax.nn.gelu(y, approximate=True) if approximate else y * _normal_cdf(y)).astype(x.dtype)


def _gelu_forward(x, approximate):
    return gelu(x, approximate), x


def _gelu_backward(approximate, saved, g):
    x, g = saved.astype(jnp.float32), g.astype(jnp.float32)
    return ((g * _gelu_slope(x, approximate)).astype(saved.dtype),)


def _gelu_slope(x, approximate):
    if approximate:
        tanh = jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
        slope = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * jnp.square(x))
        return 0.5 * (1 + tanh) + 0.5 * x * (1 - jnp.square(tanh)) * slope
    density = jnp.exp(-0.5 * jnp.square(x)) * (2 * math.pi) ** -0.5
    return _normal_cdf(x) + x * density


def _normal_cdf(x):
    return 0.5 * (1 + jax.lax.erf(x * 0.5**0.5))


gelu.defvjp(_gelu_forward, _gelu_backward)

GELU = {"gelu_tanh": partial(gelu, approximate=True), "gelu": partial(gelu, approximate=False)}


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def geglu(gate: Float[Array, "..."], x: Float[Array, "..."], approximate: bool) -> Float[Array, "..."]:
    """Returns gelu(gate) · x (Shazeer 2020), computed in float32. The backward pass needs the two arrays alone."""
    return (cast(Array, gelu(gate.astype(jnp.float32), approximate)) * x.astype(jnp.float32)).astype(x.dtype)


def _geglu_forward(gate, x, approximate):
    return geglu(gate, x, approximate), (gate, x)


def _geglu_backward(approximate, saved, g):
    gate, x, g = (y.astype(jnp.float32) for y in (*saved, g))
    d_gate, d_x = g * x * _gelu_slope(gate, approximate), g * gelu(gate, approximate)
    return d_gate.astype(saved[0].dtype), d_x.astype(saved[1].dtype)


geglu.defvjp(_geglu_forward, _geglu_backward)

GEGLU = {"gelu_tanh": partial(geglu, approximate=True), "gelu": partial(geglu, approximate=False)}


def dot(
    x: Float[Array, "..."], w: Float[Array, "..."], dtype: str, out_dtype: str | None = None
) -> Float[Array, "..."]:
    """Returns `x @ w`, with operands rounded to `dtype`, products summed in float32, and a result in `out_dtype`, or
    in `dtype` if there is none.

    x is [..., rows, in]; w is [in, out], or [..., in, out] with the batch dimensions of x.

    On a CPU, XLA uses oneDNN's bfloat16 kernels (AMX, AVX512-BF16) only if two conditions hold: the result is asked
    for in float32, and both operands lie row-major in memory. They must hold in the backward pass too, where autodiff
    would multiply float32 by bfloat16 and read a transposed operand in place. The result is also pinned row-major: if
    the caller transposes it (the gradient of `table.T`), XLA would fold the transpose into the product, a form that it
    does not implement on a CPU. Products with a side under 16 gain nothing from these kernels; they are computed in
    float32, from operands that are not rounded.
    """
    out_dtype = out_dtype or dtype
    if _in_float32(x, w, dtype):
        y = jnp.matmul(x.astype(jnp.float32), w.astype(jnp.float32), precision="highest")
        return y.astype(out_dtype)
    return cast(Array, _bf16_dot(x, w, out_dtype, False))


def dot_transposed(
    x: Float[Array, "*B D"], table: Float[Array, "*N V D"], dtype: str, out_dtype: str | None = None
) -> Float[Array, "*B V"]:
    """Returns `x @ table.T` as `dot` computes it, but the table's gradient needs no transpose of the table's size."""
    out_dtype = out_dtype or dtype
    if _in_float32(x, table, dtype):
        return dot(x, table.swapaxes(-1, -2), dtype, out_dtype)
    return cast(Array, _bf16_dot(x, table, out_dtype, True))


def accumulator(dtype: str) -> str:
    """Returns the dtype in which a product costs nothing extra: on a CPU float32, elsewhere that of its operands."""
    return backend.current().accumulator(dtype)


def _in_float32(x, w, dtype):
    rows = x.size // x.shape[-1] if w.ndim == 2 else x.shape[-2]  # a shared w has one product over all leading axes
    return dtype == "float32" or min(rows, x.shape[-1], *w.shape[-2:]) < backend.current().smallest_side


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _bf16_dot(x, w, out_dtype, reads_transposed):
    x, w = x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)
    return _product(x, w.swapaxes(-1, -2) if reads_transposed else w, out_dtype)


def _bf16_dot_forward(x, w, out_dtype, reads_transposed):
    x16, w16 = x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)
    # The empty arrays remember the dtypes of x and w: their cotangents must have them.
    saved = x16, w16, jnp.empty((0,), x.dtype), jnp.empty((0,), w.dtype)
    return _product(x16, w16.swapaxes(-1, -2) if reads_transposed else w16, out_dtype), saved


def _bf16_dot_backward(out_dtype, reads_transposed, saved, g):
    x, w, like_x, like_w = saved
    dx = _product(g, w if reads_transposed else jnp.swapaxes(w, -1, -2), like_x.dtype)  # read by columns costs nothing
    if w.ndim == 2:  # shared by all rows: one product over every leading dimension
        x, g = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    left, right = (g, x) if reads_transposed else (x, g)
    return dx, _product(_transposed(left), right, like_w.dtype)


_bf16_dot.defvjp(_bf16_dot_forward, _bf16_dot_backward)


def _product(x, w, out_dtype):
    x, w = x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)
    if backend.current().row_major_operands:
        if w.ndim > 2:  # XLA widens the operands of a batch of products to float32 if they are read by columns
            x, w = row_major(x), row_major(w)
        y = jnp.matmul(x, w, preferred_element_type=jnp.float32)
        return row_major(y).astype(out_dtype)
    return jnp.matmul(x, w, preferred_element_type=out_dtype)  # the accumulator is float32 on GPU and TPU anyway


def _transposed(x):
    """Swaps the last two axes. On a CPU the result is written out row-major, which takes less time than a product
    whose operand is read by columns."""
    x = jnp.swapaxes(x.astype(jnp.bfloat16), -1, -2)
    return row_major(x) if backend.current().row_major_operands else x


@custom_partitioning
def row_major(x):
    """Returns `x`, written to memory in row-major order."""
    return with_layout_constraint(x, Layout(major_to_minor=tuple(range(x.ndim))))


def _partition_row_major(mesh, arguments, result):
    return mesh, row_major.fun, arguments[0].sharding, (arguments[0].sharding,)


# A layout constraint by itself is opaque to the partitioner: each would gather its array on every device.
row_major.def_partition(
    partition=_partition_row_major,
    infer_sharding_from_operands=lambda mesh, arguments, result: arguments[0].sharding,
    sharding_rule="... -> ...",
)


class Linear(nnx.Module):
    """The affine map `x @ kernel + bias`. `stack` gives both parameters leading axes: one slice per layer."""

    def __init__(
        self,
        in_size: int,
        out_size: int,
        *,
        stddev: float,
        rngs: nnx.Rngs,
        stack: tuple[int, ...] = (),
        use_bias: bool = True,
    ):
        self.kernel = nnx.Param(_truncated_normal(rngs.params(), (*stack, in_size, out_size), stddev))
        self.bias = nnx.Param(jnp.zeros((*stack, out_size))) if use_bias else None

    def __call__(self, x: Float[Array, "... I"], dtype: str) -> Float[Array, "... O"]:
        # The bias is added in float32 so that its gradient, a sum over all rows, is computed in float32 too.
        y = dot(x, self.kernel[...], dtype, accumulator(dtype)).astype(jnp.float32)
        return (y if self.bias is None else y + along_last(self.bias[...], y)).astype(dtype)


class LayerNorm(nnx.Module):
    """Normalisation over the last axis (Ba et al. 2016), with mean and variance in float32 and a result in `dtype`."""

    def __init__(self, size: int, *, eps: float, stack: tuple[int, ...] = (), use_bias: bool = True):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones((*stack, size)))
        self.bias = nnx.Param(jnp.zeros((*stack, size))) if use_bias else None

    def __call__(self, x: Float[Array, "... D"], dtype: str) -> Float[Array, "... D"]:
        y = cast(Array, _normalised(x.astype(jnp.float32), self.eps))
        y = y * along_last(self.scale[...], y)
        return (y if self.bias is None else y + along_last(self.bias[...], y)).astype(dtype)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _normalised(x: Float[Array, "... D"], eps: float) -> Float[Array, "... D"]:
    return _centred(x, eps)[0]


def _centred(x, eps):
    mean = x.mean(-1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.square(x - mean).mean(-1, keepdims=True) + eps)
    return (x - mean) * scale, scale


def _normalised_forward(x, eps):
    y, scale = _centred(x, eps)
    return y, (y, scale)


def _normalised_backward(_, saved, g):
    """Returns the gradient of `_normalised`: g without its components along 1 and along y, to which x makes no
    difference. That takes three passes over memory less than what autodiff derives."""
    y, scale = saved
    return (scale * (g - g.mean(-1, keepdims=True) - y * (g * y).mean(-1, keepdims=True)),)


_normalised.defvjp(_normalised_forward, _normalised_backward)


class Embedding(nnx.Module):
    """A table that gives each id a vector."""

    def __init__(self, rows: int, size: int, *, stddev: float, rngs: nnx.Rngs):
        self.embedding = nnx.Param(_truncated_normal(rngs.params(), (rows, size), stddev))

    def __call__(self, ids: Int[Array, "B L"]) -> Float[Array, "B L E"]:
        """Returns the vectors. Of a table in N copies, each looks up its part of the rows (`sharding.gathered`)."""
        table = self.embedding[...]
        if table.ndim == 2:
            return jnp.take(table, ids, axis=0)
        parts = jax.vmap(partial(jnp.take, axis=0))(table, ids.reshape(table.shape[0], -1, ids.shape[1]))
        return parts.reshape(*ids.shape, -1)


def along_last(vector: Float[Array, " D"], x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """Returns `vector` with as many axes as `x`, to be broadcast over all but the last: tests forbid that JAX adds
    axes by itself."""
    return vector.reshape((1,) * (x.ndim - 1) + (-1,))


def dropout_seeds(key: Key[Array, ""] | None, *shape: int) -> UInt32[Array, "*shape 2"] | None:
    """Returns seeds for several calls of `dropout`, or None without a key. All come from one call of JAX's generator,
    since each call adds some 500 lines to the program."""
    return None if key is None else jax.random.bits(key, (*shape, 2), jnp.uint32)


def dropout(x: Float[Array, "B ..."], rate: float, seed: UInt32[Array, "2"] | None) -> Float[Array, "B ..."]:
    """Sets a share `rate` of x to zero and scales up the rest. Returns x itself if `seed` is None or the rate is 0.

    The random bits are a hash of (seed, row, position in the row), computed where they are used: XLA fuses the hash
    with the multiplication and stores nothing, and a device that holds some rows computes the bits of those rows only.
    The bits are therefore the same on any mesh.
    """
    if seed is None or rate == 0:
        return x
    row, place = jax.lax.broadcasted_iota(jnp.uint32, x.shape, 0), _place_in_row(x.shape)
    bits = _mix(_mix(place + seed[0]) ^ (row * jnp.uint32(0x9E3779B9) + seed[1]))
    keep = bits >= jnp.uint32(round(rate * 2**32))
    scaled = x.astype(jnp.float32) * (1 / (1 - rate))  # in bfloat16 the factor would be wrong by up to 0.2 %
    return jnp.where(keep, scaled, 0.0).astype(x.dtype)


def _mix(x):
    """Hashes 32 bits by the function lowbias32 (https://nullprogram.com/blog/2018/07/31/)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def _place_in_row(shape):
    place, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in range(len(shape) - 1, 0, -1):
        place = place + jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
        stride *= shape[axis]
    return place


def _truncated_normal(key, shape, stddev):
    return jax.random.truncated_normal(key, -2, 2, shape) * stddev
