"""What everything is called: our parameters, those of Hugging Face, those of google-research/bert. ONE table.

Linear kernels are [in, out] here and in TensorFlow, [out, in] in PyTorch; the heads of google-research/bert are
[out, in] too. Every layer is stored by itself there; here all of them are stacked along a leading axis.
"""

from dataclasses import dataclass

# Ours → (Hugging Face's, google-research/bert's) names of the parameters of one kind of module.
Suffixes = dict[str, tuple[str, str]]
TABLE: Suffixes = {"embedding": (".weight", "")}
NORM: Suffixes = {"scale": (".weight", "/gamma"), "bias": (".bias", "/beta")}
LINEAR: Suffixes = {"kernel": (".weight", "/kernel"), "bias": (".bias", "/bias")}
HEAD: Suffixes = {"kernel": (".weight", "/output_weights"), "bias": (".bias", "/output_bias")}

# Module here, at Hugging Face (without the prefix "bert" of a model with heads; {} is the layer), its parameters. At
# Google a module has the same name with "/" for ".", except those of _ELSEWHERE.
MODULES: tuple[tuple[str, str, Suffixes], ...] = (
    ("embeddings/word", "embeddings.word_embeddings", TABLE),
    ("embeddings/position", "embeddings.position_embeddings", TABLE),
    ("embeddings/token_type", "embeddings.token_type_embeddings", TABLE),
    ("embeddings/layer_norm", "embeddings.LayerNorm", NORM),
    ("encoder/layers/attention/query", "encoder.layer.{}.attention.self.query", LINEAR),
    ("encoder/layers/attention/key", "encoder.layer.{}.attention.self.key", LINEAR),
    ("encoder/layers/attention/value", "encoder.layer.{}.attention.self.value", LINEAR),
    ("encoder/layers/attention/output", "encoder.layer.{}.attention.output.dense", LINEAR),
    ("encoder/layers/attention_layer_norm", "encoder.layer.{}.attention.output.LayerNorm", NORM),
    ("encoder/layers/intermediate", "encoder.layer.{}.intermediate.dense", LINEAR),
    ("encoder/layers/output", "encoder.layer.{}.output.dense", LINEAR),
    ("encoder/layers/output_layer_norm", "encoder.layer.{}.output.LayerNorm", NORM),
    ("pooler", "pooler.dense", LINEAR),
    ("heads/mlm/transform", "cls.predictions.transform.dense", LINEAR),
    ("heads/mlm/layer_norm", "cls.predictions.transform.LayerNorm", NORM),
    ("heads/mlm", "cls.predictions", {"bias": (".bias", "/output_bias")}),
    ("heads/nsp", "cls.seq_relationship", HEAD),
    ("heads/classifier", "classifier", HEAD),
    ("heads/span", "qa_outputs", HEAD),
)
_ELSEWHERE = {"heads/classifier": "", "heads/span": "cls/squad"}

TRUNK = ("embeddings", "encoder")
PRETRAINING_HEADS = ("mlm", "nsp")

# Architecture of Hugging Face: our task, and what it has besides embeddings and encoder. The first of a task that has
# everything in a checkpoint is what it is written as.
ARCHITECTURES: dict[str, tuple[str, tuple[str, ...]]] = {
    "BertForPreTraining": ("pretraining", ("pooler", "mlm", "nsp")),
    "BertForMaskedLM": ("pretraining", ("mlm",)),
    "BertModel": ("pretraining", ("pooler",)),
    "BertForSequenceClassification": ("classification", ("pooler", "classifier")),
    "BertForTokenClassification": ("tagging", ("classifier",)),
    "BertForQuestionAnswering": ("span_qa", ("span",)),
    "BertForMultipleChoice": ("multiple_choice", ("pooler", "classifier")),
    "EncoderDecoderModel": ("seq2seq", ("pooler", "decoder", "mlm")),  # convert/encoder_decoder.py
}

# Of Hugging Face, read but not written: as which of the above.
READ_AS = {"BertLMHeadModel": "BertForMaskedLM", "BertForNextSentencePrediction": "BertForPreTraining"}


@dataclass(frozen=True)
class Name:
    """One parameter here and there; `theirs` of a stacked one is a pattern with {} for the layer."""

    ours: str
    theirs: str
    transposed: bool

    @property
    def stacked(self) -> bool:
        return "{}" in self.theirs

    @property
    def part(self) -> str:
        return part_of(self.ours)

    def layers(self, count: int) -> list[str]:
        return [self.theirs.format(layer) for layer in range(count)] if self.stacked else [self.theirs]


def part_of(name: str) -> str:
    """Returns the module that one of our parameters belongs to: `embeddings`, `encoder`, `pooler` or its head."""
    return name.removeprefix("heads/").partition("/")[0]


def huggingface_names() -> list[Name]:
    return [
        Name(f"{ours}/{name}", theirs + suffix, name == "kernel")
        for ours, theirs, suffixes in MODULES
        for name, (suffix, _) in suffixes.items()
    ]


def google_names() -> list[Name]:
    names = []
    for ours, theirs, suffixes in MODULES:
        module = _ELSEWHERE.get(ours, theirs.replace("layer.{}", "layer_{}").replace(".", "/"))
        for name, (_, suffix) in suffixes.items():
            names.append(Name(f"{ours}/{name}", (module + suffix).lstrip("/"), suffix == "/output_weights"))
    return names


# Fields of config.json and bert_config.json: ours, theirs.
_SAME = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_SAME += ("max_position_embeddings", "type_vocab_size", "initializer_range")
CONFIG_FIELDS = {name: name for name in _SAME}
CONFIG_FIELDS |= {"hidden_dropout": "hidden_dropout_prob", "attention_dropout": "attention_probs_dropout_prob"}
