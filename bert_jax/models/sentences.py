"""Scores of the sentences of a document: a head on one [CLS] per sentence (Liu and Lapata 2019, BERTSum)."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from bert_jax.models.attention import attention_mask
from bert_jax.models.config import BertConfig
from bert_jax.models.encoder import Layer, sinusoids, unstack
from bert_jax.models.heads import Classifier
from bert_jax.models.layers import LayerNorm, dropout_seeds


class SentenceHead(nnx.Module):
    """sinusoidal position of the sentence in its document → transformer layers over the sentences of a row → a number
    for each sentence.

    The layers have the shape of the trunk's. Without layers it is BERTSum's linear classifier, which no position is
    added for.
    """

    def __init__(self, config: BertConfig, layers: int, *, rngs: nnx.Rngs):
        # Positions of sentences are added, whatever the trunk does for tokens, and a sentence sees all others.
        self.config = dataclasses.replace(
            config, num_hidden_layers=max(1, layers), position_embedding="learned", causal=False
        )
        self.depth = layers
        if layers:
            self.layers = Layer(self.config, rngs=rngs, stack=(layers,))
        if layers and config.norm == "pre":
            self.layer_norm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps, use_bias=config.use_bias)
        self.classifier = Classifier(config, 1, rngs=rngs)

    def __call__(
        self,
        vectors: Float[Array, "B P D"],
        numbers: Int[Array, "B P"],
        sequence_ids: Int[Array, "B P"],
        *,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B P"]:
        """Returns logits in float32. `numbers` are those of the sentences in their documents, from 0; sentences of
        other sequences of a row are not seen. Without a `key` nothing is dropped out."""
        layers_key, own_key = (None, None) if key is None else jax.random.split(key)
        if self.depth:
            table = sinusoids(self.config.max_position_embeddings, self.config.hidden_size)
            positions = jnp.take(table, numbers, axis=0, mode="clip")
            x = (vectors.astype(jnp.float32) + positions).astype(self.config.dtype)
            mask, seeds = attention_mask(sequence_ids, False), dropout_seeds(layers_key, self.depth, Layer.DROPOUTS)
            for i, layer in enumerate(unstack(self.layers, self.depth)):
                x, _ = layer(x, mask, None if seeds is None else seeds[i])
            vectors = self.layer_norm(x, self.config.dtype) if self.config.norm == "pre" else x
        return self.classifier.logits(vectors, key=own_key)[:, :, 0]


def sentence_places(numbers: Int[Array, "B L"]) -> tuple[Int[Array, "B P"], Int[Array, "B L"]]:
    """Returns where the sentences of each row begin, and for each such token which of these places is its own.

    `numbers` is over 0 where a sentence begins. P is a third of L, since a sentence has at least three tokens, [CLS]
    and [SEP] among them. Places past the last sentence are 0.
    """
    begins = numbers > 0
    rank = jnp.cumsum(begins, axis=1) - 1
    count = max(1, numbers.shape[1] // 3)
    is_place = begins[:, :, None] & (rank[:, :, None] == jnp.arange(count)[None, None])
    places = jnp.sum(jnp.where(is_place, jnp.arange(numbers.shape[1])[None, :, None], 0), axis=1)
    return places, jnp.clip(rank, 0, count - 1)
