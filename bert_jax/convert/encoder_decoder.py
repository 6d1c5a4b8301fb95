"""Models that write, as Transformers has them: an EncoderDecoderModel of two BERTs, the second with cross-attention.

A decoder that shares its parameters with the encoder (BERTShare) is written as one that has the same values. UniLM is a
BERT that reads by another mask, which Transformers lacks: only the BERT can be written. What is read has an encoder and
a decoder of one shape, each with parameters of its own.
"""

from dataclasses import replace
from pathlib import Path

from bert_jax.config import Json, UserError
from bert_jax.convert.mapping import Arrays, filled
from bert_jax.convert.names import ARCHITECTURES, CONFIG_FIELDS, TRUNK, Name, huggingface_names
from bert_jax.data.text.json_files import JsonObject
from bert_jax.data.tokenizers.tokenizer import Tokenizer
from bert_jax.models.writer import DECODER_OF_BERT
from bert_jax.training.parameters import with_copies

NAME = "EncoderDecoderModel"
TASK = ARCHITECTURES[NAME][0]
KIND = "encoder-decoder"  # their model_type
_OF_BOTH = set(CONFIG_FIELDS.values()) - {"hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range"}
_OF_BOTH |= {"model_type", "hidden_act", "layer_norm_eps", "position_embedding_type"}
_LAYERS, _DECODER = "encoder/layers/", "heads/decoder/"


def names() -> list[Name]:
    """Returns the names of the encoder, and those of the decoder, which has a BERT's a second time and in each layer
    cross-attention."""
    found = []
    for name in huggingface_names():
        if name.part in (*TRUNK, "pooler"):
            found.append(replace(name, theirs="encoder." + name.theirs))
        if name.part in TRUNK:
            ours = _DECODER + name.ours.removeprefix("encoder/")
            found.append(replace(name, ours=ours, theirs="decoder.bert." + name.theirs))
        if name.part == "mlm":
            found.append(replace(name, theirs="decoder." + name.theirs))
        if name.ours.startswith(_LAYERS + "attention"):
            ours = name.ours.replace(_LAYERS, _DECODER + "cross/").replace("attention_layer_norm", "layer_norm")
            theirs = "decoder.bert." + name.theirs.replace(".attention.", ".crossattention.")
            found.append(replace(name, ours=ours, theirs=theirs))
    return found


def encoder(settings: JsonObject) -> JsonObject:
    """Returns the config of the encoder, with the architecture of both. Raises UserError unless the decoder is a BERT
    like it, with cross-attention and parameters of its own."""
    path = settings.origin
    if settings.get("tie_encoder_decoder", bool, default=False):
        raise UserError(f"{path}: tie_encoder_decoder is True; only a decoder with parameters of its own can be read")
    one, other = (filled(settings.object(name)) for name in ("encoder", "decoder"))
    for name in sorted(_OF_BOTH):
        ours, theirs = one.content.get(name), other.content.get(name)
        if ours != theirs:
            raise UserError(
                f"{path}: {name} is {theirs!r} in the decoder, {ours!r} in the encoder; it must be the same"
            )
    if not other.get("add_cross_attention", bool, default=False):
        raise UserError(f"{path}: the decoder's add_cross_attention is not true; it could not see the source")
    return replace(one, content=one.content | {"architectures": [NAME]})


def check_tokens(settings: JsonObject, tokenizer: Tokenizer, origin: Path) -> None:
    """Raises UserError if a target begins or ends with another token than here."""
    for name, token in _tokens(tokenizer).items():
        if (theirs := settings.get(name, int, default=token)) != token:
            raise UserError(f"{origin}: {name} is {theirs}; only {token}, as this project writes, can be read")


def whole(parameters: Arrays) -> tuple[Arrays, list[str]]:
    """Returns the parameters with those that a decoder shares under names of its own, and what to report of them."""
    found, copied = with_copies(parameters, DECODER_OF_BERT)
    notes = [f"the decoder shares parameters, which are written twice: {n} {where}" for where, n in copied.items()]
    return found, notes


def settings(bert: Json, tokenizer: Tokenizer) -> Json:
    """Returns the config of an encoder and a decoder which both have the config of a BERT."""
    of_both = {name: bert[name] for name in ("architectures", "dtype")}
    one = {name: value for name, value in bert.items() if name not in of_both} | {"is_decoder": False}
    other = one | {"is_decoder": True, "add_cross_attention": True}
    kind = {"model_type": "encoder-decoder", "is_encoder_decoder": True}
    both = {"encoder": dict(sorted(one.items())), "decoder": dict(sorted(other.items()))}
    return of_both | kind | both | _tokens(tokenizer)


def generation_settings(tokenizer: Tokenizer) -> Json:
    """Returns what generation_config.json says: where a target begins and ends, and what is never written."""
    never = sorted((tokenizer.pad_id, tokenizer.cls_id, tokenizer.mask_id))
    return _tokens(tokenizer) | {"suppress_tokens": never}


def _tokens(tokenizer: Tokenizer) -> dict[str, int]:
    ids = {"decoder_start_token_id": tokenizer.cls_id, "eos_token_id": tokenizer.sep_id}
    return ids | {"pad_token_id": tokenizer.pad_id}
