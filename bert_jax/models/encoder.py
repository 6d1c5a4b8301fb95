"""Embeddings and the stack of transformer layers (Devlin et al. 2018; google-research/bert)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt32

from bert_jax import backend
from bert_jax.models.attention import SelfAttention, take_places
from bert_jax.models.config import BertConfig
from bert_jax.models.layers import GELU, Embedding, LayerNorm, Linear, dropout


class Encoded(NamedTuple):
    """What comes out of the trunk, of every token or of the places asked for. `layers` holds the output of every layer,
    the last one included, if asked for."""

    hidden: Float[Array, "B L D"] | Float[Array, "B P D"]
    layers: list[Float[Array, "B L D"]] | None


class Embeddings(nnx.Module):
    """Word + position + token type, normalised; projected to the hidden size if factorised (ALBERT)."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        self.config = config
        options = {"stddev": config.initializer_range, "rngs": rngs}
        self.word = Embedding(config.vocab_size, config.embedding_size, **options)
        if config.position_embedding == "learned":
            self.position = Embedding(config.max_position_embeddings, config.embedding_size, **options)
        self.token_type = Embedding(config.type_vocab_size, config.embedding_size, **options)
        self.layer_norm = LayerNorm(config.embedding_size, eps=config.layer_norm_eps)
        if config.embedding_size != config.hidden_size:
            self.projection = Linear(config.embedding_size, config.hidden_size, **options)

    def __call__(
        self,
        words: Float[Array, "B L E"],
        token_type_ids: Int[Array, "B L"],
        position_ids: Int[Array, "B L"],
        *,
        seed: UInt32[Array, "2"] | None = None,
    ) -> Float[Array, "B L D"]:
        config = self.config
        if config.position_embedding == "learned":
            positions = self.position(position_ids)
        else:
            table = sinusoids(config.max_position_embeddings, config.embedding_size)
            positions = jnp.take(table, position_ids, axis=0)
        # Two rows do not make a gather worth its scattered gradient: the original, too, multiplies by a one-hot.
        types = jax.nn.one_hot(token_type_ids, config.type_vocab_size, dtype=jnp.float32)
        types = jnp.einsum("blt,te->ble", types, self.token_type.embedding[...], precision="highest")
        x = self.layer_norm(words + positions + types, config.dtype)
        x = dropout(x, config.hidden_dropout, seed)
        return self.projection(x, config.dtype) if config.embedding_size != config.hidden_size else x


class Encoder(nnx.Module):
    """N layers whose parameters are stacked along a leading axis: scanned over, or unrolled."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.layers = Layer(config, rngs=rngs, stack=(config.num_hidden_layers,))
        if config.norm == "pre":
            self.layer_norm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def __call__(
        self, x: Float[Array, "B L D"], mask: Bool[Array, "B 1 L L"], *, seeds=None, places=None, all_layers=False
    ) -> Encoded:
        config = self.config
        if seeds is not None:
            seeds = seeds.reshape(config.num_hidden_layers, Layer.DROPOUTS, 2)
        layer = _rematerialised(config.remat)
        saves_places = places is not None and not is_scanned(config) and not all_layers
        if is_scanned(config):

            def step(x, layer_and_seeds):
                x = layer(layer_and_seeds[0], x, mask, layer_and_seeds[1])
                return x, (x if all_layers else None)

            x, stacked = jax.lax.scan(step, x, (self.layers, seeds))
            outputs = [] if stacked is None else list(stacked)
        else:
            outputs = []
            for i, parameters in enumerate(unstack(self.layers, config.num_hidden_layers)):
                is_last = i == config.num_hidden_layers - 1
                x = layer(
                    parameters,
                    x,
                    mask,
                    None if seeds is None else seeds[i],
                    places if is_last and saves_places else None,
                )
                outputs.append(x)
        if places is not None and not saves_places:
            x = take_places(x, places)
        if config.norm == "pre":
            x = self.layer_norm(x, config.dtype)
        return Encoded(x, outputs if all_layers else None)


class Layer(nnx.Module):
    """Attention and feed-forward, each inside a residual connection with its LayerNorm after (post) or before (pre)."""

    DROPOUTS = 3  # of attention probabilities, after attention, after the feed-forward part

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs, stack: tuple[int, ...] = ()):
        self.config = config
        size, inner = config.hidden_size, config.intermediate_size
        options = {"stddev": config.initializer_range, "rngs": rngs, "stack": stack}
        self.attention = SelfAttention(config, rngs=rngs, stack=stack)
        self.attention_layer_norm = LayerNorm(size, eps=config.layer_norm_eps, stack=stack)
        self.intermediate = Linear(size, inner, **options)
        self.output = Linear(inner, size, **options)
        self.output_layer_norm = LayerNorm(size, eps=config.layer_norm_eps, stack=stack)

    def __call__(
        self,
        x: Float[Array, "B L D"],
        mask: Bool[Array, "B 1 L L"],
        seeds=None,
        places: Int[Array, "B P"] | None = None,
    ) -> Float[Array, "B L D"] | Float[Array, "B P D"]:
        """With `places`, the results of these alone, which look at all tokens."""
        if seeds is None:
            seeds = (None,) * self.DROPOUTS
        dtype, rate = self.config.dtype, self.config.hidden_dropout

        def attend(x):
            return dropout(self.attention(x, mask, seeds[0], places), rate, seeds[1])

        def feed_forward(x):
            inner = GELU[self.config.hidden_act](self.intermediate(x, dtype).astype(jnp.float32))
            return dropout(self.output(inner.astype(dtype), dtype), rate, seeds[2])

        kept = x if places is None else take_places(x, places)
        if self.config.norm == "pre":
            x = kept + attend(self.attention_layer_norm(x, dtype))
            return x + feed_forward(self.output_layer_norm(x, dtype))
        x = self.attention_layer_norm(kept + attend(x), dtype)
        return self.output_layer_norm(x + feed_forward(x), dtype)


def is_scanned(config: BertConfig) -> bool:
    """Whether layers are a loop of the program, or one after the other in it. Of a loop the last is like all and
    computes every place, whichever are asked for."""
    return config.layers == "scan" or (config.layers == "auto" and not backend.current().unrolls_layers)


def sinusoids(length: int, size: int) -> Float[np.ndarray, "L E"]:
    """The fixed positions of Vaswani et al. (2017), section 3.5: sine in the even columns, cosine in the odd."""
    angle = np.arange(length)[:, None] / 10_000 ** (np.arange(0, size, 2) / size)
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(length, -1)[:, :size].astype(np.float32)


def unstack(tree: Any, count: int) -> list[Any]:
    """The `count` slices of a tree of stacked arrays. Its gradient is one stack, where that of indexing would be a
    sum of `count` arrays, each as large as the whole."""
    slices = jax.tree.map(lambda x: _unstack(x, count), tree)
    return [jax.tree.map(lambda x, i=i: x[i], slices, is_leaf=lambda x: isinstance(x, list)) for i in range(count)]


def _unstack(x, count):
    @jax.custom_vjp
    def split(x):
        return [x[i] for i in range(count)]

    split.defvjp(lambda x: (split(x), None), lambda _, parts: (jnp.stack(parts),))
    return split(x)


def _rematerialised(policy: str):
    """`Layer.__call__`, of which autodiff keeps what `policy` says; traced once for all layers that are alike."""

    def layer(parameters, x, mask, seeds, places=None):
        return parameters(x, mask, seeds, places)

    if policy == "none":
        return jax.jit(layer)
    policies = {"full": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}
    return jax.checkpoint(layer, policy=policies[policy])
