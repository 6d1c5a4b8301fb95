"""Multi-head attention (Vaswani et al. 2017): self-attention, cross-attention, and decoding with a cache."""

from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int, UInt32

from bert_jax import backend
from bert_jax.models.config import BertConfig
from bert_jax.models.layers import Linear, accumulator, dot, dropout


class Cache(NamedTuple):
    """The keys and values of the tokens that were decoded so far.

    The arrays have room for M tokens from the start, so that every step of decoding runs the same program. Their axes
    are in the order in which the products of attention read them: no step transposes all that was stored.
    """

    key: Float[Array, "B H K M"]
    value: Float[Array, "B H M K"]
    length: Int[Array, ""]  # tokens stored so far, the same number in every row; the rest is zero

    @classmethod
    def empty(cls, config: BertConfig, rows: int, size: int) -> "Cache":
        """Returns a cache for one layer, with room for `size` tokens in each row."""
        heads, width = config.num_attention_heads, config.head_width
        key, value = (jnp.zeros((rows, heads, *axes), config.dtype) for axes in ((width, size), (size, width)))
        return cls(key, value, jnp.zeros((), jnp.int32))

    @property
    def size(self) -> int:
        """How many tokens it has room for."""
        return self.value.shape[2]

    def extended(self, key: Float[Array, "B L H K"], value: Float[Array, "B L H K"]) -> "Cache":
        """Returns the cache with L more tokens. The caller makes sure that there is room for them: a traced length
        cannot raise an error, and tokens beyond the end would overwrite the last ones."""
        keys, values = (
            jax.lax.dynamic_update_slice_in_dim(stored, new.astype(stored.dtype), self.length, axis=axis)
            for stored, new, axis in ((self.key, _by_columns(key), 3), (self.value, value.swapaxes(1, 2), 2))
        )
        return Cache(keys, values, self.length + key.shape[1])

    def without_last(self) -> "Cache":
        """Returns the cache without its last token, in whose place the next one is stored."""
        return self._replace(length=self.length - 1)


class Source(NamedTuple):
    """The keys and values of the R tokens of G sources, each of which B / G rows in a row read: the beams of a source
    share them. The axes are in the order of `Cache`."""

    key: Float[Array, "G H K R"]
    value: Float[Array, "G H R K"]


class Angles(NamedTuple):
    """The sines and cosines of rotary positions, of the queries and of the keys (`rotated`). The keys in a cache have
    been rotated already: with one, both are of the new tokens."""

    query: Float[Array, "B P K"]
    key: Float[Array, "B L K"]


class Attention(nnx.Module):
    """Multi-head scaled dot-product attention, in BERT with biases on all four projections.

    Query, key and value are three parameters and three products: to join the kernels at each call costs about what
    one larger product saves. inference/prepared.py joins them once.
    """

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs, stack: tuple[int, ...] = ()):
        self.config = config
        size, heads = config.hidden_size, config.attention_width
        options = {"rngs": rngs, "stack": stack, "use_bias": config.use_bias}
        self.query = Linear(size, heads, stddev=config.kernel_stddev(size), **options)
        self.key = Linear(size, heads, stddev=config.kernel_stddev(size), **options)
        self.value = Linear(size, heads, stddev=config.kernel_stddev(size), **options)
        self.output = Linear(heads, size, stddev=config.kernel_stddev(heads, is_residual=True), **options)

    def __call__(
        self,
        query_source: Float[Array, "B P D"],
        key_value_source: Float[Array, "B L D"],
        mask: Bool[Array, "B 1 P M"],
        cache: Cache | None = None,
        *,
        seed: UInt32[Array, "2"] | None = None,
        angles: Angles | None = None,
        before: Source | None = None,
    ) -> tuple[Float[Array, "B P D"], Cache | None]:
        """Returns what each query reads from the keys that it may look at, and the extended cache if one was given.

        Self-attention has the same array as both sources, cross-attention two arrays. Without a cache M is L. With
        one, `key_value_source` holds the P tokens that follow those in the cache, and M is the size of the cache; a
        query then sees the tokens before it and itself only, whatever else the mask allows. With a cache, the tokens
        of `before` come before all others: M is R more, and they are the first that the mask speaks of. Without a
        `seed` nothing is dropped out.
        """
        query, key, value = self.project(query_source, key_value_source, angles)
        if cache is not None:
            if query.shape != key.shape:
                raise ValueError(f"{query.shape[1]} queries and {key.shape[1]} keys: with a cache, both are new tokens")
            cache = cache.extended(key, value)
            key, value = cache.key.transpose(0, 3, 1, 2), cache.value.swapaxes(1, 2)  # XLA drops what is turned twice
            # Also hides the positions that are still empty.
            own = mask.shape[-1] - key.shape[1] + cache.length - query.shape[1] + jnp.arange(query.shape[1])
            mask = mask & (jnp.arange(mask.shape[-1])[None] <= own[:, None])[None, None]
        if before is None:
            context = self._attend(query, key, value, mask, seed)
        else:
            context = attend_source(query, before, mask, self.config.dtype, (key, value))
        return self._joined(context), cache

    def read(
        self, query_source: Float[Array, "B P D"], source: Source, mask: Bool[Array, "B 1 P R"]
    ) -> Float[Array, "B P D"]:
        """Returns what each query reads from a source whose keys and values are known (`source`): cross-attention as
        `__call__` computes it, without dropout."""
        query = self._heads(self.query(query_source, self.config.dtype))
        return self._joined(attend_source(query, source, mask, self.config.dtype))

    def weights(
        self,
        query_source: Float[Array, "B P D"],
        key_value_source: Float[Array, "B L D"],
        mask: Bool[Array, "B 1 P L"],
        angles: Angles | None = None,
    ) -> Float32[Array, "B H P L"]:
        """Returns the softmax that `__call__` multiplies the values by, computed again: it may run in a fused kernel
        that never holds it as an array."""
        query, key, _ = self.project(query_source, key_value_source, angles)
        query, key, dtype = query.swapaxes(1, 2), key.swapaxes(1, 2), self.config.dtype
        scores = dot(query * query.shape[-1] ** -0.5, key.swapaxes(-1, -2), dtype, accumulator(dtype))
        return jax.nn.softmax(jnp.where(mask, scores.astype(jnp.float32), jnp.finfo(jnp.float32).min), axis=-1)

    def source(self, hidden: Float[Array, "G R D"], angles: Float[Array, "G R K"] | None = None) -> Source:
        """Returns the keys and values of all tokens; with `angles`, the keys are rotated."""
        _, key, value = self.project(hidden, hidden, None if angles is None else Angles(angles, angles))
        return Source(_by_columns(key), value.swapaxes(1, 2))

    def _joined(self, context: Float[Array, "B P H K"]) -> Float[Array, "B P D"]:
        return self.output(context.reshape(*context.shape[:2], -1), self.config.dtype)

    def project(
        self,
        query_source: Float[Array, "B P D"],
        key_value_source: Float[Array, "B L D"],
        angles: Angles | None = None,
    ) -> tuple[Float[Array, "B P H K"], Float[Array, "B L H K"], Float[Array, "B L H K"]]:
        """Returns queries, keys and values, split into heads; with `angles`, queries and keys are rotated."""
        query, key, value = self._projected(query_source, key_value_source)
        if angles is not None:
            query, key = rotated(query, angles.query), rotated(key, angles.key)
        return query, key, value

    def _projected(self, query_source, key_value_source):
        dtype = self.config.dtype
        query, key = self.query(query_source, dtype), self.key(key_value_source, dtype)
        return self._heads(query), self._heads(key), self._heads(self.value(key_value_source, dtype))

    def _heads(self, x: Float[Array, "B L D"]) -> Float[Array, "B L H K"]:
        return x.reshape(*x.shape[:2], self.config.num_attention_heads, -1)

    def _attend(self, query, key, value, mask, seed):
        config = self.config
        if query.shape == key.shape and use_cudnn(config, training=seed is not None):
            return jax.nn.dot_product_attention(query, key, value, mask=mask, implementation="cudnn")
        return attend(query, key, value, mask, config.attention_dropout, seed, config.dtype)


def _by_columns(x: Float[Array, "B L H K"]) -> Float[Array, "B H K L"]:
    return x.transpose(0, 2, 3, 1)


def rotated(x: Float[Array, "B L H K"], angles: Float[Array, "B L K"]) -> Float[Array, "B L H K"]:
    """Rotates each pair of columns by its angle (Su et al. 2021, RoFormer): products of queries and keys then depend on
    the distance of the two tokens.

    `angles` has the sines in its first K/2 columns and the cosines in the others. Column i is paired with column
    i + K/2, as in GPT-NeoX; RoFormer pairs neighbours, which is the same model with the columns in another order.
    Computed in float32.
    """
    sin, cos = jnp.split(angles[:, :, None], 2, axis=-1)
    one, other = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([one * cos - other * sin, one * sin + other * cos], axis=-1).astype(x.dtype)


def take_places(x: Float[Array, "B L D"], places: Int[Array, "B P"]) -> Float[Array, "B P D"]:
    """Returns the vectors of each row's tokens at `places`."""
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
    """Returns softmax(query · keyᵀ / √K) · value by plain XLA; dropout applies to the softmax, which is in float32."""
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))  # [B, H, L, K]
    scores = dot(query * query.shape[-1] ** -0.5, key.swapaxes(-1, -2), dtype, accumulator(dtype)).astype(jnp.float32)
    return cast(Array, _context(scores, mask, value, dropout_seed, dropout_rate, dtype)).swapaxes(1, 2)


def attend_source(
    query: Float[Array, "B P H K"],
    source: Source,
    mask: Bool[Array, "B 1 P M"],
    dtype: str,
    own: tuple[Float[Array, "B L H K"], Float[Array, "B L H K"]] | None = None,
) -> Float[Array, "B P H K"]:
    """Returns the softmax over the R tokens of a source and, with keys and values of their `own`, the L tokens of each
    row, times the values of both. M is R + L.

    The keys of a source are read once for all of its rows, whose queries stand side by side in one product.
    """
    (rows, places, heads, size), (groups, _, room, _) = query.shape, source.value.shape
    query = query.swapaxes(1, 2) * size**-0.5  # [B, H, P, K]

    def by_source(x):  # [B, H, P, _] → [G, H, (B / G) P, _]
        x = x.reshape(groups, rows // groups, heads, places, -1)
        return x.swapaxes(1, 2).reshape(groups, heads, rows // groups * places, -1)

    def by_row(x):
        x = x.reshape(groups, heads, rows // groups, places, -1)
        return x.swapaxes(1, 2).reshape(rows, heads, places, -1)

    own_key, own_value = (None, None) if own is None else (x.swapaxes(1, 2) for x in own)
    parts = [by_row(dot(by_source(query), source.key, dtype, accumulator(dtype)))]
    if own_key is not None:
        parts.append(dot(query, own_key.swapaxes(-1, -2), dtype, accumulator(dtype)))
    scores = jnp.concatenate([part.astype(jnp.float32) for part in parts], axis=-1)
    weights = jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(jnp.float32).min), axis=-1).astype(dtype)
    context = by_row(dot(by_source(weights[..., :room]), source.value, dtype, accumulator(dtype))).astype(jnp.float32)
    if own_value is not None:
        context = context + dot(weights[..., room:], own_value, dtype, accumulator(dtype)).astype(jnp.float32)
    return context.astype(dtype).swapaxes(1, 2)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _context(scores, mask, value, seed, rate, dtype):
    """Returns dropout(softmax(scores)) · value; of the arrays as large as the scores, one is kept: the softmax."""
    return _context_forward(scores, mask, value, seed, rate, dtype)[0]


def _context_forward(scores, mask, value, seed, rate, dtype):
    weights = jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(jnp.float32).min), axis=-1).astype(dtype)
    context = dot(dropout(weights, rate, seed), value, dtype)
    return context, (weights, value, context, seed)


def _context_backward(rate, dtype, saved, g):
    """Returns the gradients. That of softmax is weights · (d_weights − mean), with mean = Σ weights · d_weights over
    the L keys, which equals Σ context · g over the K columns of a head, a much smaller array, with or without dropout
    (Dao et al. 2022, FlashAttention, appendix B.2)."""
    weights, value, context, seed = saved
    # Dropout is a hash of its seed (models/layers.py): the same weights are dropped here as in the forward pass.
    d_value = dot(dropout(weights, rate, seed).swapaxes(-1, -2), g, dtype).astype(value.dtype)
    d_weights = dot(g, value.swapaxes(-1, -2), dtype, accumulator(dtype)).astype(jnp.float32)
    mean = jnp.sum(context.astype(jnp.float32) * g.astype(jnp.float32), axis=-1, keepdims=True)
    d_scores = weights.astype(jnp.float32) * (dropout(d_weights, rate, seed) - mean)
    return d_scores, None, d_value, None


_context.defvjp(_context_forward, _context_backward)


def attention_mask(sequence_ids: Int[Array, "B L"], causal: bool) -> Bool[Array, "B 1 L L"]:
    """Returns True where a query (third axis) may look at a key (fourth axis).

    A query looks at its own sequence; in a causal model only at itself and what is to its left. Padding has sequence
    id 0 and looks only at padding, so that no row of scores is masked completely.
    """
    mask = sequence_ids[:, None, :, None] == sequence_ids[:, None, None, :]
    if causal:
        mask = mask & jnp.tril(jnp.ones(mask.shape[-2:], bool))[None, None]
    return mask


def use_cudnn(config: BertConfig, training: bool) -> bool:
    """Returns whether cuDNN's fused kernel runs: if it is asked for, or under `auto` where it computes the same.

    The kernel has no dropout of attention probabilities, takes 16-bit operands only, and needs an NVIDIA GPU.
    """
    if config.attention != "auto":
        return config.attention == "cudnn"
    able = config.dtype == "bfloat16" and not (training and config.attention_dropout > 0)
    return able and backend.current().fused_attention
