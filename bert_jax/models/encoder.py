"""Embeddings and the stack of transformer layers (Devlin et al. 2018; google-research/bert)."""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt32

from bert_jax import backend
from bert_jax.models.attention import Angles, Attention, Cache, Source, take_places
from bert_jax.models.config import BertConfig
from bert_jax.models.layers import GEGLU, GELU, Embedding, LayerNorm, Linear, dropout
from bert_jax.sharding import by_rows, gathered_layer, gathers_layers

T = TypeVar("T")


class Encoded(NamedTuple):
    """The hidden states of every token, or of those that were asked for; and the output of each layer, including the
    last one, if it was asked for."""

    hidden: Float[Array, "B L D"] | Float[Array, "B P D"]
    layers: list[Float[Array, "B L D"]] | None


class Given(NamedTuple):
    """Vectors that take the place of the sum of word, position and token type where `there` is True."""

    sums: Float[Array, "B L E"]
    there: Bool[Array, "B L"]


class Embeddings(nnx.Module):
    """The normalised sum of word, position and token type embeddings; a projection follows if factorised (ALBERT).
    Rotary positions are not part of it (`rotary_angles`)."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        self.config, size = config, config.embedding_size
        options = {"stddev": config.initializer_range, "rngs": rngs}
        self.word = Embedding(config.vocab_size, size, **options)
        if config.position_embedding == "learned":
            self.position = Embedding(config.max_position_embeddings, size, **options)
        self.token_type = Embedding(config.type_vocab_size, size, **options)
        if config.num_languages:
            self.language = Embedding(config.num_languages, size, **options)
        self.layer_norm = LayerNorm(size, eps=config.layer_norm_eps, use_bias=config.use_bias)
        if size != config.hidden_size:
            stddev = config.kernel_stddev(size)
            self.projection = Linear(size, config.hidden_size, stddev=stddev, rngs=rngs, use_bias=config.use_bias)

    def __call__(
        self,
        words: Float[Array, "B L E"],
        token_type_ids: Int[Array, "B L"],
        position_ids: Int[Array, "B L"],
        *,
        language_ids: Int[Array, "B L"] | None = None,
        seed: UInt32[Array, "2"] | None = None,
        given: Given | None = None,
    ) -> Float[Array, "B L D"]:
        """Returns the vectors that the first layer reads. `words` are the word embeddings of the tokens.

        In a model with language embeddings, tokens without `language_ids` get the mean of all languages' vectors.
        """
        config = self.config
        positions = None
        if config.position_embedding == "learned":
            positions = self.position(position_ids)
        elif config.position_embedding == "sinusoidal":
            table = sinusoids(config.max_position_embeddings, config.embedding_size)
            positions = jnp.take(table, position_ids, axis=0)
        # A gather of so few rows saves nothing, and its gradient is a slow scatter. The original also multiplies by a
        # one-hot matrix.
        types = jax.nn.one_hot(token_type_ids, config.type_vocab_size, dtype=jnp.float32)
        types = jnp.einsum("blt,te->ble", types, self.token_type.embedding[...], precision="highest")
        if config.num_languages:
            types += self._of_languages(language_ids)
        x = (words if positions is None else words + positions) + types
        if given is not None:
            x = jnp.where(given.there[:, :, None], given.sums.astype(x.dtype), x)
        x = self.layer_norm(x, config.dtype)
        x = dropout(x, config.hidden_dropout, seed)
        return self.projection(x, config.dtype) if config.embedding_size != config.hidden_size else x

    def _of_languages(self, language_ids: Int[Array, "B L"] | None) -> Float[Array, "#B #L E"]:
        table = self.language.embedding[...]
        if language_ids is None:
            return jnp.mean(table, axis=0)[None, None]
        shares = jax.nn.one_hot(language_ids, self.config.num_languages, dtype=jnp.float32)
        return jnp.einsum("blt,te->ble", shares, table, precision="highest")


class Encoder(nnx.Module):
    """N layers, over which the program scans or which it unrolls.

    Their parameters are stacked along a leading axis, until inference/prepared.py makes a list of layers of them.
    """

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.layers: Layer | Sequence[Layer] = Layer(config, rngs=rngs, stack=(config.num_hidden_layers,))
        if config.norm == "pre":
            self.layer_norm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps, use_bias=config.use_bias)

    def __call__(
        self,
        x: Float[Array, "B L D"],
        mask: Bool[Array, "B 1 L L"],
        *,
        angles: Float[Array, "B L K"] | None = None,
        seeds=None,
        places=None,
        all_layers=False,
    ) -> Encoded:
        """Returns the hidden states of every token, or of those at `places` alone.

        `angles` are those of `rotary_angles`. `seeds` are for dropout, `Layer.DROPOUTS` for each layer; without them
        nothing is dropped out.
        """
        config = self.config
        if seeds is not None:
            seeds = seeds.reshape(config.num_hidden_layers, Layer.DROPOUTS, 2)
        layer = rematerialised(config.remat)
        # The last layer can leave out the queries that nobody asks for. Every layer of a scan is the same program, and
        # the output of a whole layer is for every token: both compute all of them.
        is_loop = isinstance(self.layers, Layer) and is_scanned(config)
        saves_places = places is not None and not is_loop and not all_layers
        if is_loop:

            def step(x, layer_and_seeds):
                x = layer(layer_and_seeds[0], x, mask, layer_and_seeds[1], angles=angles)
                return x, (x if all_layers else None)

            x, stacked = jax.lax.scan(step, x, (self.layers, seeds))
            outputs = [] if stacked is None else list(stacked)
        else:
            outputs = []
            for i, parameters in enumerate(self.unstacked()):
                asked = places if saves_places and i == config.num_hidden_layers - 1 else None
                x = layer(parameters, x, mask, None if seeds is None else seeds[i], asked, angles)
                outputs.append(x)
        if places is not None and not saves_places:
            x = take_places(x, places)
        if config.norm == "pre":
            x = self.layer_norm(x, config.dtype)
        return Encoded(x, outputs if all_layers else None)

    def unstacked(self) -> Sequence["Layer"]:
        """Returns the layers one by one."""
        return unstack(self.layers, self.config.num_hidden_layers) if isinstance(self.layers, Layer) else self.layers


_NOT_DROPPED = (None,) * 5


class Layer(nnx.Module):
    """A transformer block: self-attention, cross-attention if a decoder gives it, and a feed-forward part.

    Each sub-layer has a residual connection around it, and a LayerNorm after the sum ("post", as in BERT) or before
    the sub-layer ("pre").
    """

    # The seeds of one layer: for attention probabilities, after attention, after the feed-forward part; with
    # cross-attention two more, for its probabilities and after it.
    DROPOUTS = 3

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs, stack: tuple[int, ...] = ()):
        self.config = config
        size, inner = config.hidden_size, config.intermediate_size
        options = {"rngs": rngs, "stack": stack, "use_bias": config.use_bias}
        of_norms = {"eps": config.layer_norm_eps, "stack": stack, "use_bias": config.use_bias}
        self.attention = Attention(config, rngs=rngs, stack=stack)
        self.attention_layer_norm = LayerNorm(size, **of_norms)
        if config.gated:
            self.gate = Linear(size, inner, stddev=config.kernel_stddev(size), **options)
        self.intermediate = Linear(size, inner, stddev=config.kernel_stddev(size), **options)
        self.output = Linear(inner, size, stddev=config.kernel_stddev(inner, is_residual=True), **options)
        self.output_layer_norm = LayerNorm(size, **of_norms)

    def __call__(
        self,
        x: Float[Array, "B L D"],
        mask: Bool[Array, "B 1 L M"],
        seeds=None,
        places: Int[Array, "B P"] | None = None,
        *,
        angles: Float[Array, "B L K"] | None = None,
        cross: "CrossAttention | None" = None,
        source: Float[Array, "B R D"] | Source | None = None,
        source_mask: Bool[Array, "B 1 Q R"] | None = None,
        cache: Cache | None = None,
        before: Source | None = None,
    ) -> tuple[Float[Array, "B L D"] | Float[Array, "B P D"], Cache | None]:
        """Returns the hidden states and the extended cache, if one was given (`Attention` says what it needs).

        With `places`, and without a cache, only the tokens there are computed, which still look at all tokens. With
        `cross`, a layer also reads the R tokens of `source`, and raises ValueError without one; its mask has a row for
        each token that is computed. A source whose keys and values are known is read without dropout. `before` is what
        self-attention with a cache reads before the tokens in it. `angles` are those of `rotary_angles` for the L
        tokens, which rotary positions need (ValueError).
        """
        if (self.config.position_embedding == "rotary") != (angles is not None):
            raise ValueError("a layer needs angles with rotary positions, and only then")
        if seeds is None:
            seeds = _NOT_DROPPED
        dtype, rate = self.config.dtype, self.config.hidden_dropout
        x, cache = self.attended(x, mask, seeds, places, angles=angles, cache=cache, before=before)
        if cross is not None:
            if source is None or source_mask is None:
                raise ValueError("cross-attention needs a source and a source_mask")
            queries = self._before(cross.layer_norm, x)
            if isinstance(source, Source):
                attended = cross.attention.read(queries, source, source_mask)
            else:
                attended, _ = cross.attention(queries, source, source_mask, seed=seeds[3])
            x = self._after(cross.layer_norm, x + dropout(attended, rate, seeds[4]))
        inner = self._inner(self._before(self.output_layer_norm, x))
        x = x + dropout(self.output(inner, dtype), rate, seeds[2])
        return self._after(self.output_layer_norm, x), cache

    def attended(
        self,
        x: Float[Array, "B L D"],
        mask: Bool[Array, "B 1 L M"],
        seeds=_NOT_DROPPED,
        places: Int[Array, "B P"] | None = None,
        *,
        angles: Float[Array, "B L K"] | None = None,
        cache: Cache | None = None,
        before: Source | None = None,
    ) -> tuple[Float[Array, "B L D"] | Float[Array, "B P D"], Cache | None]:
        """Returns what the first sub-layer, self-attention, makes of the hidden states, as `__call__` describes it."""
        # Taken first, since gradients are added up in the reverse order: another order would change the last bits.
        kept = x if places is None else take_places(x, places)
        keys = self._before(self.attention_layer_norm, x)
        queries = keys  # the same array, by which a fused attention sees that one product is enough
        if places is not None:
            queries = take_places(keys, places)
            mask = jnp.take_along_axis(mask, places[:, None, :, None], axis=2)
        of_both = None
        if angles is not None:
            of_both = Angles(angles if places is None else take_places(angles, places), angles)
        attended, cache = self.attention(queries, keys, mask, cache, seed=seeds[0], angles=of_both, before=before)
        x = self._after(self.attention_layer_norm, kept + dropout(attended, self.config.hidden_dropout, seeds[1]))
        return x, cache

    def before(self, x: Float[Array, "G R D"], angles: Float[Array, "G R K"] | None = None) -> Source:
        """Returns the keys and values of self-attention over the tokens that this layer reads, for those that come
        after them."""
        return self.attention.source(self._before(self.attention_layer_norm, x), angles)

    def projections(self, x: Float[Array, "B L D"], angles: Float[Array, "B L K"] | None = None):
        """Returns queries, keys and values of self-attention, [B, L, H, K] each, of the hidden states that this layer
        reads; with `angles`, queries and keys are rotated."""
        x = self._before(self.attention_layer_norm, x)
        return self.attention.project(x, x, None if angles is None else Angles(angles, angles))

    def _inner(self, x):
        """Returns what the second product of the feed-forward part takes."""
        act, dtype = self.config.hidden_act, self.config.dtype
        if self.config.gated:
            return GEGLU[act](self.gate(x, dtype), self.intermediate(x, dtype))
        return GELU[act](self.intermediate(x, dtype))

    def _before(self, norm: LayerNorm, x):
        return norm(x, self.config.dtype) if self.config.norm == "pre" else x

    def _after(self, norm: LayerNorm, x):
        return norm(x, self.config.dtype) if self.config.norm == "post" else x


class CrossAttention(nnx.Module):
    """What a decoder puts between self-attention and feed-forward part of a layer."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs, stack: tuple[int, ...] = ()):
        self.attention = Attention(config, rngs=rngs, stack=stack)
        self.layer_norm = LayerNorm(
            config.hidden_size, eps=config.layer_norm_eps, stack=stack, use_bias=config.use_bias
        )


def is_scanned(config: BertConfig) -> bool:
    """Returns whether the program has a loop over the layers instead of one layer after the other. All layers of a
    loop are alike: also the last one then computes every token, whichever are asked for."""
    return config.layers == "scan" or (config.layers == "auto" and not backend.current().unrolls_layers)


def rotary_angles(config: BertConfig, position_ids: Int[Array, "B L"]) -> Float[Array, "B L K"] | None:
    """Returns the sines, in the first K/2 columns, and the cosines of p / 10,000^(2i/K), by which the columns i and
    i + K/2 of a query or key at position p are rotated (`models/attention.py: rotated`); None if the model's positions
    are not rotary. They are the sinusoids of a head's size."""
    if config.position_embedding != "rotary":
        return None
    table = sinusoids(config.max_position_embeddings, config.head_width)
    return jnp.take(np.concatenate([table[:, 0::2], table[:, 1::2]], axis=1), position_ids, axis=0)


def sinusoids(length: int, size: int) -> Float[np.ndarray, "L E"]:
    """Returns the fixed positions of Vaswani et al. (2017), section 3.5: sine in even columns, cosine in odd ones."""
    angle = np.arange(length)[:, None] / 10_000 ** (np.arange(0, size, 2) / size)
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(length, -1)[:, :size].astype(np.float32)


def unstack(tree: T, count: int) -> list[T]:
    """Returns the `count` slices of a tree of stacked arrays. The gradient is one stack; that of plain indexing would
    be a sum of `count` arrays, each as large as the whole."""
    slices = jax.tree.map(lambda x: _unstack(x, count), tree)
    return [jax.tree.map(lambda x, i=i: x[i], slices, is_leaf=lambda x: isinstance(x, list)) for i in range(count)]


def _unstack(x, count):
    @jax.custom_vjp
    def split(x):
        return [x[i] for i in range(count)]

    split.defvjp(lambda x: (split(x), None), lambda _, parts: (jnp.stack(parts),))
    return split(x)


def rematerialised(policy: str):
    """Returns `Layer.__call__` without a cache; autodiff keeps what `policy` says, and equal layers are traced once.

    Parameters that were gathered for a layer are not kept: those of all layers would be the whole model.
    """

    def layer(parameters, x, mask, seeds, places=None, angles=None, **cross):
        parameters = gathered_layer(parameters, parameters.config.dtype)
        return by_rows(parameters(by_rows(x), mask, seeds, places, angles=angles, **cross)[0])

    if policy == "none" and not gathers_layers():
        return jax.jit(layer)
    policies = {
        "none": _but_parameters,
        "full": None,
        "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    }
    return jax.checkpoint(layer, policy=policies[policy])


def _but_parameters(_, *operands, **__) -> bool:
    """Tells autodiff to keep everything but what is computed from parameters alone, which are the arrays of at most
    two dimensions in a layer."""
    return any(operand.ndim > 2 for operand in operands)
