"""Vectors beside the tokens of a row: patches of a picture or a spectrogram, features of regions.

A row is [CLS] text [SEP] and then its vectors. Each is projected to the size of a word embedding and gets a position
and a type of its own; the trunk normalises the sum as it does that of a token (VisualBERT, Li et al. 2019; ViLT, Kim
et al. 2021). Initialisation:

    positions, type, mask            as embeddings: normal(0, initializer_range)
    projection                       normal(0, initializer_range / √inputs): its result is as large as a position
    output of the masked objective   normal(0, initializer_range)

A batch has, beside what all have (`data/batching/batches.py`):

    vectors        float32[B, L, F]   0 where the row has a token
    vector_grid    int32[B, L, 2]     row and column of a vector from 1; 0 where the row has a token
"""

from collections.abc import Mapping

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from bert_jax.data.media.source import VectorSource
from bert_jax.models.bert import Model, TrunkInputs
from bert_jax.models.config import BertConfig
from bert_jax.models.encoder import Given
from bert_jax.models.layers import GELU, Embedding, LayerNorm, Linear, along_last

NAME = "vectors"  # of the module among the heads of a model


class VectorEmbedding(nnx.Module):
    """A linear projection, a position and a type.

    `positions` of the source: "grid" has an entry for each place of the grid; "axes" one for each row and one for each
    column, which are added; "none" has no positions.
    """

    def __init__(self, config: BertConfig, source: VectorSource, *, rngs: nnx.Rngs):
        self.config, self.positions, self.columns = config, source.positions, source.columns
        size, stddev = config.embedding_size, config.initializer_range
        # By initializer_range alone, a patch of 768 numbers would drown its position.
        self.projection = Linear(source.size, size, stddev=stddev / source.size**0.5, rngs=rngs)
        if source.positions == "grid":
            self.position = Embedding(source.most, size, stddev=stddev, rngs=rngs)
        elif source.positions == "axes":
            self.row = Embedding(source.rows, size, stddev=stddev, rngs=rngs)
            self.column = Embedding(source.columns, size, stddev=stddev, rngs=rngs)
        self.type = Embedding(1, size, stddev=stddev, rngs=rngs)

    def __call__(
        self,
        vectors: Float[Array, "B L F"],
        grid: Int[Array, "B L 2"],
        *,
        masked: Bool[Array, "B L"] | None = None,
        mask: Float[Array, " E"] | None = None,
    ) -> Float[Array, "B L E"]:
        """Returns the sums of projection, position and type; where the row has a token, any. `mask` takes the place of
        the projection where `masked` is True."""
        x = self.projection(vectors, self.config.dtype).astype(jnp.float32)
        if masked is not None:
            assert mask is not None
            x = jnp.where(masked[:, :, None], along_last(mask, x), x)
        at = jnp.maximum(grid - 1, 0)
        if self.positions == "grid":
            x = x + self.position(at[:, :, 0] * self.columns + at[:, :, 1])
        elif self.positions == "axes":
            x = x + self.row(at[:, :, 0]) + self.column(at[:, :, 1])
        return x + along_last(self.type.embedding[...].reshape(-1), x)


class MaskedVectorHead(nnx.Module):
    """linear → GELU → LayerNorm → linear: the values of a vector that the model does not see. `mask` is what it sees
    there."""

    def __init__(self, config: BertConfig, source: VectorSource, *, rngs: nnx.Rngs):
        self.config, size, stddev = config, config.hidden_size, config.initializer_range
        self.mask = Embedding(1, config.embedding_size, stddev=stddev, rngs=rngs)
        self.transform = Linear(size, size, stddev=config.kernel_stddev(size), rngs=rngs)
        self.layer_norm = LayerNorm(size, eps=config.layer_norm_eps)
        self.output = Linear(size, source.size, stddev=stddev, rngs=rngs)

    def __call__(self, hidden: Float[Array, "B P D"]) -> Float[Array, "B P F"]:
        """Returns the predicted values, in float32."""
        dtype = self.config.dtype
        x = GELU[self.config.hidden_act](self.transform(hidden, dtype).astype(jnp.float32))
        return self.output(self.layer_norm(x, dtype), dtype).astype(jnp.float32)


def vector_embedding(config: BertConfig, source: VectorSource | None, *, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
    """Returns the module that embeds vectors, as the head `vectors`; {} for a model of text alone."""
    return {} if source is None else {NAME: VectorEmbedding(config, source, rngs=rngs)}


def trunk_inputs(
    model: Model,
    batch: Mapping[str, Array],
    *,
    masked: Bool[Array, "B L"] | None = None,
    mask: Float[Array, " E"] | None = None,
) -> TrunkInputs:
    """Returns the rows of a batch with the vectors that they have; those that a tool makes of a text have none.
    `masked` and `mask` as in `VectorEmbedding`."""
    inputs, embed = TrunkInputs.from_batch(batch), model.heads.get(NAME)
    if embed is None or "vectors" not in batch:
        return inputs
    given = embed(batch["vectors"], batch["vector_grid"], masked=masked, mask=mask)
    return inputs._replace(given=Given(given, is_vector(batch)))


def is_vector(batch: Mapping[str, Array]) -> Bool[Array, "B L"]:
    """Returns which positions of the rows have a vector in place of a token."""
    return batch["vector_grid"][:, :, 0] > 0
