"""Heads on the trunk. They give logits in float32; losses live in `tasks/`."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from bert_jax.models.config import BertConfig
from bert_jax.models.encoder import Bert
from bert_jax.models.layers import GELU, LayerNorm, Linear, along_last, dot


class MaskedLMHead(nnx.Module):
    """linear → GELU → LayerNorm → product with the word embeddings, which are passed in, not held → + bias."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.transform = Linear(config.hidden_size, config.embedding_size, stddev=config.initializer_range, rngs=rngs)
        self.layer_norm = LayerNorm(config.embedding_size, eps=config.layer_norm_eps)
        self.bias = nnx.Param(jnp.zeros((config.vocab_size,)))

    def __call__(self, hidden: Float[Array, "B P D"], table: Float[Array, "V E"]) -> Float[Array, "B P V"]:
        dtype = self.config.dtype
        x = GELU[self.config.hidden_act](self.transform(hidden, dtype).astype(jnp.float32))
        logits = dot(self.layer_norm(x, dtype), table.T, dtype, out_dtype="float32")
        return logits + along_last(self.bias[...], logits)


class BertForPretraining(Bert):
    """The trunk with the heads of both pretraining tasks."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.mlm = MaskedLMHead(config, rngs=rngs)
        self.nsp = Linear(config.hidden_size, 2, stddev=config.initializer_range, rngs=rngs)

    def mlm_logits(self, hidden: Float[Array, "B L D"], positions: Int[Array, "B P"]) -> Float[Array, "B P V"]:
        """Logits at `positions` only: there is never an array of B × L × V."""
        gathered = jnp.take_along_axis(hidden, positions[:, :, None], axis=1)
        return self.mlm(gathered, self.embeddings.word.embedding[...])

    def nsp_logits(self, hidden: Float[Array, "B L D"]) -> Float[Array, "B 2"]:
        return self.nsp(self.pool(hidden), "float32")
