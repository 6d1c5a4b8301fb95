"""A model as prediction runs it: what each call would do to the parameters is done once, when they are loaded.

A program that is given float32 parameters rounds the kernels of its products to bfloat16, joins query, key and value,
and takes the stack of layers apart, at every call: more work than a short text is. The results are the same bits.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from bert_jax import backend
from bert_jax.models.attention import SelfAttention, take_places
from bert_jax.models.bert import Bert, Model
from bert_jax.models.encoder import Encoded, Encoder, is_scanned, unstack
from bert_jax.models.layers import Linear, accumulator, along_last, dot

_ONES = 16  # columns: a side under 16 would take the whole product off the fast path


class PredictionModel:
    """The parameters of `model`, ready for use; `model` itself is no longer needed."""

    def __init__(self, model: nnx.Module):
        # As a list: to walk through the modules of a small model takes longer than it takes to run on a short text.
        self._leaves, self._tree = jax.tree.flatten(jax.jit(_prepared)(model))

    def program(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function(model, *arrays)` as a function of the arrays alone, compiled once for each of their shapes."""
        step = jax.jit(lambda leaves, *arrays: function(jax.tree.unflatten(self._tree, leaves), *arrays))
        return lambda *arrays: step(self._leaves, *arrays)


class FusedSelfAttention(SelfAttention):
    """With one kernel for query, key and value."""

    def __init__(self, attention: SelfAttention):
        parts = (attention.query, attention.key, attention.value)
        self.config, self.output, self.projection = attention.config, attention.output, attention.query
        self.projection.kernel = nnx.Param(jnp.concatenate([part.kernel[...] for part in parts], axis=-1))
        self.projection.bias = nnx.Param(jnp.concatenate([part.bias[...] for part in parts], axis=-1))

    def _parts(self, x, places):
        if places is None:
            return jnp.split(self.projection(x, self.config.dtype), 3, axis=-1)
        size = x.shape[-1]
        query = self._columns(take_places(x, places), slice(size))
        return [query, *jnp.split(self._columns(x, slice(size, None)), 2, axis=-1)]

    def _attend(self, query, key_, value, mask, seed):
        if not backend.current().is_cpu or self.config.dtype != "bfloat16":
            return super()._attend(query, key_, value, mask, seed)
        return attend_on_cpu(query, key_, value, mask)

    def _columns(self, x, columns: slice):
        """Of the projection."""
        dtype, bias = self.config.dtype, self.projection.bias[...][columns]
        y = dot(x, self.projection.kernel[...][:, columns], dtype, accumulator(dtype)).astype(jnp.float32)
        return (y + along_last(bias, y)).astype(dtype)


def attend_on_cpu(
    query: Float[Array, "B P H K"],
    key: Float[Array, "B L H K"],
    value: Float[Array, "B L H K"],
    mask: Bool[Array, "B 1 P L"],
) -> Float[Array, "B P H K"]:
    """`models.attention.attend` in bfloat16 and without dropout, with fewer passes over the B·H·L·L weights.

    They are rounded before they are divided by their sum, which the same product gives, from a column of ones.
    """
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))  # [B, H, L, K]
    scores = dot(query * query.shape[-1] ** -0.5, key.swapaxes(-1, -2), "bfloat16", "float32")
    scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True)).astype(jnp.bfloat16)
    ones = jnp.ones((*value.shape[:-1], _ONES), jnp.bfloat16)
    sums = dot(weights, jnp.concatenate([value, ones], axis=-1), "bfloat16", "float32")
    return (sums[..., :-_ONES] / sums[..., -_ONES:][..., :1]).astype(jnp.bfloat16).swapaxes(1, 2)


class UnrolledEncoder(nnx.Module):
    """An `Encoder` with parameters a layer, and without dropout."""

    def __init__(self, encoder: Encoder):
        self.config = encoder.config
        self.layers = nnx.List(unstack(encoder.layers, self.config.num_hidden_layers))
        if self.config.norm == "pre":
            self.layer_norm = encoder.layer_norm

    def __call__(
        self,
        x: Float[Array, "B L D"],
        mask: Bool[Array, "B 1 L L"],
        *,
        seeds: None = None,
        places: Int[Array, "B P"] | None = None,
        all_layers: bool = False,
    ) -> Encoded:
        assert seeds is None
        outputs = []
        for i, layer in enumerate(self.layers):
            is_last = i == len(self.layers) - 1
            x = layer(x, mask, None, places if is_last and not all_layers else None)
            outputs.append(x)
        if places is not None and all_layers:
            x = take_places(x, places)
        if self.config.norm == "pre":
            x = self.layer_norm(x, self.config.dtype)
        return Encoded(x, outputs if all_layers else None)


def _prepared(model: nnx.Module) -> nnx.Module:
    """Under `jit`, whose argument nobody else has: it is changed in place. A task of one's own may have another model,
    which stays as it is."""
    if not isinstance(model, Model) or not isinstance(model.trunk, Bert):
        return model
    config, layers = model.trunk.config, model.trunk.encoder.layers
    layers.attention = FusedSelfAttention(layers.attention)
    if config.dtype == "bfloat16":
        for linear in (layers.attention.projection, layers.attention.output, layers.intermediate, layers.output):
            _round(linear)
    if not is_scanned(config):
        model.trunk.encoder = UnrolledEncoder(model.trunk.encoder)  # type: ignore[assignment]
    return model


def _round(linear: Linear) -> None:
    linear.kernel = nnx.Param(linear.kernel[...].astype(jnp.bfloat16))
