"""Heads on the trunk. They give logits in float32; losses live in `tasks/`."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from bert_jax.models.config import BertConfig
from bert_jax.models.encoder import Bert
from bert_jax.models.layers import GELU, LayerNorm, Linear, along_last, dot_transposed, dropout, dropout_seeds


class MaskedLMHead(nnx.Module):
    """linear → GELU → LayerNorm → product with the word embeddings, which are passed in, not held → + bias."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.transform = Linear(config.hidden_size, config.embedding_size, stddev=config.initializer_range, rngs=rngs)
        self.layer_norm = LayerNorm(config.embedding_size, eps=config.layer_norm_eps)
        self.bias = nnx.Param(jnp.zeros((config.vocab_size,)))

    def __call__(self, hidden: Float[Array, "B P D"], table: Float[Array, "V E"]) -> Float[Array, "B P V"]:
        return vocabulary_logits(self.vectors(hidden), table, self.bias[...], self.config.dtype)

    def vectors(self, hidden: Float[Array, "B P D"]) -> Float[Array, "B P E"]:
        """All but the product."""
        dtype = self.config.dtype
        x = GELU[self.config.hidden_act](self.transform(hidden, dtype).astype(jnp.float32))
        return self.layer_norm(x, dtype)


class BertForPretraining(Bert):
    """The trunk with the heads of both pretraining tasks."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.mlm = MaskedLMHead(config, rngs=rngs)
        self.nsp = Linear(config.hidden_size, 2, stddev=config.initializer_range, rngs=rngs)

    def mlm_logits(self, hidden: Float[Array, "B L D"], positions: Int[Array, "B P"]) -> Float[Array, "B P V"]:
        """Logits at `positions` only: there is never an array of B × L × V."""
        vectors = self.mlm_vectors(hidden, positions)
        return vocabulary_logits(vectors, *self.mlm_decoder(), self.config.dtype)

    def mlm_vectors(self, hidden: Float[Array, "B L D"], positions: Int[Array, "B P"]) -> Float[Array, "B P E"]:
        """What `mlm_decoder` turns into logits."""
        return self.mlm.vectors(jnp.take_along_axis(hidden, positions[:, :, None], axis=1))

    def mlm_decoder(self) -> tuple[Float[Array, "V E"], Float[Array, " V"]]:
        """The tied table and the bias, for `vocabulary_logits`."""
        return self.embeddings.word.embedding[...], self.mlm.bias[...]

    def nsp_logits(
        self, hidden: Float[Array, "B L D"], first_tokens: Int[Array, "B S"] | None = None
    ) -> Float[Array, "B 2"] | Float[Array, "B S 2"]:
        """Of each row, or of each of the pairs that are packed in it (`Bert.pool`)."""
        return self.nsp(self.pool(hidden, first_tokens), "float32")


def vocabulary_logits(
    vectors: Float[Array, "B P E"], table: Float[Array, "V E"], bias: Float[Array, " V"], dtype: str
) -> Float[Array, "B P V"]:
    logits = dot_transposed(vectors, table, dtype, out_dtype="float32")
    return logits + along_last(bias, logits)


def padded_decoder(
    table: Float[Array, "V E"], bias: Float[Array, " V"], multiple: int
) -> tuple[Float[Array, "W E"], Float[Array, " W"]]:
    """W is V rounded up to a multiple. The places past V are never the largest logit, have probability 0 and pass no
    gradient on, so that a loss and its gradients are those of V places."""
    extra = -bias.size % multiple
    if extra == 0:
        return table, bias
    return jnp.pad(table, ((0, extra), (0, 0))), jnp.pad(bias, (0, extra), constant_values=-1e30)


class BertForSequenceClassification(Bert):
    """One vector a text → dropout → linear. With one label: a number, or the score of one of several choices.

    A long text is several rows (windows), whose vectors become one: "mean", "max" or "attention", a weighted mean
    whose weights are learned.
    """

    def __init__(self, config: BertConfig, num_labels: int, *, rngs: nnx.Rngs, window_pooling: str = "mean"):
        super().__init__(config, rngs=rngs)
        self.window_pooling = window_pooling
        self.classifier = Linear(config.hidden_size, num_labels, stddev=config.initializer_range, rngs=rngs)
        if window_pooling == "attention":
            self.window_query = Linear(config.hidden_size, 1, stddev=config.initializer_range, rngs=rngs)

    def vector(
        self,
        hidden: Float[Array, "N L D"],
        sequence_ids: Int[Array, "N L"],
        first_tokens: Int[Array, "N K"] | None = None,
    ) -> Float[Array, "N D"] | Float[Array, "N K D"]:
        """By `model.pooling`: the pooler's output, or the mean or largest of the row's tokens; with `first_tokens`, of
        each of the K sequences that share a row."""
        if self.config.pooling == "cls":
            return self.pool(hidden, first_tokens)
        if first_tokens is None:
            return pool_tokens(hidden, sequence_ids, self.config.pooling)
        return pool_sequences(hidden, sequence_ids, first_tokens.shape[1], self.config.pooling)

    def pool_windows(self, vectors: Float[Array, "B S D"], weights: Float[Array, "B S"]) -> Float[Array, "B D"]:
        """Windows of weight 0 do not exist; a text without any gives zeros."""
        if self.window_pooling == "attention":
            scores = self.window_query(vectors, "float32")[:, :, 0]
            weights = weights * jax.nn.softmax(jnp.where(weights > 0, scores, jnp.finfo(jnp.float32).min), axis=-1)
        if self.window_pooling == "max":
            largest = jnp.max(jnp.where(weights[:, :, None] > 0, vectors, jnp.finfo(jnp.float32).min), axis=1)
            return jnp.where(jnp.any(weights > 0, axis=1)[:, None], largest, 0.0)
        total = jnp.maximum(jnp.sum(weights, axis=1, keepdims=True), jnp.finfo(jnp.float32).tiny)
        return jnp.sum(vectors * (weights / total)[:, :, None], axis=1)

    def classify(self, vector: Float[Array, "*N D"], *, key: Key[Array, ""] | None = None) -> Float[Array, "*N C"]:
        return self.classifier(dropout(vector, self.config.hidden_dropout, dropout_seeds(key)), "float32")


class BertForTokenClassification(Bert):
    """dropout → linear on every token."""

    def __init__(self, config: BertConfig, num_labels: int, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.classifier = Linear(config.hidden_size, num_labels, stddev=config.initializer_range, rngs=rngs)

    def logits(self, hidden: Float[Array, "B L D"], *, key: Key[Array, ""] | None = None) -> Float[Array, "B L C"]:
        hidden = dropout(hidden.astype(jnp.float32), self.config.hidden_dropout, dropout_seeds(key))
        return self.classifier(hidden, "float32")


class BertForQuestionAnswering(Bert):
    """linear on every token: the first logit is of an answer's start, the second of its end (no dropout here)."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.span = Linear(config.hidden_size, 2, stddev=config.initializer_range, rngs=rngs)

    def logits(self, hidden: Float[Array, "B L D"]) -> Float[Array, "B L 2"]:
        return self.span(hidden.astype(jnp.float32), "float32")


def pool_tokens(hidden: Float[Array, "B L D"], sequence_ids: Int[Array, "B L"], how: str) -> Float[Array, "B D"]:
    """The mean or the largest ("max") of the vectors of a row's tokens, special ones included, padding not; float32."""
    return pool_sequences(hidden, jnp.minimum(sequence_ids, 1), 1, how)[:, 0]


def pool_sequences(
    hidden: Float[Array, "B L D"], sequence_ids: Int[Array, "B L"], count: int, how: str
) -> Float[Array, "B K D"]:
    """The same of each of a row's `count` sequences; zeros of those that are not there."""
    hidden = hidden.astype(jnp.float32)
    of_sequence = jax.nn.one_hot(sequence_ids - 1, count)
    sizes = jnp.sum(of_sequence, axis=1)[:, :, None]
    if how == "max":
        lowest = jnp.finfo(jnp.float32).min
        largest = [jnp.max(jnp.where(of_sequence[:, :, k, None] > 0, hidden, lowest), axis=1) for k in range(count)]
        return jnp.where(sizes > 0, jnp.stack(largest, axis=1), 0.0)
    totals = jnp.einsum("blk,bld->bkd", of_sequence, hidden, precision="highest")
    return totals / jnp.maximum(sizes, 1)
