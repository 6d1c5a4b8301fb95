"""A softmax over the label and sampled negatives, in place of one over the vocabulary (`train.sampled_softmax`).

Source: Bengio and Senécal (2008), with the sum over all other entries estimated from samples: each counts 1 / (n q),
where n is the number of samples and q the probability of its entry, that in the corpus. The estimate has no bias and,
as n grows, the loss becomes that of the full softmax.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt32
from ml_collections import ConfigDict

from bert_jax.config import UserError
from bert_jax.models.heads import vocabulary_logits
from bert_jax.tasks.losses import cross_entropy_sums
from bert_jax.tasks.task import Batch, Constants, Sums

_WHOLE = 2**32 - 1
_SEEDS = 3  # folded into the key of a batch's features, of which masking splits off 0 to 2


def check(count: int, vocab_size: int) -> None:
    """Raises UserError for as many negatives as there are entries."""
    if count >= vocab_size:
        raise UserError(
            f"train.sampled_softmax is {count}; it must be less than the vocabulary of {vocab_size} entries, or 0 for "
            "all of them"
        )


def seeds(key: Key[Array, ""], rows: int) -> Batch:
    """Returns the seed of a step's negatives, in every row of the batch: micro-batches and devices take rows."""
    seed = jax.random.key_data(jax.random.fold_in(key, _SEEDS))
    return {"negatives_seed": jnp.broadcast_to(seed[None], (rows, *seed.shape))}


def loss_sums(
    vectors: Float[Array, "B P E"], decoder: tuple[Array, Array], batch: Batch, constants: Constants, config: ConfigDict
) -> Sums:
    """Returns the MLM loss of a training step, estimated. There is no accuracy, which needs all logits. `decoder` are
    table and bias of the MLM head."""
    train, key = config.train, jax.random.wrap_key_data(batch["negatives_seed"][0])
    negatives = draw_negatives(constants["cumulative_shares"], train.sampled_softmax, key)
    logits = sampled_logits(vectors, *decoder, batch["masked_labels"], *negatives, config.model.dtype)
    first = jnp.zeros_like(batch["masked_labels"])
    sums = cross_entropy_sums("mlm", logits, first, batch["masked_weights"], z_loss=train.z_loss > 0)
    return {name: value for name, value in sums.items() if name != "mlm_accuracy"}


def cumulative_shares(counts: Float[np.ndarray, " V"]) -> UInt32[np.ndarray, " V"]:
    """Returns the running sum of the shares of entries, as parts of 2³² − 1. Every entry counts as seen once more than
    it was: what has probability 0 would never be learned to be improbable."""
    shares = np.cumsum(counts + 1) / np.sum(counts + 1)
    return np.round(shares * _WHOLE).astype(np.uint32)


def draw_negatives(
    cumulative: UInt32[Array, " V"], count: int, key: Key[Array, ""]
) -> tuple[Int[Array, " N"], Float[Array, " N"]]:
    """Returns `count` entries and the logarithm of how often each is expected among them.

    The probabilities are cut into `count` equal parts, of which each gives one entry: it is expected as often as among
    independent draws, and an entry of high probability is drawn by no more or less chance than it has to.
    """
    width = _WHOLE // count
    inside = jax.random.randint(key, (count,), 0, width, jnp.uint32)
    drawn = jnp.searchsorted(cumulative, jnp.arange(count, dtype=jnp.uint32) * jnp.uint32(width) + inside, side="right")
    drawn = jnp.minimum(drawn, cumulative.size - 1)
    below = jnp.where(drawn > 0, jnp.take(cumulative, jnp.maximum(drawn - 1, 0)), 0)
    shares = (jnp.take(cumulative, drawn) - below).astype(jnp.float32)
    return drawn, jnp.log(shares / width)


def sampled_logits(
    vectors: Float[Array, "B P E"],
    table: Float[Array, "*C V E"],
    bias: Float[Array, " U"],
    labels: Int[Array, "B P"],
    negatives: Int[Array, " N"],
    log_counts: Float[Array, " N"],
    dtype: str,
) -> Float[Array, "B P M"]:
    """Returns logits in float32, M = 1 + N: of the label, then of the negatives, less the logarithm of their expected
    numbers. A negative that is the label has probability 0: it is counted already.

    Of a table in C copies, each multiplies its part of the rows (`sharding.gathered`).
    """
    entries = jnp.take(table, negatives, axis=-2)
    others = vocabulary_logits(vectors, entries, jnp.take(bias, negatives) - log_counts, dtype)
    others = jnp.where(labels[..., None] == negatives.reshape(1, 1, -1), -1e30, others)
    if table.ndim == 2:
        own = jnp.take(table, labels, axis=0)
    else:
        parts = labels.reshape(table.shape[0], -1)
        own = jax.vmap(lambda part, ids: jnp.take(part, ids, axis=0))(table, parts).reshape(vectors.shape)
    own = own.astype(dtype).astype(jnp.float32)  # rounded as the product rounds its operands
    of_label = jnp.sum(vectors.astype(jnp.float32) * own, axis=-1) + jnp.take(bias, labels)
    return jnp.concatenate([of_label[..., None], others], axis=-1)
