"""A model as prediction runs it: the work that a program would repeat on its parameters at every call is done once.

A program with float32 parameters rounds the kernels of its bfloat16 products, and takes the stack of layers apart, at
every call: more work than a short text is. In bfloat16, query, key and value also become one product; the results may
differ from those of the model by roundings. In float32 they are the same bits: there query, key and value stay three
products, since XLA adds up the terms of one larger product in another order for some sizes.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from bert_jax import backend
from bert_jax.models.attention import Attention
from bert_jax.models.bert import Bert, Model
from bert_jax.models.config import BertConfig
from bert_jax.models.decoder import Decoder
from bert_jax.models.encoder import CrossAttention, Layer, is_scanned, unstack
from bert_jax.models.layers import Linear, accumulator, along_last, dot

_ONES = 16  # columns: a product with a side under 16 would not run on the fast kernels (models/layers.py: dot)


class PredictionModel:
    """The prepared parameters of `model`, which itself is no longer needed; with `like`, whose trunk must have the same
    parameters, that one's trunk in place of its own: both are one in memory."""

    takes_any_shape = False  # whether a program costs nothing to run with a new shape

    def __init__(self, model: nnx.Module, like: "PredictionModel | None" = None):
        ready = jax.jit(prepared)(model)
        if like is not None and isinstance(ready, Model):
            ready.trunk = jax.tree.unflatten(like._tree, like._leaves).trunk
        # A list, since a walk through the modules of a small model takes longer than running it on a short text.
        self._leaves, self._tree = jax.tree.flatten(ready)

    def program(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns `function(model, *arrays)` as a function of the arrays alone, compiled once for each of their
        shapes."""
        step = jax.jit(lambda leaves, *arrays: function(jax.tree.unflatten(self._tree, leaves), *arrays))
        return lambda *arrays: step(self._leaves, *arrays)


class FusedAttention(Attention):
    """Self-attention in bfloat16 and without dropout, with one kernel for query, key and value."""

    def __init__(self, attention: Attention):
        parts = (attention.query, attention.key, attention.value)
        self.config, self.output, self.projection = attention.config, attention.output, attention.query
        self.projection.kernel = nnx.Param(jnp.concatenate([part.kernel[...] for part in parts], axis=-1))
        biases = [part.bias[...] for part in parts if part.bias is not None]
        self.projection.bias = nnx.Param(jnp.concatenate(biases, axis=-1)) if biases else None

    def _projected(self, query_source, key_value_source):
        if query_source is key_value_source:
            parts = jnp.split(self.projection(query_source, self.config.dtype), 3, axis=-1)
        else:  # the last layer, of which few tokens are asked for
            size = self.config.attention_width
            query = self._columns(query_source, slice(size))
            parts = [query, *jnp.split(self._columns(key_value_source, slice(size, None)), 2, axis=-1)]
        query, key, value = (self._heads(part) for part in parts)
        return query, key, value

    def _attend(self, query, key, value, mask, seed):
        if not backend.current().is_cpu:
            return super()._attend(query, key, value, mask, seed)
        return attend_on_cpu(query, key, value, mask)

    def _columns(self, x, columns: slice):
        """Returns those columns of the projection."""
        dtype, bias = self.config.dtype, self.projection.bias
        y = dot(x, self.projection.kernel[...][:, columns], dtype, accumulator(dtype)).astype(jnp.float32)
        return (y if bias is None else y + along_last(bias[...][columns], y)).astype(dtype)


def attend_on_cpu(
    query: Float[Array, "B P H K"],
    key: Float[Array, "B L H K"],
    value: Float[Array, "B L H K"],
    mask: Bool[Array, "B 1 P L"],
) -> Float[Array, "B P H K"]:
    """Computes `models.attention.attend` in bfloat16 and without dropout, in fewer passes over the B·H·P·L weights.

    The weights are rounded before they are divided by their sum. The product with the values also computes that sum,
    from columns of ones beside them.
    """
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))  # [B, H, L, K]
    scores = dot(query * query.shape[-1] ** -0.5, key.swapaxes(-1, -2), "bfloat16", "float32")
    scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True)).astype(jnp.bfloat16)
    ones = jnp.ones((*value.shape[:-1], _ONES), jnp.bfloat16)
    sums = dot(weights, jnp.concatenate([value, ones], axis=-1), "bfloat16", "float32")
    return (sums[..., :-_ONES] / sums[..., -_ONES:][..., :1]).astype(jnp.bfloat16).swapaxes(1, 2)


def prepared(model: nnx.Module) -> nnx.Module:
    """Changes the model in place, which under `jit` is a copy of the caller's. A model of another kind, which a user's
    task may have, is returned unchanged."""
    if not isinstance(model, Model) or not isinstance(model.trunk, Bert):
        return model
    config, encoder, decoder = model.trunk.config, model.trunk.encoder, model.heads.get("decoder")
    encoder.layers = _prepared_layers(encoder.layers, config)
    if isinstance(decoder, Decoder):
        _prepare(decoder, config)
    return model


def _prepare(decoder: Decoder, config: BertConfig) -> None:
    if not decoder.shares:
        decoder.layers = _prepared_layers(decoder.layers, config)
    if not isinstance(cross := decoder.cross, CrossAttention):
        return
    if config.dtype == "bfloat16":
        for linear in (cross.attention.query, cross.attention.key, cross.attention.value, cross.attention.output):
            _round(linear)
    if not is_scanned(config):
        decoder.cross = nnx.List(unstack(cross, config.num_hidden_layers))


def _prepared_layers(layers: object, config: BertConfig) -> Any:
    """Returns a stack of layers, prepared; as a list, unless the program scans over them. A list, which only this
    function makes, is returned as it is."""
    if not isinstance(layers, Layer):
        return layers
    if config.dtype == "bfloat16":
        layers.attention = FusedAttention(layers.attention)
        of_layer = [layers.attention.projection, layers.attention.output, layers.intermediate, layers.output]
        for linear in [*of_layer, layers.gate] if config.gated else of_layer:
            _round(linear)
    return layers if is_scanned(config) else nnx.List(unstack(layers, config.num_hidden_layers))


def _round(linear: Linear) -> None:
    linear.kernel = nnx.Param(linear.kernel[...].astype(jnp.bfloat16))
