"""BERT: one trunk, and beside it the heads of a task (Devlin et al. 2018; google-research/bert)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from bert_jax.models.attention import attention_mask, take_places
from bert_jax.models.config import BertConfig
from bert_jax.models.encoder import Embeddings, Encoded, Encoder, Given, Layer, rotary_angles
from bert_jax.models.layers import Linear, dropout_seeds
from bert_jax.sharding import gathered_layer


class TrunkInputs(NamedTuple):
    """The rows that a trunk reads.

    `sequence_ids` is 0 for padding and k for the k-th sequence packed in the row; attention stays inside a sequence.
    `embeddings`, if given, takes the place of the word embeddings, and `input_ids` may then be None. `mask`, if given,
    says which keys (fourth axis) a query (third axis) looks at, in place of the sequences and of model.causal.
    `language_ids` are read by a model with language embeddings. `given` are vectors in place of tokens, with positions
    and types of their own (`models/patches.py`).
    """

    input_ids: Int[Array, "B L"] | None
    token_type_ids: Int[Array, "B L"]
    position_ids: Int[Array, "B L"]
    sequence_ids: Int[Array, "B L"]
    embeddings: Float[Array, "B L E"] | None = None
    mask: Bool[Array, "B 1 L L"] | None = None
    language_ids: Int[Array, "B L"] | None = None
    given: Given | None = None

    @classmethod
    def from_batch(cls, batch: Mapping[str, Array]) -> "TrunkInputs":
        names = ("input_ids", "token_type_ids", "position_ids", "sequence_ids")
        return cls(*(batch[name] for name in names), language_ids=batch.get("language_ids"))


class Seen(NamedTuple):
    """What a trunk has read, and its hidden states: of the embeddings and of each layer, as the next layer reads
    them."""

    inputs: TrunkInputs
    states: list[Float[Array, "B L D"]]


@contextmanager
def watched() -> Iterator[list[Seen]]:
    """Collects what every call of `Bert.encode` in its body computes, whoever makes it. Nothing else changes."""
    seen: list[Seen] = []
    token = _seen.set(seen)
    try:
        yield seen
    finally:
        _seen.reset(token)


_seen: ContextVar[list[Seen] | None] = ContextVar("seen", default=None)


class Bert(nnx.Module):
    """The trunk: embeddings, a stack of transformer layers, the pooler."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embeddings = Embeddings(config, rngs=rngs)
        self.encoder = Encoder(config, rngs=rngs)
        size, stddev = config.hidden_size, config.kernel_stddev(config.hidden_size)
        self.pooler = Linear(size, size, stddev=stddev, rngs=rngs, use_bias=config.use_bias)

    def encode(
        self,
        inputs: TrunkInputs,
        *,
        key: Key[Array, ""] | None = None,
        places: Int[Array, "B P"] | None = None,
        all_layers: bool = False,
    ) -> Encoded:
        """Returns the hidden states of every token, or of those at `places` alone, for which the last layer has less
        to compute. Without a `key` nothing is dropped out."""
        seeds = dropout_seeds(key, 1 + Layer.DROPOUTS * self.config.num_hidden_layers)
        words = inputs.embeddings
        if words is None:
            if inputs.input_ids is None:
                raise ValueError("TrunkInputs has neither input_ids nor embeddings; give one of them")
            words = self.embeddings.word(inputs.input_ids)
        first_seed = None if seeds is None else seeds[0]
        types, positions, languages = inputs.token_type_ids, inputs.position_ids, inputs.language_ids
        x = self.embeddings(words, types, positions, language_ids=languages, seed=first_seed, given=inputs.given)
        mask = inputs.mask
        if mask is None:
            mask = attention_mask(inputs.sequence_ids, self.config.causal)
        angles = rotary_angles(self.config, inputs.position_ids)
        seeds = None if seeds is None else seeds[1:]
        seen = _seen.get()
        options = {"angles": angles, "seeds": seeds, "places": places}
        encoded = self.encoder(x, mask, all_layers=all_layers or seen is not None, **options)
        if seen is not None:
            assert encoded.layers is not None
            seen.append(Seen(inputs, [x, *encoded.layers]))
        return encoded if all_layers else encoded._replace(layers=None)

    def projections(self, layer: int, seen: "Seen") -> tuple[Float[Array, "B L H K"], ...]:
        """Returns the queries, keys and values of layer `layer`, from 1, of what `watched` has collected."""
        own = gathered_layer(self.encoder.unstacked()[layer - 1], self.config.dtype)
        return own.projections(seen.states[layer - 1], rotary_angles(self.config, seen.inputs.position_ids))

    def pool(
        self, hidden: Float[Array, "B L D"], first_tokens: Int[Array, "B S"] | None = None
    ) -> Float[Array, "B D"] | Float[Array, "B S D"]:
        """Returns `pooled` of each row's first token, or of the S tokens of each row at `first_tokens`, which begin
        the sequences packed in it."""
        return self.pooled(hidden[:, 0] if first_tokens is None else take_places(hidden, first_tokens))

    def pooled(self, first: Float[Array, "*N D"]) -> Float[Array, "*N D"]:
        """Returns tanh(linear) of hidden states of first tokens, in float32."""
        return jnp.tanh(self.pooler(first.astype(jnp.float32), "float32"))


class Model(nnx.Module):
    """A trunk and the heads of a task, by name.

    Parameters of the trunk are called as in the trunk (`encoder/layers/…`), those of the heads `heads/<name>/…`
    (training/parameters.py). The trunk is made first and the heads in their order, each of which draws its initial
    values from the same `nnx.Rngs`.
    """

    def __init__(self, trunk: Bert, heads: Mapping[str, nnx.Module]):
        self.trunk = trunk
        self.heads: Mapping[str, Any] = nnx.Dict(heads)  # whatever module a task knows how to call
