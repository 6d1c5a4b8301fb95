"""What a head reads of the trunk: some of its layers, and a bidirectional LSTM over them (Devlin et al. 2018, 5.3).

Initialisation:

    weights of a sum of layers   0 before the softmax: all layers count the same
    LSTM, input kernels          uniform in ±√(6 / (inputs + outputs)) (Glorot and Bengio 2010)
    LSTM, recurrent kernels      orthogonal rows (Saxe et al. 2014)
    LSTM, biases                 1 for the forget gate (Jozefowicz et al. 2015), else 0
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key
from ml_collections import ConfigDict

from bert_jax.config import Json, UserError
from bert_jax.models.bert import Bert, Model, TrunkInputs
from bert_jax.models.config import BertConfig
from bert_jax.models.heads import pool_sequences
from bert_jax.models.layers import accumulator, along_last, dot, dropout, dropout_seeds
from bert_jax.models.patches import trunk_inputs
from bert_jax.sharding import by_rows


def token_vectors(model: Model, batch: Mapping[str, Array], key: Key[Array, ""] | None) -> Float[Array, "B L F"]:
    """Returns what a head reads of every token: the last layer, or what the options head.* choose."""
    inputs, features = trunk_inputs(model, batch), model.heads.get("features")
    return model.trunk.encode(inputs, key=key).hidden if features is None else features.tokens(model.trunk, inputs, key)


def sequence_vectors(model: Model, batch: Mapping[str, Array], key: Key[Array, ""] | None) -> Float[Array, "G P F"]:
    """Returns one vector for each part of an item, or for each of the items that share a row (P is W or S): by
    `model.pooling` the pooler's output, or the mean or largest values of the tokens. Of the features that head.* choose
    "cls" is another one (`Features.sequences`)."""
    inputs, first_tokens, trunk = trunk_inputs(model, batch), batch["first_tokens"], model.trunk
    is_shared, pooling = first_tokens.shape[1] > 1, trunk.config.pooling
    if (features := model.heads.get("features")) is not None:
        tokens = features.tokens(trunk, inputs, key)
        vectors = features.sequences(tokens, inputs.sequence_ids, first_tokens.shape[1], pooling)
    elif pooling == "cls":
        places = first_tokens if is_shared else jnp.zeros_like(inputs.sequence_ids[:, :1])
        vectors = trunk.pooled(trunk.encode(inputs, key=key, places=places).hidden)
    else:
        hidden = trunk.encode(inputs, key=key).hidden
        vectors = pool_sequences(hidden, inputs.sequence_ids, first_tokens.shape[1], pooling)
    return vectors if is_shared else vectors.reshape(*batch["part_weights"].shape, -1)


@dataclass(frozen=True)
class FeatureConfig:
    """The options of the group `head` (`options.py`)."""

    hidden_size: int  # of the trunk
    layers: str = "last"
    lstm_layers: int = 0
    lstm_size: int = 0  # units per direction; 0 if there is no LSTM

    @classmethod
    def from_options(cls, head: ConfigDict, hidden_size: int) -> "FeatureConfig":
        """Returns the options with the size that they leave open."""
        units = (head.lstm_size or hidden_size) if head.lstm_layers else 0
        return cls(hidden_size, head.layers, head.lstm_layers, units)

    @property
    def is_default(self) -> bool:
        """Whether the features are the hidden states of the last layer, for which no module is needed."""
        return self.layers == "last" and not self.lstm_layers

    @property
    def size(self) -> int:
        """The number of features of a token."""
        return 2 * self.lstm_size if self.lstm_layers else self.size_of_layers

    @property
    def size_of_layers(self) -> int:
        """The number of features of a token that an LSTM reads."""
        return 4 * self.hidden_size if self.layers == "last4_concat" else self.hidden_size

    def check(self, num_layers: int, task: str, reads_features: bool) -> None:
        """Raises UserError if the trunk has too few layers, or if the task's head cannot follow the options."""
        if not self.is_default and not reads_features:
            raise UserError(f"head.layers, head.lstm_layers: task={task} reads the last layer only; leave them out")
        least = 4 if self.layers.startswith("last4") else 2 if self.layers == "second_to_last" else 1
        if num_layers < least:
            raise UserError(f"head.layers={self.layers} needs {least} layers; the model has {num_layers}")

    def description(self) -> Json:
        """Returns what a checkpoint keeps; nothing of the defaults, which older ones have."""
        names = ("layers", "lstm_layers", "lstm_size")
        return {} if self.is_default else {"features": {name: getattr(self, name) for name in names}}

    def check_known(self, description: Mapping[str, Any]) -> None:
        """Raises UserError if the head of the checkpoint with this description reads other features."""
        known = description.get("features", {})
        for name in ("layers", "lstm_layers", "lstm_size"):
            own, theirs = getattr(self, name), known.get(name, getattr(FeatureConfig, name))
            if own != theirs:
                raise UserError(
                    f"head.{name} is {own}, the checkpoint's head was trained with {theirs}: set "
                    f"--config.head.{name}={theirs}, or start a head of its own with --config.train.new_head=True"
                )

    def training_flops(self, tokens: float) -> float:
        """Returns the floating-point operations of the LSTM's forward and backward passes over so many tokens."""
        units, inputs, products = self.lstm_size, self.size_of_layers, 0
        for _ in range(self.lstm_layers):
            products += 2 * 4 * units * (inputs + units)
            inputs = 2 * units
        return 3 * 2 * tokens * float(products)


class Features(nnx.Module):
    """The features of tokens or of sequences that a head reads in place of the hidden states of the last layer."""

    def __init__(self, config: BertConfig, features: FeatureConfig, *, rngs: nnx.Rngs):
        self.config, self.features = config, features
        depth = {"last4_weighted": 4, "all_weighted": config.num_hidden_layers}.get(features.layers)
        if depth:
            self.layer_weights = nnx.Param(jnp.zeros((depth,)))
        units, inputs = features.lstm_size, features.size_of_layers
        for number in range(features.lstm_layers):
            setattr(self, f"lstm_{number}", BiLSTM(inputs, units, rngs=rngs))
            inputs = 2 * units

    def tokens(self, trunk: Bert, inputs: TrunkInputs, key: Key[Array, ""] | None) -> Float[Array, "B L F"]:
        """Returns the features of every token. Without a `key` nothing is dropped out."""
        trunk_key, own_key = (None, None) if key is None else jax.random.split(key)
        x = self._of_layers(trunk, inputs, trunk_key)
        seeds = dropout_seeds(own_key, max(1, self.features.lstm_layers))
        for number in range(self.features.lstm_layers):
            if number and seeds is not None:  # between two layers; the head has a dropout of its own
                x = dropout(x, self.config.hidden_dropout, seeds[number])
            x = getattr(self, f"lstm_{number}")(x, inputs.sequence_ids, self.config.dtype)
        return x

    def sequences(
        self, tokens: Float[Array, "B L F"], sequence_ids: Int[Array, "B L"], count: int, pooling: str
    ) -> Float[Array, "B S F"]:
        """Returns one vector for each of a row's `count` sequences, in float32; of those that are not there, any.

        The pooler of the trunk takes no part. "cls" is the features of the first token; of an LSTM its two final
        states, the forward one at the last token and the backward one at the first.
        """
        if pooling != "cls":
            return pool_sequences(tokens, sequence_ids, count, pooling)
        is_own = sequence_ids[:, :, None] == jnp.arange(1, count + 1)[None, None]
        first = jnp.argmax(is_own, axis=1)[:, :, None]
        of_first = jnp.take_along_axis(tokens, first, axis=1).astype(jnp.float32)
        if not self.features.lstm_layers:
            return of_first
        last = first + jnp.sum(is_own, axis=1)[:, :, None] - 1
        of_last = jnp.take_along_axis(tokens, last, axis=1).astype(jnp.float32)
        units = tokens.shape[-1] // 2
        return jnp.concatenate([of_last[..., :units], of_first[..., units:]], axis=-1)

    def _of_layers(self, trunk: Bert, inputs: TrunkInputs, key: Key[Array, ""] | None) -> Float[Array, "B L F"]:
        layers = self.features.layers
        if layers == "last":
            return trunk.encode(inputs, key=key).hidden
        if layers == "embeddings":
            assert inputs.input_ids is not None
            words = trunk.embeddings.word(inputs.input_ids)
            seeds = dropout_seeds(key, 1)
            seed = None if seeds is None else seeds[0]
            ids = inputs.token_type_ids, inputs.position_ids
            return trunk.embeddings(words, *ids, seed=seed, given=inputs.given)
        encoded = trunk.encode(inputs, key=key, all_layers=True)
        assert encoded.layers is not None
        states = [*encoded.layers[:-1], encoded.hidden]  # the last one as heads see it, also of a pre-norm model
        if layers == "second_to_last":
            return states[-2]
        if layers == "last4_concat":
            return jnp.concatenate(states[-4:], axis=-1)
        # Peters et al. (2018), equation 1, without their factor: what follows is linear
        weights = jax.nn.softmax(self.layer_weights[...])
        chosen = jnp.stack(states[-len(weights) :], axis=-1).astype(jnp.float32)
        return jnp.sum(chosen * along_last(weights, chosen), axis=-1).astype(self.config.dtype)


def feature_head(config: BertConfig, features: FeatureConfig, *, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
    """Returns the module that computes the features, as the head `features`; {} for the defaults."""
    return {} if features.is_default else {"features": Features(config, features, rngs=rngs)}


class BiLSTM(nnx.Module):
    """Two LSTMs over the tokens of each sequence, one from left to right and one from right to left."""

    def __init__(self, inputs: int, units: int, *, rngs: nnx.Rngs):
        self.forward = LSTM(inputs, units, rngs=rngs)
        self.backward = LSTM(inputs, units, rngs=rngs)

    def __call__(self, x: Float[Array, "B L I"], sequence_ids: Int[Array, "B L"], dtype: str) -> Float[Array, "B L O"]:
        """Returns the states of both, the forward one first, for every token."""
        changes = sequence_ids[:, 1:] != sequence_ids[:, :-1]
        border = ((0, 0), (1, 0)), ((0, 0), (0, 1))
        begins, ends = (jnp.pad(changes, where, constant_values=True) for where in border)
        there = self.forward(x, begins, dtype)
        back = self.backward(x[:, ::-1], ends[:, ::-1], dtype)[:, ::-1]
        return jnp.concatenate([there, back], axis=-1)


class LSTM(nnx.Module):
    """Long short-term memory (Hochreiter and Schmidhuber 1997; Gers et al. 2000). The gates stand in the order input,
    forget, cell, output, as in PyTorch, whose two biases are one here."""

    def __init__(self, inputs: int, units: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(jax.nn.initializers.glorot_uniform()(rngs.params(), (inputs, 4 * units)))
        self.recurrent_kernel = nnx.Param(jax.nn.initializers.orthogonal()(rngs.params(), (units, 4 * units)))
        self.bias = nnx.Param(jnp.zeros((4, units)).at[1].set(1.0).reshape(-1))

    def __call__(self, x: Float[Array, "B L I"], begins: Bool[Array, "B L"], dtype: str) -> Float[Array, "B L U"]:
        """Returns the state after each token, from left to right; where `begins` is True it starts from zero, so that
        nothing passes from one sequence of a row to the next."""
        gates = dot(x, self.kernel[...], dtype, accumulator(dtype)).astype(jnp.float32)
        gates = gates + along_last(self.bias[...], gates)
        recurrent, units = self.recurrent_kernel[...], self.recurrent_kernel.shape[0]

        def step(carry, of_token):
            gates, begins = of_token
            hidden, cell = (jnp.where(begins[:, None], 0.0, state) for state in carry)
            gates = gates + dot(hidden, recurrent, dtype, accumulator(dtype)).astype(jnp.float32)
            write, keep, new, read = jnp.split(gates, 4, axis=-1)
            cell = jax.nn.sigmoid(keep) * cell + jax.nn.sigmoid(write) * jnp.tanh(new)
            hidden = jax.nn.sigmoid(read) * jnp.tanh(cell)
            return (hidden, cell), hidden

        start = by_rows(jnp.zeros((x.shape[0], units)))
        _, hidden = jax.lax.scan(step, (start, start), (gates.swapaxes(0, 1), begins.swapaxes(0, 1)))
        return hidden.swapaxes(0, 1).astype(dtype)
