"""Models that write a target for a source, token by token: what training and decoding know of them.

UniLM (Dong et al. 2019) is one BERT and a mask, without parameters of its own. A row is [CLS] source [SEP] target
[SEP], with token types 0 and 1. The source looks at the source; a token of the target looks at the source, at the
target before it and at itself. It is predicted from a [MASK] in its place, with what it may look at.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int, Key
from ml_collections import ConfigDict

from bert_jax.config import UserError
from bert_jax.data.tokenizers.tokenizer import Tokenizer
from bert_jax.models.attention import Angles, Cache, attention_mask, take_places
from bert_jax.models.bert import Model, TrunkInputs
from bert_jax.models.config import BertConfig
from bert_jax.models.decoder import Decoder
from bert_jax.models.encoder import rotary_angles
from bert_jax.models.heads import MaskedLMHead

# The beginnings of a decoder's names, and of those in a BERT that are the same.
DECODER_OF_BERT = {
    "heads/decoder/embeddings/": "embeddings/",
    "heads/decoder/layers/": "encoder/layers/",
    "heads/decoder/layer_norm/": "encoder/layer_norm/",
}


class Memory(NamedTuple):
    """What a writer keeps while it writes. B rows may share G sources, B / G rows in a row one: beams.

    The leaves of `source` have one entry per source; those of `written` one per row, but for scalars. So rows change
    places, inside a source, by `jax.tree.map(lambda x: x[order] if x.ndim else x, memory.written)`.
    """

    source: Any
    written: Any


class Writer(Protocol):
    """A model that writes. A source is a row of tokens, with sequence id 1 and from position 0 on; 0 is padding."""

    def read(self, source: TrunkInputs, room: int, copies: int = 1) -> Memory:
        """Returns the memory of sources for which up to `room` tokens, the last one included, are going to be written
        in `copies` rows each."""
        ...

    def next(self, memory: Memory, tokens: Int[Array, " B"]) -> tuple[Float[Array, "B V"], Memory]:
        """Returns the logits of every row's next token, in float32, and the memory that follows. `tokens` are those
        written last; in the first call [CLS], which begins a target."""
        ...

    def predict(
        self, source: TrunkInputs, targets: Int[Array, "B T"], *, key: Key[Array, ""] | None = None
    ) -> Float[Array, "B T D"]:
        """Returns for each token of the targets the hidden state that it is predicted from, given the source and the
        targets before it; `logits` of them are those of `next`. Targets end with [SEP]; what stands after it has no
        effect on what stands before. Without a `key` nothing is dropped out."""
        ...

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Returns the logits of predicted tokens, in float32."""
        ...

    def attention(self, source: TrunkInputs, targets: Int[Array, "B T"]) -> list[Float32[Array, "B H T R"]]:
        """Returns for each layer how much of its attention each predicted token gives to each token of the source. In
        UniLM the rest, of 1, goes to the target."""
        ...


@dataclass(frozen=True)
class WriterConfig:
    """The options of the group `seq2seq` (`options.py`), and the tokens of the vocabulary that a writer needs."""

    start_id: int  # [CLS], which begins a target
    mask_id: int
    model: str = "unilm"
    encoder: str = "warm"
    decoder: str = "warm"
    share: bool = False
    mask_rate: float = 0.0

    def __post_init__(self):
        if self.share and self.encoder != self.decoder:
            raise UserError(
                f"seq2seq.share=True: encoder and decoder have the same parameters, but seq2seq.encoder is "
                f"{self.encoder} and seq2seq.decoder {self.decoder}; set both to the same"
            )

    @property
    def new(self) -> str:
        """A pattern of names that a warm start may leave as initialised, since a BERT may lack them."""
        return "|".join(filter(None, ("^heads/(decoder|mlm)/|^pooler/", self.renewed)))

    @property
    def renewed(self) -> str:
        """A pattern of names that a warm start leaves as initialised, whatever the checkpoint has; "" for none."""
        parts = []
        if self.model == "encoder_decoder" and self.encoder == "random":
            parts.append("^(embeddings|encoder|pooler)/")
        if self.model == "encoder_decoder" and self.decoder == "random":
            parts.append("^heads/(decoder|mlm)/")
        return "|".join(parts)

    @property
    def copied(self) -> dict[str, str]:
        """The beginnings of the decoder's names, and of those in a BERT whose values they take in a warm start."""
        is_copy = self.model == "encoder_decoder" and not self.share and self.decoder == "warm"
        return DECODER_OF_BERT if is_copy else {}

    @classmethod
    def from_options(cls, seq2seq: ConfigDict, tokenizer: Tokenizer) -> "WriterConfig":
        names = ("model", "encoder", "decoder", "share", "mask_rate")
        return cls(tokenizer.cls_id, tokenizer.mask_id, **{name: seq2seq[name] for name in names})

    def check_room(self, config: BertConfig, source_length: int, target_length: int, option: str) -> None:
        """Raises UserError if the model has too few positions for a source of data.sequence_length tokens and a target
        of so many as `option` says."""
        row, longest = f"{option} {target_length}", target_length
        if self.model == "unilm":
            row, longest = f"data.sequence_length {source_length} and {row}", source_length + target_length
        if longest > config.max_position_embeddings:
            raise UserError(
                f"{row} make rows of {longest} tokens, over model.max_position_embeddings "
                f"{config.max_position_embeddings}; lower {option}"
            )

    def heads(self, config: BertConfig, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        """Returns the modules beside the trunk, as heads of a `Model`."""
        decoder = {} if self.model == "unilm" else {"decoder": Decoder(config, rngs=rngs, shares=self.share)}
        return {**decoder, "mlm": MaskedLMHead(config, rngs=rngs)}

    def writer(self, model: Model) -> Writer:
        """Returns the writer whose parameters are those of `model`."""
        return UniLM(model, self.mask_id) if self.model == "unilm" else EncoderDecoder(model, self.start_id)


class UniLM:
    """A trunk with its MLM head as a `Writer`."""

    def __init__(self, model: Model, mask_id: int):
        self._model, self._mask_id = model, mask_id
        self._config: BertConfig = model.trunk.config

    def read(self, source: TrunkInputs, room: int, copies: int = 1) -> Memory:
        trunk, config = self._model.trunk, self._config
        assert source.input_ids is not None
        x = self._embedded(source.input_ids, source.token_type_ids, source.position_ids)
        mask, angles = attention_mask(source.sequence_ids, config.causal), rotary_angles(config, source.position_ids)
        before = []
        for layer in trunk.encoder.unstacked():
            before.append(layer.before(x, angles))
            x, _ = layer(x, mask, angles=angles)
        rows = len(source.input_ids) * copies
        # Two tokens more: the first call stores [CLS], which nothing looks at, and every call stores a [MASK] for as
        # long as it lasts.
        empty = Cache.empty(config, rows, room + 2)
        return Memory((before, source.sequence_ids > 0), [empty] * config.num_hidden_layers)

    def next(self, memory: Memory, tokens: Int[Array, " B"]) -> tuple[Float[Array, "B V"], Memory]:
        (before, real), caches = memory
        config, count, copies = self._config, caches[0].length, len(tokens) // len(real)
        lengths = jnp.repeat(jnp.sum(real, axis=1), copies, total_repeat_length=len(tokens))
        positions = self._positions(lengths[:, None] + (count - 1) + jnp.arange(2)[None])
        ids = jnp.stack([tokens, jnp.full_like(tokens, self._mask_id)], axis=1)
        x, angles = self._embedded(ids, self._target_types(ids), positions), rotary_angles(config, positions)
        shown = jnp.repeat(real, copies, axis=0, total_repeat_length=len(tokens))
        room = jnp.broadcast_to(jnp.arange(caches[0].size)[None] > 0, (len(tokens), caches[0].size))
        mask = jnp.concatenate([shown, room], axis=1)[:, None, None]
        mask = jnp.broadcast_to(mask, (len(tokens), 1, 2, mask.shape[-1]))
        extended = []
        for layer, cache, source in zip(self._model.trunk.encoder.unstacked(), caches, before, strict=True):
            x, cache = layer(x, mask, angles=angles, cache=cache, before=source)
            assert cache is not None
            extended.append(cache.without_last())
        if config.norm == "pre":
            x = self._model.trunk.encoder.layer_norm(x, config.dtype)
        return self.logits(x[:, 1:])[:, 0], Memory(memory.source, extended)

    def predict(
        self, source: TrunkInputs, targets: Int[Array, "B T"], *, key: Key[Array, ""] | None = None
    ) -> Float[Array, "B T D"]:
        """As `Writer.predict`. A row holds the source, the targets, and for each of these a [MASK] at the same position
        (Bao et al. 2020, UniLM v2: pseudo-masks), so that all are learned from at once."""
        inputs, places = self._pseudo_masked(source, targets)
        return self._model.trunk.encode(inputs, key=key, places=places).hidden

    def attention(self, source: TrunkInputs, targets: Int[Array, "B T"]) -> list[Float32[Array, "B H T R"]]:
        (inputs, places), config = self._pseudo_masked(source, targets), self._config
        assert inputs.mask is not None
        states = self._model.trunk.encode(inputs, all_layers=True).layers
        assert states is not None
        states = [self._embedded(inputs.input_ids, inputs.token_type_ids, inputs.position_ids), *states[:-1]]
        mask = jnp.take_along_axis(inputs.mask, places[:, None, :, None], axis=2)
        angles, found = rotary_angles(config, inputs.position_ids), []
        of_both = None if angles is None else Angles(take_places(angles, places), angles)
        for layer, x in zip(self._model.trunk.encoder.unstacked(), states, strict=True):
            x = layer.attention_layer_norm(x, config.dtype) if config.norm == "pre" else x
            weights = layer.attention.weights(take_places(x, places), x, mask, of_both)
            found.append(weights[..., : source.sequence_ids.shape[1]])
        return found

    def _pseudo_masked(self, source: TrunkInputs, targets: Int[Array, "B T"]) -> tuple[TrunkInputs, Int[Array, "B T"]]:
        """Returns rows of source, targets and [MASK]s, and the places of these."""
        room, count = source.sequence_ids.shape[1], targets.shape[1]
        places = jnp.arange(count)
        earlier, own = places[None] < places[:, None], places[None] == places[:, None]
        nothing = jnp.zeros_like(own)
        of_targets = jnp.block([[earlier | own, nothing], [earlier, own]])
        ids = jnp.concatenate([targets, jnp.full_like(targets, self._mask_id)], axis=1)
        masks = jnp.broadcast_to(room + count + places[None], targets.shape)
        return self._inputs(source, ids, of_targets, jnp.tile(places, 2)), masks

    def predict_masked(
        self,
        source: TrunkInputs,
        targets: Int[Array, "B T"],
        masked: Bool[Array, "B T"],
        *,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B T D"]:
        """Returns hidden states of the targets, of which those that are `masked` are shown as [MASK] (Dong et al.
        2019). A masked token sees that others before it are masked too: only these are to be learned from."""
        room, places = source.sequence_ids.shape[1], jnp.arange(targets.shape[1])
        ids = jnp.where(masked, self._mask_id, targets)
        at = jnp.broadcast_to(room + places[None], targets.shape)
        inputs = self._inputs(source, ids, places[None] <= places[:, None], places)
        return self._model.trunk.encode(inputs, key=key, places=at).hidden

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        return self._model.heads["mlm"](hidden, self._model.trunk.embeddings.word.embedding[...])

    def _inputs(self, source: TrunkInputs, ids, of_targets, offsets) -> TrunkInputs:
        """Returns rows of a source and of `ids`, which look at each other as `of_targets` says and whose positions are
        so many after the source."""
        assert source.input_ids is not None
        real = source.sequence_ids > 0
        (rows, room), count = real.shape, ids.shape[1]
        sources = attention_mask(source.sequence_ids, self._config.causal)[:, 0]
        hidden = jnp.zeros((rows, room, count), bool)
        above = jnp.concatenate([sources, hidden], axis=2)
        shown = jnp.broadcast_to(real[:, None], (rows, count, room))
        below = jnp.concatenate([shown, jnp.broadcast_to(of_targets[None], (rows, count, count))], axis=2)
        positions = self._positions(jnp.sum(real, axis=1, keepdims=True) + offsets[None])
        return TrunkInputs(
            jnp.concatenate([source.input_ids, ids], axis=1),
            jnp.concatenate([source.token_type_ids, self._target_types(ids)], axis=1),
            jnp.concatenate([source.position_ids, positions], axis=1),
            jnp.concatenate([source.sequence_ids, jnp.ones_like(ids)], axis=1),
            mask=jnp.concatenate([above, below], axis=1)[:, None],
        )

    def _embedded(self, ids, types, positions):
        embeddings = self._model.trunk.embeddings
        return embeddings(embeddings.word(ids), types, positions)

    def _target_types(self, ids: Int[Array, "B L"]) -> Int[Array, "B L"]:
        return jnp.full_like(ids, min(1, self._config.type_vocab_size - 1))

    def _positions(self, positions: Int[Array, "B L"]) -> Int[Array, "B L"]:
        """Keeps padding and the token before the first inside the table of positions."""
        return jnp.clip(positions, 0, self._config.max_position_embeddings - 1)


class EncoderDecoder:
    """A trunk that reads, and a decoder with the MLM head that writes, as a `Writer`."""

    def __init__(self, model: Model, start_id: int):
        self._model, self._start_id = model, start_id

    def read(self, source: TrunkInputs, room: int, copies: int = 1) -> Memory:
        config, real = self._model.trunk.config, source.sequence_ids > 0
        sources = self._decoder.sources(self._model.trunk.encode(source).hidden)
        empty = Cache.empty(config, len(real) * copies, room)
        return Memory((sources, real), [empty] * config.num_hidden_layers)

    def next(self, memory: Memory, tokens: Int[Array, " B"]) -> tuple[Float[Array, "B V"], Memory]:
        (sources, real), caches = memory
        hidden, caches = self._decoder.step(self._model.trunk, tokens, sources, real, caches)
        return self.logits(hidden)[:, 0], Memory(memory.source, caches)

    def predict(
        self, source: TrunkInputs, targets: Int[Array, "B T"], *, key: Key[Array, ""] | None = None
    ) -> Float[Array, "B T D"]:
        keys = (None, None) if key is None else jax.random.split(key)
        hidden = self._model.trunk.encode(source, key=keys[0]).hidden
        return self._decoder(self._model.trunk, self._before(targets), hidden, source.sequence_ids > 0, key=keys[1])

    def attention(self, source: TrunkInputs, targets: Int[Array, "B T"]) -> list[Float32[Array, "B H T R"]]:
        hidden = self._model.trunk.encode(source).hidden
        return self._decoder.attention(self._model.trunk, self._before(targets), hidden, source.sequence_ids > 0)

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        embeddings = self._decoder.own_or(self._model.trunk)[0]
        return self._model.heads["mlm"](hidden, embeddings.word.embedding[...])

    def _before(self, targets: Int[Array, "B T"]) -> Int[Array, "B T"]:
        """Returns the token before each token of the targets."""
        return jnp.concatenate([jnp.full_like(targets[:, :1], self._start_id), targets[:, :-1]], axis=1)

    @property
    def _decoder(self) -> Decoder:
        return self._model.heads["decoder"]
