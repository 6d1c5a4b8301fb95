"""Models that write, as Transformers has them: an EncoderDecoderModel of two BERTs, the second with cross-attention.

A decoder that shares its parameters with the encoder (BERTShare) is written as one that has the same values. UniLM is a
BERT that reads by another mask, which Transformers lacks: only the BERT can be written.
"""

from dataclasses import replace
from typing import Any

from bert_jax.convert.mapping import Arrays
from bert_jax.convert.names import ARCHITECTURES, TRUNK, Name, huggingface_names
from bert_jax.data.tokenizers.tokenizer import Tokenizer
from bert_jax.models.writer import DECODER_OF_BERT
from bert_jax.training.parameters import with_copies

NAME = "EncoderDecoderModel"
TASK = ARCHITECTURES[NAME][0]
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


def whole(parameters: Arrays) -> tuple[Arrays, list[str]]:
    """Returns the parameters with those that a decoder shares under names of its own, and what to report of them."""
    found, copied = with_copies(parameters, DECODER_OF_BERT)
    notes = [f"the decoder shares parameters, which are written twice: {n} {where}" for where, n in copied.items()]
    return found, notes


def settings(bert: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns the config of an encoder and a decoder which both have the config of a BERT."""
    of_both = {name: bert[name] for name in ("architectures", "dtype")}
    one = {name: value for name, value in bert.items() if name not in of_both} | {"is_decoder": False}
    other = one | {"is_decoder": True, "add_cross_attention": True}
    kind = {"model_type": "encoder-decoder", "is_encoder_decoder": True}
    both = {"encoder": dict(sorted(one.items())), "decoder": dict(sorted(other.items()))}
    return of_both | kind | both | _tokens(tokenizer)


def generation_settings(tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns what generation_config.json says: where a target begins and ends, and what is never written."""
    never = sorted((tokenizer.pad_id, tokenizer.cls_id, tokenizer.mask_id))
    return _tokens(tokenizer) | {"suppress_tokens": never}


def _tokens(tokenizer: Tokenizer) -> dict[str, int]:
    ids = {"decoder_start_token_id": tokenizer.cls_id, "eos_token_id": tokenizer.sep_id}
    return ids | {"pad_token_id": tokenizer.pad_id}
