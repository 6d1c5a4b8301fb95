"""The decoder of an encoder–decoder (Vaswani et al. 2017), whose layers are those of BERT and cross-attention.

With a BERT in both places the literature calls it BERT2BERT, with a new decoder BERT2RND, with one set of parameters
for both BERTShare (Rothe et al. 2020). Cross-attention is new in all of them, as initialised by `Attention`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int, Key

from bert_jax.models.attention import Cache, Source, attention_mask
from bert_jax.models.bert import Bert
from bert_jax.models.config import BertConfig
from bert_jax.models.encoder import (
    CrossAttention,
    Embeddings,
    Layer,
    is_scanned,
    rematerialised,
    rotary_angles,
    unstack,
)
from bert_jax.models.layers import LayerNorm, dropout_seeds

_DROPOUTS = Layer.DROPOUTS + 2


class Decoder(nnx.Module):
    """Embeddings, N layers and cross-attention; one that `shares` has cross-attention only, and takes the rest from
    the trunk that reads the source."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs, shares: bool = False):
        self.config, self.shares = config, shares
        stack = (config.num_hidden_layers,)
        if not shares:
            self.embeddings = Embeddings(config, rngs=rngs)
            self.layers: Layer | Sequence[Layer] = Layer(config, rngs=rngs, stack=stack)
            if config.norm == "pre":
                self.layer_norm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps, use_bias=config.use_bias)
        self.cross: CrossAttention | Sequence[CrossAttention] = CrossAttention(config, rngs=rngs, stack=stack)

    def __call__(
        self,
        trunk: Bert,
        ids: Int[Array, "B T"],
        source: Float[Array, "B R D"],
        real: Bool[Array, "B R"],
        *,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B T D"]:
        """Returns the hidden states of tokens that look at themselves, at those before them and at the `real` tokens
        of the source's hidden states. Without a `key` nothing is dropped out."""
        config = self.config
        seeds = dropout_seeds(key, 1 + _DROPOUTS * config.num_hidden_layers)
        x, angles = self._embedded(trunk, ids, jnp.zeros((), jnp.int32), None if seeds is None else seeds[0])
        seeds = None if seeds is None else seeds[1:].reshape(config.num_hidden_layers, _DROPOUTS, 2)
        shared = {"source": source, "source_mask": _shown(real, *ids.shape)}
        mask, layer = attention_mask(jnp.ones_like(ids), causal=True), rematerialised(config.remat)
        layers = self.own_or(trunk)[1]
        if is_scanned(config) and isinstance(layers, Layer):

            def step(x, of_layer):
                own, cross, seeds = of_layer
                return layer(own, x, mask, seeds, angles=angles, cross=cross, **shared), None

            x, _ = jax.lax.scan(step, x, (layers, self.cross, seeds))
        else:
            for i, (own, cross) in enumerate(self._unstacked(trunk)):
                x = layer(own, x, mask, None if seeds is None else seeds[i], angles=angles, cross=cross, **shared)
        return self._normalised(trunk, x)

    def attention(
        self, trunk: Bert, ids: Int[Array, "B T"], source: Float[Array, "B R D"], real: Bool[Array, "B R"]
    ) -> list[Float32[Array, "B H T R"]]:
        """Returns the weights of cross-attention of each layer."""
        x, angles = self._embedded(trunk, ids, jnp.zeros((), jnp.int32), None)
        mask, shown, found = attention_mask(jnp.ones_like(ids), causal=True), _shown(real, *ids.shape), []
        for own, cross in self._unstacked(trunk):
            queries, _ = own.attended(x, mask, angles=angles)
            if self.config.norm == "pre":
                queries = cross.layer_norm(queries, self.config.dtype)
            found.append(cross.attention.weights(queries, source, shown))
            x, _ = own(x, mask, angles=angles, cross=cross, source=source, source_mask=shown)
        return found

    def sources(self, hidden: Float[Array, "G R D"]) -> list[Source]:
        """Returns the keys and values of a source's hidden states for the cross-attention of each layer."""
        return [cross.attention.source(hidden) for cross in self._cross()]

    def step(
        self,
        trunk: Bert,
        tokens: Int[Array, " B"],
        sources: Sequence[Source],
        real: Bool[Array, "G R"],
        caches: Sequence[Cache],
    ) -> tuple[Float[Array, "B 1 D"], list[Cache]]:
        """Returns the hidden state of each row's next token and the extended caches. B / G rows in a row read the same
        source."""
        rows, room = len(tokens), caches[0].size
        x, angles = self._embedded(trunk, tokens[:, None], caches[0].length, None)
        shown = jnp.repeat(real, rows // len(real), axis=0, total_repeat_length=rows)
        mask, source_mask, after = jnp.ones((rows, 1, 1, room), bool), _shown(shown, rows, 1), []
        for (own, cross), source, cache in zip(self._unstacked(trunk), sources, caches, strict=True):
            x, cache = own(x, mask, angles=angles, cross=cross, source=source, source_mask=source_mask, cache=cache)
            assert cache is not None
            after.append(cache)
        return self._normalised(trunk, x), after

    def own_or(self, trunk: Bert) -> tuple[Embeddings, Layer | Sequence[Layer]]:
        """Returns the decoder's embeddings and layers, which may be those of the trunk."""
        if not self.shares:
            return self.embeddings, self.layers
        return trunk.embeddings, trunk.encoder.layers

    def _embedded(self, trunk: Bert, ids: Int[Array, "B L"], first: Int[Array, ""], seed):
        """Returns embeddings of tokens from position `first` on, and their rotary angles."""
        positions = jnp.broadcast_to(first + jnp.arange(ids.shape[1])[None], ids.shape)
        embeddings = self.own_or(trunk)[0]
        x = embeddings(embeddings.word(ids), jnp.zeros_like(ids), positions, seed=seed)
        return x, rotary_angles(self.config, positions)

    def _unstacked(self, trunk: Bert) -> list[tuple[Layer, CrossAttention]]:
        layers = self.own_or(trunk)[1]
        return list(zip(_list(layers, self.config), self._cross(), strict=True))

    def _cross(self) -> Sequence[CrossAttention]:
        return _list(self.cross, self.config)

    def _normalised(self, trunk: Bert, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        if self.config.norm == "post":
            return x
        norm = self.layer_norm if not self.shares else trunk.encoder.layer_norm
        return norm(x, self.config.dtype)


def _list(layers: object, config: BertConfig) -> Any:
    """Returns layers one by one, which are a stack unless inference/prepared.py has made a list of it."""
    return unstack(layers, config.num_hidden_layers) if isinstance(layers, Layer | CrossAttention) else layers


def _shown(real: Bool[Array, "B R"], rows: int, places: int) -> Bool[Array, "B 1 P R"]:
    return jnp.broadcast_to(real[:, None, None], (rows, 1, places, real.shape[1]))
