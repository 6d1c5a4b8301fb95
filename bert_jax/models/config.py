"""The shape of a BERT, and the sizes that have names."""

import math
from dataclasses import dataclass, fields

from ml_collections import ConfigDict

from bert_jax.config import Json, UserError, check_option
from bert_jax.options import SHAPE

# hidden size, layers, heads: Devlin et al. (2018) for base and large, Turc et al. (2019) for the rest.
SIZES = {
    "tiny": (128, 2, 2),
    "mini": (256, 4, 4),
    "small": (512, 4, 8),
    "medium": (512, 8, 8),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
}
_SIZE_KEYS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "embedding_size")
_BY_SIZE = (*_SIZE_KEYS, "head_size")  # what a new model.size decides, whatever the source has
_STRUCTURE = ("position_embedding", "norm", "gated", "use_bias", "tie_embeddings", "languages")


@dataclass(frozen=True)
class BertConfig:
    """Everything that `models/` needs to know; the meaning and range of each field is in `options.py`."""

    vocab_size: int
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    embedding_size: int = 768
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    hidden_act: str = "gelu_tanh"
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    initializer: str = "fixed"
    position_embedding: str = "learned"
    norm: str = "post"
    causal: bool = False
    gated: bool = False
    use_bias: bool = True
    tie_embeddings: bool = True
    languages: str = ""
    pooling: str = "cls"
    attention: str = "auto"
    layers: str = "auto"
    remat: str = "none"
    dtype: str = "bfloat16"
    head_size: int | None = None

    def __post_init__(self):
        for field in fields(self):
            check_option(f"model.{field.name}", getattr(self, field.name))
        if self.head_size is None and self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"model.hidden_size {self.hidden_size} is not a multiple of "
                f"model.num_attention_heads {self.num_attention_heads}"
            )
        names = [name.strip() for name in self.languages.split(",")] if self.languages else []
        if not all(names) or len({*names}) < len(names):
            raise UserError(f"model.languages is {self.languages!r}; name each language once, as en,de")
        if self.position_embedding == "rotary" and self.head_width % 2:
            raise UserError(
                f"model.position_embedding=rotary rotates pairs of columns, and the head size is {self.head_width} "
                f"(model.hidden_size {self.hidden_size} / model.num_attention_heads {self.num_attention_heads}); "
                "choose sizes that make it even"
            )
        if self.attention == "cudnn" and (self.dtype != "bfloat16" or self.attention_dropout > 0):
            raise UserError("model.attention=cudnn needs model.dtype=bfloat16 and model.attention_dropout=0")

    @property
    def head_width(self) -> int:
        """The columns of one head. Fewer heads than fill hidden_size are what pruning leaves (`lab/prune`)."""
        return self.head_size or self.hidden_size // self.num_attention_heads

    @property
    def attention_width(self) -> int:
        """The columns of all heads together."""
        return self.num_attention_heads * self.head_width

    @property
    def num_languages(self) -> int:
        """The number of languages with a vector of their own."""
        return len(self.languages.split(",")) if self.languages else 0

    def kernel_stddev(self, inputs: int, *, is_residual: bool = False) -> float:
        """Returns the standard deviation of an initial kernel with so many inputs, by `initializer` (the table is in
        `layers.py`). The output of a residual one is added to the residual stream."""
        stddev = self.initializer_range
        if self.initializer != "fixed":
            stddev *= math.sqrt(SIZES["base"][0] / inputs)
        if self.initializer == "width_depth" and is_residual:
            stddev /= math.sqrt(2 * self.num_hidden_layers)
        return stddev


def bert_config(model: ConfigDict, vocab_size: int) -> BertConfig:
    """Fills what `config.model` leaves open: sizes from `model.size`, `vocab_size` from the tokenizer.

    Raises UserError if the size has no name, or if `model.vocab_size` is given and is not `vocab_size`.
    """
    size = model.size or "base"
    check_option("model.size", size)
    if model.vocab_size not in (None, vocab_size):
        raise UserError(
            f"model.vocab_size is {model.vocab_size} but the tokenizer has {vocab_size} pieces; "
            "leave model.vocab_size unset or load the vocabulary that belongs to the model (data.vocab_file)"
        )
    hidden, layers, heads = SIZES[size]
    hidden = model.hidden_size or hidden
    values: Json = dict(zip(_SIZE_KEYS, (hidden, layers, heads, 4 * hidden, hidden), strict=True))
    values |= {key: value for key, value in model.items() if key != "size" and value is not None}
    values |= {"vocab_size": vocab_size}
    return BertConfig(**values)


def inherit_shape(model: ConfigDict, source: BertConfig) -> None:
    """Gives `config.model` the shape of `source`, where neither `model.size` nor a key of its own says it."""
    for key in SHAPE:
        if model[key] is None and not (model.size and key in _BY_SIZE):
            model[key] = getattr(source, key)


def check_structure(model: ConfigDict, source: BertConfig, origin: object) -> None:
    """Raises UserError if `config.model` asks for another structure than that of the parameters in `origin`, before
    names and sizes of parameters are compared: some structures differ in no name, such as two kinds of positions."""
    for key in _STRUCTURE:
        asked, own = model[key], getattr(source, key)
        if asked not in (None, own):
            raise UserError(
                f"model.{key} is {asked}, and {origin} was trained with {own}: leave model.{key} out, or start from "
                "scratch"
            )


def layer_numbers(option: str, text: str, depth: int) -> list[int]:
    """Returns the layers that an option names, "0,2,4"; all `depth` of them for "". Raises UserError."""
    if not text:
        return list(range(depth))
    numbers = [part.strip() for part in text.split(",")]
    for number in numbers:
        if not number.isdecimal() or not number.isascii():
            raise UserError(f"{option} is {text!r}; it must be numbers of layers, comma-separated, such as 0,2,4")
        if int(number) >= depth:
            raise UserError(f"{option} names layer {number}; the model has {depth} layers, from 0 to {depth - 1}")
    return [int(number) for number in numbers]


def check_length(config: BertConfig, length: int) -> None:
    """Raises UserError for rows with more tokens than the model has positions."""
    if length > config.max_position_embeddings:
        raise UserError(
            f"data.sequence_length {length} is over model.max_position_embeddings {config.max_position_embeddings}"
        )
