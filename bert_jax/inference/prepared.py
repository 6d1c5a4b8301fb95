"""A model as prediction runs it: what each call would do to the parameters is done once, when they are loaded.

A program that is given float32 parameters rounds the kernels of its products to bfloat16, joins query, key and value,
and takes the stack of layers apart, at every call: more work than a short text is. The results are the same bits.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from bert_jax.models.attention import SelfAttention
from bert_jax.models.config import BertConfig
from bert_jax.models.encoder import Bert, Encoded, Encoder, unstack
from bert_jax.models.layers import Linear


class Prepared:
    """The parameters of `model`, ready for use; `model` itself may go."""

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

    def _project(self, x: Float[Array, "B L D"]) -> list[Float[Array, "B L D"]]:
        return jnp.split(self.projection(x, self.config.dtype), 3, axis=-1)


class UnrolledEncoder(nnx.Module):
    """An `Encoder` with parameters a layer, and without dropout."""

    def __init__(self, encoder: Encoder):
        self.config = encoder.config
        self.layers = nnx.List(unstack(encoder.layers, self.config.num_hidden_layers))
        if self.config.norm == "pre":
            self.layer_norm = encoder.layer_norm

    def __call__(
        self, x: Float[Array, "B L D"], mask: Bool[Array, "B 1 L L"], *, all_layers: bool = False, **randomness: None
    ) -> Encoded:
        assert not any(x is not None for x in randomness.values()), randomness.keys()
        outputs = []
        for layer in self.layers:
            x = layer(x, mask)
            outputs.append(x)
        if self.config.norm == "pre":
            x = self.layer_norm(x, self.config.dtype)
        return Encoded(x, outputs if all_layers else None)


def _prepared(model: nnx.Module) -> nnx.Module:
    """Under `jit`, whose argument nobody else has: it is changed in place. A task of one's own may have another model,
    which stays as it is."""
    if not isinstance(model, Bert):
        return model
    config, layers = model.config, model.encoder.layers
    layers.attention = FusedSelfAttention(layers.attention)
    if config.dtype == "bfloat16":
        for linear in (layers.attention.projection, layers.attention.output, layers.intermediate, layers.output):
            _round(linear)
    if _is_unrolled(config):
        model.encoder = UnrolledEncoder(model.encoder)  # type: ignore[assignment]
    return model


def _is_unrolled(config: BertConfig) -> bool:
    """As `Encoder` has it."""
    return config.layers == "unroll" or (config.layers == "auto" and jax.default_backend() == "cpu")


def _round(linear: Linear) -> None:
    linear.kernel = nnx.Param(linear.kernel[...].astype(jnp.bfloat16))
