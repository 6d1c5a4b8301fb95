"""The losses of pretraining, from the logits of masked tokens and of pairs."""

import jax.numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from bert_jax.config import UserError
from bert_jax.entries import entries
from bert_jax.tasks import sampled_softmax
from bert_jax.tasks.losses import Logits, cross_entropy_sums
from bert_jax.tasks.task import Batch, Constants, Sums

Outputs = dict[str, Array]  # of `Pretraining.outputs`


def sums(
    config: ConfigDict, vocab_size: int, outputs: Outputs, batch: Batch, constants: Constants, *, training: bool
) -> Sums:
    """Returns the losses of both objectives, their accuracies, and in an evaluation the figures of each corpus and how
    often each of `vocab_size` tokens was masked."""
    if "vectors" in outputs:
        decoder = outputs["table"], outputs["bias"]
        found = sampled_softmax.loss_sums(outputs["vectors"], decoder, batch, constants, config)
    else:
        labels, with_z = (batch["masked_labels"], batch["masked_weights"]), training and config.train.z_loss > 0
        found = cross_entropy_sums("mlm", outputs["mlm_logits"], *labels, z_loss=with_z)
        found |= {} if training else _sums_by_corpus(config, outputs["mlm_logits"], batch)
    pairs = outputs["nsp_logits"], batch["next_sentence_labels"], batch["next_sentence_weights"]
    found |= cross_entropy_sums("nsp", *pairs)
    tokens = jnp.sum(batch["sequence_ids"] > 0).astype(jnp.float32)
    found["real_tokens"] = (tokens, jnp.float32(batch["sequence_ids"].size))
    if not training:  # also counts the labels, for the metrics of a guesser without context
        counts = jnp.zeros(vocab_size).at[batch["masked_labels"]].add(batch["masked_weights"])
        found["label_counts"] = (counts, jnp.sum(batch["masked_weights"]))
    return found


def soft(config: ConfigDict, outputs: Outputs, batch: Batch) -> dict[str, list[Logits]]:
    """Returns the logits of each objective with the weights of their labels."""
    if "mlm_logits" not in outputs:
        raise UserError("distillation.soft needs every logit: set train.sampled_softmax to 0")
    found = {"mlm_loss": [Logits(outputs["mlm_logits"], batch["masked_weights"])]}
    if config.data.pairing != "none":
        found["nsp_loss"] = [Logits(outputs["nsp_logits"], batch["next_sentence_weights"])]
    return found


def _sums_by_corpus(config: ConfigDict, logits: Float[Array, "B P V"], batch: Batch) -> Sums:
    found: Sums = {}
    for number, corpus in enumerate(entries(config, "corpora")):
        own = (batch["corpus_ids"] == number).astype(jnp.float32)[:, None]
        sums = cross_entropy_sums("mlm", logits, batch["masked_labels"], batch["masked_weights"] * own)
        found |= {f"{corpus}/{name}": value for name, value in sums.items()}
    return found
