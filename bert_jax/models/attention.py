"""Self-attention: fused projections, one mask, two implementations that agree."""

from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt32

from bert_jax import backend
from bert_jax.models.config import BertConfig
from bert_jax.models.layers import Linear, accumulator, along_last, dot, dropout


class SelfAttention(nnx.Module):
    """Multi-head scaled dot-product attention with biases on all four projections."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs, stack: tuple[int, ...] = ()):
        self.config = config
        size, options = config.hidden_size, {"stddev": config.initializer_range, "rngs": rngs, "stack": stack}
        self.query = Linear(size, size, **options)
        self.key = Linear(size, size, **options)
        self.value = Linear(size, size, **options)
        self.output = Linear(size, size, **options)

    def __call__(
        self,
        x: Float[Array, "B L D"],
        mask: Bool[Array, "B 1 L L"],
        seed: UInt32[Array, "2"] | None = None,
        places: Int[Array, "B P"] | None = None,
    ) -> Float[Array, "B L D"] | Float[Array, "B P D"]:
        """With `places`, only the tokens there look at others."""
        config = self.config
        parts = self._parts(x, places)
        query, key_, value = (part.reshape(*part.shape[:2], config.num_attention_heads, -1) for part in parts)
        if places is not None:
            mask = jnp.take_along_axis(mask, places[:, None, :, None], axis=2)
        context = self._attend(query, key_, value, mask, seed)
        return self.output(context.reshape(*context.shape[:2], -1), config.dtype)

    def _parts(self, x, places):
        """Query [B, L or P, D], key and value [B, L, D]."""
        if places is None:
            return self._project(x, self.query, self.key, self.value)
        return [*self._project(take_places(x, places), self.query), *self._project(x, self.key, self.value)]

    def _attend(self, query, key_, value, mask, seed):
        config = self.config
        if query.shape == key_.shape and use_cudnn(config, training=seed is not None):
            return jax.nn.dot_product_attention(query, key_, value, mask=mask, implementation="cudnn")
        return attend(query, key_, value, mask, config.attention_dropout, seed, config.dtype)

    def _project(self, x, *parts: Linear):
        """[B, L, D] → so many of [B, L, D]. By one product, but for bfloat16 on a CPU, where joining the kernels, which
        XLA does in float32, costs more than that saves. In float32 the bits are those of inference/prepared.py."""
        if backend.current().is_cpu and self.config.dtype == "bfloat16":
            return [part(x, self.config.dtype) for part in parts]
        kernel = jnp.concatenate([part.kernel[...] for part in parts], axis=-1)
        bias = jnp.concatenate([part.bias[...] for part in parts], axis=-1)
        y = dot(x, kernel, self.config.dtype, accumulator(self.config.dtype)).astype(jnp.float32)
        return jnp.split((y + along_last(bias, y)).astype(self.config.dtype), len(parts), axis=-1)


def take_places(x: Float[Array, "B L D"], places: Int[Array, "B P"]) -> Float[Array, "B P D"]:
    return jnp.take_along_axis(x, places[:, :, None], axis=1)


def attend(
    query: Float[Array, "B P H K"],
    key: Float[Array, "B L H K"],
    value: Float[Array, "B L H K"],
    mask: Bool[Array, "B 1 P L"],
    dropout_rate: float,
    dropout_seed: UInt32[Array, "2"] | None,
    dtype: str,
) -> Float[Array, "B P H K"]:
    """softmax(query · keyᵀ / √K) · value in plain XLA; the softmax is in float32, dropout is on its result."""
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))  # [B, H, L, K]
    scores = dot(query * query.shape[-1] ** -0.5, key.swapaxes(-1, -2), dtype, accumulator(dtype)).astype(jnp.float32)
    return cast(Array, _context(scores, mask, value, dropout_seed, dropout_rate, dtype)).swapaxes(1, 2)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _context(scores, mask, value, seed, rate, dtype):
    """dropout(softmax(scores)) · value. Of what is as large as the scores, only the softmax is kept, of `dtype`."""
    return _context_forward(scores, mask, value, seed, rate, dtype)[0]


def _context_forward(scores, mask, value, seed, rate, dtype):
    weights = jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(jnp.float32).min), axis=-1).astype(dtype)
    context = dot(dropout(weights, rate, seed), value, dtype)
    return context, (weights, value, context, seed)


def _context_backward(rate, dtype, saved, g):
    """Softmax's gradient is weights · (d_weights − mean), mean = Σ weights · d_weights over the L keys: that is
    Σ context · g over the K columns of a head, dropout or not (Dao et al. 2022, FlashAttention, appendix B.2)."""
    weights, value, context, seed = saved
    d_value = dot(dropout(weights, rate, seed).swapaxes(-1, -2), g, dtype).astype(value.dtype)
    d_weights = dot(g, value.swapaxes(-1, -2), dtype, accumulator(dtype)).astype(jnp.float32)
    mean = jnp.sum(context.astype(jnp.float32) * g.astype(jnp.float32), axis=-1, keepdims=True)
    d_scores = weights.astype(jnp.float32) * (dropout(d_weights, rate, seed) - mean)
    return d_scores, None, d_value, None


_context.defvjp(_context_forward, _context_backward)


def attention_mask(sequence_ids: Int[Array, "B L"], causal: bool) -> Bool[Array, "B 1 L L"]:
    """True where a query (third axis) may look at a key (fourth): inside its own sequence, to its left if causal.

    Padding has sequence id 0 and looks only at padding, so that no row of scores is all masked.
    """
    mask = sequence_ids[:, None, :, None] == sequence_ids[:, None, None, :]
    if causal:
        mask = mask & jnp.tril(jnp.ones(mask.shape[-2:], bool))[None, None]
    return mask


def use_cudnn(config: BertConfig, training: bool) -> bool:
    """Whether cuDNN's fused kernel runs: asked for, or `auto` on an NVIDIA GPU where it computes the same thing.

    It has no dropout of attention probabilities, and takes 16-bit operands only.
    """
    if config.attention != "auto":
        return config.attention == "cudnn"
    able = config.dtype == "bfloat16" and not (training and config.attention_dropout > 0)
    return able and backend.current().fused_attention
