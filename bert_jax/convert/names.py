"""What everything is called: our parameters, those of Hugging Face, those of google-research/bert. ONE table.

Linear kernels are [in, out] here and in TensorFlow, [out, in] in PyTorch; the heads of google-research/bert are
[out, in] too. Every layer is stored by itself there; here all of them are stacked along a leading axis.
"""

from collections.abc import Iterator
from dataclasses import dataclass

# Ours → (Hugging Face's, google-research/bert's) names of the parameters of one kind of module.
Suffixes = dict[str, tuple[str, str]]
TABLE: Suffixes = {"embedding": (".weight", "")}
NORM: Suffixes = {"scale": (".weight", "/gamma"), "bias": (".bias", "/beta")}
LINEAR: Suffixes = {"kernel": (".weight", "/kernel"), "bias": (".bias", "/bias")}
HEAD: Suffixes = {"kernel": (".weight", "output_weights"), "bias": (".bias", "output_bias")}

# Module here, there (without the prefix "bert" of a model with heads; {} is the layer), there, its parameters.
MODULES: tuple[tuple[str, str, str, Suffixes], ...] = (
    ("embeddings/word", "embeddings.word_embeddings", "embeddings/word_embeddings", TABLE),
    ("embeddings/position", "embeddings.position_embeddings", "embeddings/position_embeddings", TABLE),
    ("embeddings/token_type", "embeddings.token_type_embeddings", "embeddings/token_type_embeddings", TABLE),
    ("embeddings/layer_norm", "embeddings.LayerNorm", "embeddings/LayerNorm", NORM),
    (
        "encoder/layers/attention/query",
        "encoder.layer.{}.attention.self.query",
        "encoder/layer_{}/attention/self/query",
        LINEAR,
    ),
    (
        "encoder/layers/attention/key",
        "encoder.layer.{}.attention.self.key",
        "encoder/layer_{}/attention/self/key",
        LINEAR,
    ),
    (
        "encoder/layers/attention/value",
        "encoder.layer.{}.attention.self.value",
        "encoder/layer_{}/attention/self/value",
        LINEAR,
    ),
    (
        "encoder/layers/attention/output",
        "encoder.layer.{}.attention.output.dense",
        "encoder/layer_{}/attention/output/dense",
        LINEAR,
    ),
    (
        "encoder/layers/attention_layer_norm",
        "encoder.layer.{}.attention.output.LayerNorm",
        "encoder/layer_{}/attention/output/LayerNorm",
        NORM,
    ),
    (
        "encoder/layers/intermediate",
        "encoder.layer.{}.intermediate.dense",
        "encoder/layer_{}/intermediate/dense",
        LINEAR,
    ),
    ("encoder/layers/output", "encoder.layer.{}.output.dense", "encoder/layer_{}/output/dense", LINEAR),
    (
        "encoder/layers/output_layer_norm",
        "encoder.layer.{}.output.LayerNorm",
        "encoder/layer_{}/output/LayerNorm",
        NORM,
    ),
    ("pooler", "pooler.dense", "pooler/dense", LINEAR),
    ("heads/mlm/transform", "cls.predictions.transform.dense", "cls/predictions/transform/dense", LINEAR),
    ("heads/mlm/layer_norm", "cls.predictions.transform.LayerNorm", "cls/predictions/transform/LayerNorm", NORM),
    ("heads/mlm", "cls.predictions", "cls/predictions/", {"bias": (".bias", "output_bias")}),
    ("heads/nsp", "cls.seq_relationship", "cls/seq_relationship/", HEAD),
    ("heads/classifier", "classifier", "", HEAD),
    ("heads/span", "qa_outputs", "cls/squad/", HEAD),
)

TRUNK = ("embeddings", "encoder")
PRETRAINING_HEADS = ("mlm", "nsp")
TASK_HEADS = ("classifier", "span")

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
    return [Name(ours, theirs, ours.endswith("/kernel")) for ours, theirs, _ in _rows()]


def google_names() -> list[Name]:
    return [Name(ours, theirs, theirs.endswith("output_weights")) for ours, _, theirs in _rows()]


def _rows() -> Iterator[tuple[str, str, str]]:
    for ours, huggingface, google, suffixes in MODULES:
        for name, (there, elsewhere) in suffixes.items():
            yield f"{ours}/{name}", huggingface + there, google + elsewhere


# Fields of config.json and bert_config.json: ours, theirs.
CONFIG_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_position_embeddings": "max_position_embeddings",
    "type_vocab_size": "type_vocab_size",
    "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "initializer_range": "initializer_range",
}
