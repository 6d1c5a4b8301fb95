"""Heads: small modules that are composed beside the trunk and give logits in float32. Losses live in `tasks/`."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from bert_jax.models.config import BertConfig
from bert_jax.models.layers import (
    GELU,
    Embedding,
    LayerNorm,
    Linear,
    along_last,
    dot_transposed,
    dropout,
    dropout_seeds,
)


class MaskedLMHead(nnx.Module):
    """linear → GELU → LayerNorm → product with the word embeddings, which are passed in, not held → + bias.

    Without model.tie_embeddings the product is with a table of the head's own.
    """

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        self.config, size = config, config.embedding_size
        stddev = config.kernel_stddev(config.hidden_size)
        self.transform = Linear(config.hidden_size, size, stddev=stddev, rngs=rngs, use_bias=config.use_bias)
        self.layer_norm = LayerNorm(size, eps=config.layer_norm_eps, use_bias=config.use_bias)
        self.bias = nnx.Param(jnp.zeros((config.vocab_size,))) if config.use_bias else None
        if not config.tie_embeddings:
            self.decoder = Embedding(config.vocab_size, size, stddev=config.initializer_range, rngs=rngs)

    def __call__(self, hidden: Float[Array, "B P D"], words: Float[Array, "*N V E"]) -> Float[Array, "B P V"]:
        """Returns logits for hidden states of the predicted positions only: never for all B × L positions. `words` are
        the word embeddings."""
        return vocabulary_logits(self.vectors(hidden), *self.table_and_bias(words), self.config.dtype)

    def table_and_bias(self, words: Float[Array, "*N U E"]) -> tuple[Float[Array, "*N U E"], Float[Array, " V"]]:
        """Returns the table of the product, which is `words` unless the head has its own, and the bias of the logits,
        which is 0 if the head has none."""
        table = words if self.config.tie_embeddings else self.decoder.embedding[...]
        return table, jnp.zeros((self.config.vocab_size,)) if self.bias is None else self.bias[...]

    def vectors(self, hidden: Float[Array, "B P D"]) -> Float[Array, "B P E"]:
        """Returns what the product with the word embeddings takes, in `dtype`."""
        dtype = self.config.dtype
        x = GELU[self.config.hidden_act](self.transform(hidden, dtype).astype(jnp.float32))
        return self.layer_norm(x, dtype)


class LinearHead(Linear):
    """A linear layer on hidden states, in float32: next sentence prediction, spans, the query of window pooling. It
    reads vectors of `inputs` values, by default as many as a hidden state has."""

    def __init__(self, config: BertConfig, outputs: int, *, rngs: nnx.Rngs, inputs: int | None = None):
        super().__init__(inputs or config.hidden_size, outputs, stddev=config.initializer_range, rngs=rngs)

    def logits(self, hidden: Float[Array, "*N D"]) -> Float[Array, "*N C"]:
        return self(hidden.astype(jnp.float32), "float32")


class Classifier(LinearHead):
    """dropout → linear, on one vector per text or per token. One output is a number, or the score of one choice."""

    def __init__(self, config: BertConfig, outputs: int, *, rngs: nnx.Rngs, inputs: int | None = None):
        super().__init__(config, outputs, rngs=rngs, inputs=inputs)
        self.dropout = config.hidden_dropout

    def logits(self, hidden: Float[Array, "*N D"], *, key: Key[Array, ""] | None = None) -> Float[Array, "*N C"]:
        """Returns logits; without a `key` nothing is dropped out."""
        return super().logits(dropout(hidden.astype(jnp.float32), self.dropout, dropout_seeds(key)))


def vocabulary_logits(
    vectors: Float[Array, "B P E"], table: Float[Array, "*N V E"], bias: Float[Array, " V"], dtype: str
) -> Float[Array, "B P V"]:
    """Returns logits. Of a table in N copies, each multiplies its part of the rows (`sharding.gathered`)."""
    parts = vectors if table.ndim == 2 else vectors.reshape(table.shape[0], -1, vectors.shape[-1])
    logits = dot_transposed(parts, table, dtype, out_dtype="float32").reshape(*vectors.shape[:-1], -1)
    return logits + along_last(bias, logits)


def padded_decoder(
    table: Float[Array, "*N U E"], bias: Float[Array, " V"], multiple: int
) -> tuple[Float[Array, "*N W E"], Float[Array, " W"]]:
    """Returns table and bias for W entries, U >= V rounded up to a multiple. The entries past V are never the largest
    logit, have probability 0 and pass no gradient on: a loss and its gradients are those of V entries."""
    entries = table.shape[-2]
    extra = -entries % multiple
    if extra:
        table = jnp.pad(table, (*((0, 0),) * (table.ndim - 2), (0, extra), (0, 0)))
    extra += entries - bias.size
    return table, jnp.pad(bias, (0, extra), constant_values=-1e30) if extra else bias


def pool_windows(
    vectors: Float[Array, "G W D"], weights: Float[Array, "G W"], how: str, query: LinearHead | None = None
) -> Float[Array, "G D"]:
    """Joins the vectors of the windows of a long text into one.

    `how` is "mean", "max" or "attention", a weighted mean whose weights are a softmax over the scores of `query`.
    Windows of weight 0 do not exist; a text without any gives zeros.
    """
    if how == "attention":
        assert query is not None
        scores = query.logits(vectors)[:, :, 0]
        weights = weights * jax.nn.softmax(jnp.where(weights > 0, scores, jnp.finfo(jnp.float32).min), axis=-1)
    if how == "max":
        largest = jnp.max(jnp.where(weights[:, :, None] > 0, vectors, jnp.finfo(jnp.float32).min), axis=1)
        return jnp.where(jnp.any(weights > 0, axis=1)[:, None], largest, 0.0)
    total = jnp.maximum(jnp.sum(weights, axis=1, keepdims=True), jnp.finfo(jnp.float32).tiny)
    return jnp.sum(vectors * (weights / total)[:, :, None], axis=1)


def pool_tokens(hidden: Float[Array, "B L D"], sequence_ids: Int[Array, "B L"], how: str) -> Float[Array, "B D"]:
    """Returns the mean or the largest values ("max") of a row's tokens, special ones included, without padding; in
    float32."""
    return pool_sequences(hidden, jnp.minimum(sequence_ids, 1), 1, how)[:, 0]


def pool_sequences(
    hidden: Float[Array, "B L D"], sequence_ids: Int[Array, "B L"], count: int, how: str
) -> Float[Array, "B S D"]:
    """Returns the same for each of a row's `count` sequences; zeros for those that are not there."""
    hidden = hidden.astype(jnp.float32)
    of_sequence = jax.nn.one_hot(sequence_ids - 1, count)
    sizes = jnp.sum(of_sequence, axis=1)[:, :, None]
    if how == "max":
        lowest = jnp.finfo(jnp.float32).min
        largest = [jnp.max(jnp.where(of_sequence[:, :, k, None] > 0, hidden, lowest), axis=1) for k in range(count)]
        return jnp.where(sizes > 0, jnp.stack(largest, axis=1), 0.0)
    totals = jnp.einsum("blk,bld->bkd", of_sequence, hidden, precision="highest")
    return totals / jnp.maximum(sizes, 1)
