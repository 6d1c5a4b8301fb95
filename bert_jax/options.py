"""Every option of a run, declared once: its default, its range or choices, its meaning, and when it may change.

    python -m bert_jax.options > docs/options.md

`--config.NAME=VALUE` sets an option on the command line, `config.NAME = VALUE` in an experiment file. A default of None
means that the value comes from elsewhere; the meaning says from where.
"""

import re
import sys
from dataclasses import replace
from itertools import groupby

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from bert_jax.option import Option, most_like
from bert_jax.option import choice as _choice
from bert_jax.option import integer as _integer
from bert_jax.option import number as _number
from bert_jax.option import switch as _switch
from bert_jax.option import text as _text
from bert_jax.option_groups import GROUPS

# fmt: off
_OPTIONS = (
    _text("task", "pretraining", "pretraining, classification, tagging, span_qa, multiple_choice, seq2seq, extractive, "
        "multitask, visual_pretraining or a Class", "needed"),
    _integer("seed", 0, "[0, 2^32)", "initialisation, data order, masks and dropout are functions of it"),
    _integer("seeds", 1, "[1, 1000]", "runs, one after another, with seed, seed + 1, …; their mean and spread"),
    _text("init_from", "", "checkpoint or workdir whose parameters the run starts from; empty = from scratch"),
    _text("init_task", "", "task of several in init_from whose head is taken too; empty = a new head"),

    _choice("model.size", None, "tiny | mini | small | medium | base | large", "width, layers and heads; None = base"),
    _integer("model.hidden_size", None, "[1, 65536]", "width of a token's vector; None = by model.size", "shape"),
    _integer("model.num_hidden_layers", None, "[1, 4096]", "None = by model.size", "shape"),
    _integer("model.num_attention_heads", None, "[1, 4096]", "divides hidden_size; None = by model.size", "shape"),
    _integer("model.head_size", None, "[1, 65536]", "of a head; None = hidden_size / num_attention_heads", "shape"),
    _integer("model.intermediate_size", None, "[1, 2^20]", "feed-forward width; None = 4 × hidden_size", "shape"),
    _integer("model.embedding_size", None, "[1, 65536]", "if smaller, factorised; None = hidden_size", "shape"),
    _integer("model.max_position_embeddings", None, "[1, 2^20]", "the longest row, in tokens; None = 512", "shape"),
    _integer("model.type_vocab_size", None, "[1, 65536]", "None = 2", "shape"),
    _choice("model.hidden_act", None, "gelu_tanh | gelu", "gelu: erf; None = gelu_tanh, the original", "shape"),
    _number("model.layer_norm_eps", None, "(0, 1]", "None = 1e-12", "shape"),
    _choice("model.position_embedding", None, "learned | sinusoidal | rotary", "None = learned", "shape"),
    _text("model.languages", None, "languages with a vector each; auto = those of corpora; None = none", "shape"),
    _switch("model.gated", None, "True = feed-forward parts with a gate (GEGLU, Shazeer 2020); None = False", "shape"),
    _switch("model.use_bias", None, "False = no biases in the trunk and the MLM head; None = True", "shape"),
    _switch("model.tie_embeddings", None, "False = the MLM output has a table of its own; None = True", "shape"),
    _choice("model.norm", None, "post | pre", "LayerNorm after or before a sub-layer; None = post", "shape"),
    _switch("model.causal", None, "True = left-to-right attention, the paper's ablation; None = False", "shape"),
    _integer("model.vocab_size", None, "[1, 2^24]", "None = the tokenizer's; if given, the two must agree"),
    _choice("model.pooling", None, "cls | mean | max", "how the vectors of tokens become one; None = cls", "shape"),
    _number("model.hidden_dropout", 0.1, "[0, 1)", "share of activations that dropout zeroes", "inference"),
    _number("model.attention_dropout", 0.1, "[0, 1)", "share of probabilities that dropout zeroes", "inference"),
    _number("model.initializer_range", 0.02, "[0, 100]", "standard deviation of initial parameters"),
    _choice("model.initializer", "fixed", "fixed | width | width_depth", "width: × √(768 / inputs of a kernel); depth: "
        "also ÷ √(2 × layers) where a kernel adds to the residual stream"),
    _choice("model.attention", "auto", "auto | xla | cudnn", "implementation of attention", "inference"),
    _choice("model.layers", "auto", "auto | scan | unroll", "auto = unroll on a CPU, scan elsewhere", "inference"),
    _choice("model.remat", "none", "none | dots | full", "recomputed activations; dots keeps products", "inference"),
    _choice("model.dtype", "bfloat16", "bfloat16 | float32", "of products; parameters stay float32", "inference"),

    # Fine-tuning only.
    _choice("head.layers", "last", "last | second_to_last | embeddings | last4_concat | last4_weighted | all_weighted",
        "layers of the model that the head reads; weighted = a learned mean"),
    _integer("head.lstm_layers", 0, "[0, 64]", "bidirectional LSTM layers below the head, new ones"),
    _integer("head.lstm_size", None, "[1, 65536]", "units of the LSTM per direction; None = model.hidden_size"),

    # Sequence-to-sequence tasks only.
    _choice("seq2seq.model", "unilm", "unilm | encoder_decoder", "unilm: one BERT and a mask (Dong et al. 2019); "
        "encoder_decoder: two stacks of layers (Rothe et al. 2020)"),
    _choice("seq2seq.encoder", "warm", "warm | random", "encoder_decoder: warm = from init_from, if there is one"),
    _choice("seq2seq.decoder", "warm", "warm | random", "encoder_decoder: warm = from init_from, if there is one"),
    _switch("seq2seq.share", False, "encoder_decoder: True = the decoder has the encoder's parameters (BERTShare)"),
    _number("seq2seq.mask_rate", 0.0, "[0, 1)", "unilm: share of a target's tokens that a step masks and learns; 0 = "
        "each of them, by pseudo-masks"),
    _choice("seq2seq.scores", "none", "none | translation | summary", "of written texts: BLEU and chrF, or ROUGE",
        "restart"),
    _choice("seq2seq.bleu_tokenizer", "13a", "13a | intl | zh | char | none", "sacrebleu's, for BLEU", "restart"),
    _integer("seq2seq.eval_examples", 500, "[0, 2^31)", "of validation that an evaluation writes for, by generate.*; "
        "0 = all", "restart"),

    *GROUPS,
    # Several tasks only.
    _choice("multitask.sampling", "proportional", "proportional | temperature | annealed | explicit", "which task "
        "a batch is of: by size (batches per epoch), size^(1 / temperature), size^α with a falling α, tasks.*.share"),
    _number("multitask.temperature", 2.0, "[1, 1000]", "temperature: 1 = proportional, large = all tasks alike"),
    _number("multitask.last_exponent", 0.2, "[0, 1]", "annealed: α at the last step; it is 1 at the first"),

    _text("data.corpus", "sample", "sample (text if there are files), text, jsonl, wikiextractor, tfds:NAME", "needed"),
    _text("data.files", "", "paths or globs, comma-separated; plain, .gz, .xz or .zst; gs:// or s3://"),
    _text("data.text_field", "text", "of a JSONL line or of a TFDS example", "needed"),
    _text("data.prepared", "prepared", "folder of the prepared datasets, one subfolder each", "needed", "restart"),
    _choice("data.tokenizer", "wordpiece", "wordpiece | unigram | bpe", "the last two are SentencePiece models"),
    _text("data.vocab_file", "", "vocab.txt, tokenizer.json or *.model; empty = trained on the corpus"),
    _integer("data.vocab_size", 30_522, "[100, 2^24]", "of a trained vocabulary; fewer if the corpus is too small"),
    _integer("data.vocab_sample_megabytes", 64, "[1, 2^20]", "megabytes of text that a vocabulary is trained on"),
    _switch("data.lowercase", True, "whether the tokenizer lowercases"),
    _switch("data.strip_accents", None, "None = as data.lowercase, like the original"),
    _switch("data.split_cjk", True, "True = each CJK character is a word"),
    _integer("data.sequence_length", 128, "[8, 2^20]", "tokens per row, [CLS] and [SEP] included", "inference"),
    _number("data.corpora_exponent", 0.7, "[0, 1]", "of corpora: sampled by size^this; 1 = as it is"),
    _choice("data.pairing", "nsp", "nsp | sop | none", "second sentences; none = rows are packed with full sentences"),
    _number("data.random_next_rate", 0.5, "[0, 1]", "share of nsp pairs with a random second part"),
    _number("data.short_sequence_rate", 0.1, "[0, 1]", "share of rows with a random shorter target length"),
    _switch("data.packing", False, "sequences share rows; None (fine-tuning) = where it saves time", "optional"),
    _switch("data.restart_positions", True, "rows with a translation: its positions begin at 0 again"),
    _switch("data.isolated", True, "with packing: sequences of a row do not see each other; False is an ablation"),
    _choice("data.masking", "dynamic", "dynamic | static", "new masks in each step, or the original script's"),
    _choice("data.mask_unit", "token", "token | word | span", "what is masked as a whole"),
    _number("data.mask_rate", 0.15, "(0, 1]", "share of a row's tokens that are predicted"),
    _number("data.mask_share", 0.8, "[0, 1]", "share of the predicted tokens that are shown as [MASK]"),
    _number("data.random_share", 0.1, "[0, 1]", "share of the predicted tokens that are shown as a random token"),
    _choice("data.random_words", "vocabulary", "vocabulary | language", "random tokens are of all, or of the language"),
    _number("data.keep_share", 0.1, "[0, 1]", "share of the predicted tokens that are shown unchanged"),
    _integer("data.max_predictions_per_sequence", 20, "[1, 2^20]", "predicted tokens per row, at most"),
    _integer("data.dupe_factor", 10, "[1, 100000]", "static masking only: passes over the corpus"),
    _choice("data.clean", "none", "none | prose", "prose = without lines that are no sentences: docs/pretraining.md"),
    _switch("data.deduplicate", False, "True = without documents, and lines of 60 characters, that occurred before"),
    _integer("data.seed", 12_345, "[0, 2^32)", "of the split into train, validation and test; of static instances"),
    _number("data.validation_share", 0.01, "[0, 1)", "share of the documents"),
    _number("data.test_share", 0.01, "[0, 1)", "share of the documents"),
    _choice("data.runner", "local", "local | beam", "who prepares the corpus; both write the same bytes", "restart"),
    _text("data.beam_options", "", "Beam's own, e.g. --runner=DirectRunner --direct_num_workers=2", "restart"),
    _text("data.beam_temp", "", "folder that all of Beam's workers can write to; empty = data.prepared", "restart"),
    _integer("data.workers", None, "[1, 4096]", "processes that prepare the corpus; None = by the cores", "restart"),
    _integer("data.read_workers", 0, "[0, 4096]", "processes that read during training; 0 = threads", "restart"),
    _integer("data.prefetch", 8, "[1, 65536]", "batches that are kept ready", "restart"),
    # Vectors beside the text: bert_jax/data/media.
    _text("data.image", "", "column of pictures: PNG, JPEG, .npy or .npz files; empty = none", "inference"),
    _text("data.sound", "", "column of recordings: WAV files, or spectrograms as .npy or .npz", "inference"),
    _text("data.features", "", "column of regions × features: .npy or .npz files, or lists of lists", "inference"),
    _text("data.media", "", "folder of these files; empty = that of the table", "restart", "inference"),
    _choice("data.modalities", "both", "both | text | vectors", "what of a row with text and vectors a model reads"),
    # Fine-tuning only.
    _text("data.train", "", "labelled examples: a file, a glob, tfds:NAME[/CONFIG][:VERSION]@SPLIT, or de=FILE,…"),
    _text("data.validation", "", "as data.train"),
    _text("data.test", "", "as data.train; the best checkpoint is evaluated on it at the end", "restart"),
    _text("data.language", "", "column with the language of an example, whose scores are then reported by language"),
    _text("data.text", "text", "a column: its name, or its number from 0 without a header", "needed", "inference"),
    _text("data.text_pair", "", "column of the second text; empty = there is none", "inference"),
    _text("data.label", "label", "column, or comma-separated columns, of the label", "needed"),
    _text("data.choices", "", "multiple choice: columns of the endings, comma-separated", "inference"),
    _text("data.labels", "", "names in the order of their numbers, comma-separated; empty = as found, sorted"),
    _choice("data.label_kind", "single", "single | multi | regression", "a class, several classes or a number"),
    _text("data.label_separator", "|", "between several labels in one column", "needed"),
    _choice("data.long_texts", "head", "head | tail | head+tail | windows | error", "what is kept of one", "inference"),
    _integer("data.window_stride", 128, "[1, 2^20]", "tokens between the starts of two windows", "inference"),
    _choice("data.window_pooling", "mean", "mean | max | attention", "how the windows of one text become one vector"),
    _integer("data.max_windows", 8, "[1, 65536]", "per text; the rest is cut off and counted", "inference"),
    _integer("data.target_length", 64, "[2, 2^20]", "tokens of a text to write, its last [SEP] included", "inference"),
    _integer("data.max_query_length", 64, "[1, 2^20]", "tokens of a question", "inference"),
    _switch("data.repair_tags", True, "invalid BIO tags: True = repaired and counted, False = an error"),
    _integer("data.buckets", 6, "[1, 1024]", "number of batch shapes"),

    _choice("optimizer.name", "adamw", "adamw | lamb | muon", "LAMB: You et al. 2020; muon: Jordan et al. 2024"),
    _number("optimizer.learning_rate", 1e-4, "[0, 1000]", "at its peak"),
    _number("optimizer.head_learning_rate", None, "(0, 1000]", "of what optimizer.head names, at its peak; None = "
        "learning_rate"),
    _text("optimizer.head", r"^heads/", "names of parameters with head_learning_rate: what is new", "pattern"),
    _text("optimizer.muon", r"^encoder/layers/.*kernel$", "names that muon takes; Adam takes the rest", "pattern"),
    _number("optimizer.muon_learning_rate", None, "(0, 1000]", "of these matrices, at its peak; None = learning_rate"),
    _number("optimizer.muon_momentum", 0.95, "[0, 1)", "decay rate of muon's average of gradients (Nesterov)"),
    _choice("optimizer.schedule", "bert", "bert | hf | electra | cosine | constant", "formulas: training/optimizer.py"),
    _integer("optimizer.warmup_steps", 10_000, "[0, 2^31)", "steps in which the learning rate rises to its peak"),
    _number("optimizer.warmup_share", None, "[0, 1)", "share of all steps; None = warmup_steps counts"),
    _integer("optimizer.decay_steps", 1_000_000, "[0, 2^31)", "length of the decay in steps; 0 = train.steps"),
    _number("optimizer.b1", 0.9, "[0, 1)", "decay rate of Adam's first moment"),
    _number("optimizer.b2", 0.999, "[0, 1)", "decay rate of Adam's second moment"),
    _number("optimizer.eps", 1e-6, "(0, 1]", "added to the root of the second moment"),
    _switch("optimizer.bias_correction", False, "of Adam's moments; False as in the original"),
    _number("optimizer.weight_decay", 0.01, "[0, 1000]", "decoupled from the gradient"),
    _text("optimizer.no_decay", r"(layer_norm/.*|bias)$", "names that do not decay", "pattern"),
    _number("optimizer.clip_norm", 1.0, "[0, 2^30]", "global norm that the gradient is clipped to; 0 = off"),
    _number("optimizer.layer_decay", 1.0, "[0, 1]", "learning rate of a layer relative to that of the layer above it"),
    _text("optimizer.freeze", "", "names that do not change; layers have numbers: ^encoder/layers/3/", "pattern"),

    _integer("train.steps", 900_000, "[1, 2^31)", "updates of the parameters"),
    _number("train.epochs", None, "(0, 1000000]", "passes over the examples, in place of steps; None = steps count"),
    _integer("train.batch_size", 256, "[1, 2^24]", "sequences per step, over all devices and micro-batches"),
    _integer("train.accumulation", 1, "[1, 2^24]", "micro-batches per step"),
    _text("train.phases", "", "'0.25: batch_size=64 sequence_length=32 mask_rate=0.3; 1: …': shares of train.steps at "
        "which phases end, and what replaces the config's values in each; empty = one phase"),
    _integer("train.log_every", 100, "[1, 2^31)", "steps", "restart"),
    _integer("train.patience", 0, "[0, 2^31)", "evaluations without a better best_metric that end the run; 0 = off"),
    _integer("train.max_rollbacks", 0, "[0, 1000]", "bad batches left out, each after going back; 0 = end", "restart"),
    _number("train.spike_factor", 0.0, "[0, 1000000]", "× median loss or grad_norm: a bad batch; 0 = off", "restart"),
    _number("train.watchdog_seconds", 1800.0, "[0, 2^31)", "without a step that end the run, with stacks", "restart"),
    _text("train.trackers", "", "beside TensorBoard: wandb, mlflow, trackio, comma-separated; empty = none", "restart"),
    _text("train.take_layers", "", "numbers, from 0 and comma-separated, of the layers of init_from that a warm start "
        "takes, the first one first; empty = all"),
    _integer("train.reinitialise_layers", 0, "[0, 4096]", "top layers (and pooler) that a warm start leaves out"),
    _number("train.ema_decay", 0.0, "[0, 1)", "of the moving average of parameters that is used; 0 = no average"),
    _number("train.z_loss", 0.0, "[0, 1000]", "pretraining: weight of the MLM softmax's log²Z in the loss; PaLM: 1e-4"),
    _integer("train.sampled_softmax", 0, "[0, 2^24]", "pretraining: negatives of the MLM softmax; 0 = the vocabulary"),
    _switch("train.new_head", False, "True = the head of init_from is left out: classes may differ"),
    _choice("train.class_weights", "none", "none | balanced", "balanced = classes are weighted by inverse frequency"),
    _number("train.label_smoothing", 0.0, "[0, 1)", "share of a label's probability that all classes divide"),
    _number("train.peak_tflops", 0.0, "[0, 1000000]", "of one device; 0 = by its name, or measured", "restart"),

    _integer("eval.every", 10_000, "[1, 2^31)", "steps; None = once per epoch", "optional", "restart"),
    _switch("eval.at_start", True, "whether there is an evaluation before the first step", "restart"),
    _integer("eval.batch_size", 256, "[1, 2^24]", "sequences", "restart"),
    _integer("eval.max_examples", 10_000, "[0, 2^31)", "of the validation split; 0 = all", "restart"),
    _integer("eval.seed", 12_345, "[0, 2^32)", "of the pairs and masks, which are the same in every evaluation"),
    _text("eval.blimp", "", "pretraining: folder of minimal pairs (.jsonl); their accuracy is a metric", "restart"),
    _integer("eval.blimp_pairs", 50, "[0, 2^31)", "of each paradigm, drawn by eval.seed; 0 = all", "restart"),
    _text("eval.retrieval", "", "pretraining: translations to find by vectors, e.g. en_de=test.en+test.de", "restart"),
    _integer("eval.retrieval_layer", None, "[1, 4096]", "whose mean vector stands for a text; None = last", "restart"),

    _integer("checkpoint.every", 10_000, "[1, 2^31)", "steps; None = with every evaluation", "optional", "restart"),
    _integer("checkpoint.keep", 3, "[1, 1000000]", "latest checkpoints; the best one is kept besides", "restart"),
    _number("checkpoint.minutes", 0.0, "[0, 100000]", "between saves, some temporary; 0 = by steps only", "restart"),
    _text("checkpoint.mirror", "", "gs:// or s3:// folder with a copy, which another machine continues", "restart"),
    _text("checkpoint.best_metric", "loss", "validation metric that chooses the best checkpoint", "needed"),
    _choice("checkpoint.best_mode", "min", "min | max", "whether the lowest or the highest best_metric is the best"),
    _text("checkpoint.also_best", "", "further metrics, comma-separated, whose best checkpoints are kept", "restart"),

    # How a sequence-to-sequence model writes: bert_jax/models/decoding.
    _integer("generate.beams", 1, "[1, 1024]", "targets that a search writes side by side; 1 = greedy", "restart",
        "inference"),
    _integer("generate.n_best", 1, "[1, 1024]", "targets for each source, with their scores", "restart", "inference"),
    _number("generate.length_penalty", 0.6, "[0, 100]", "α: log-probabilities ÷ ((5 + tokens) / 6)^α are compared",
        "restart", "inference"),
    _switch("generate.early", False, "True = a search ends as soon as it has as many whole targets as beams",
        "restart", "inference"),
    _number("generate.temperature", 0.0, "[0, 1000]", "of tokens that are drawn; 0 = the likeliest", "restart",
        "inference"),
    _integer("generate.top_k", 0, "[0, 2^24]", "likeliest tokens that one is drawn from; 0 = all", "restart",
        "inference"),
    _number("generate.top_p", 1.0, "(0, 1]", "probability of the likeliest tokens that one is drawn from", "restart",
        "inference"),
    _number("generate.repetition_penalty", 1.0, "(0, 1000]", "logits of tokens already written ÷ it, negative ones "
        "× it", "restart", "inference"),
    _integer("generate.no_repeat_ngram", 0, "[0, 2^20]", "tokens in a row that occur once only; 0 = off", "restart",
        "inference"),
    _integer("generate.min_length", 1, "[0, 2^20]", "tokens before the last [SEP]; 0 = a text may be empty", "restart",
        "inference"),
    _integer("generate.max_length", None, "[1, 2^20]", "tokens, the last [SEP] included; None = data.target_length",
        "restart", "inference"),
    _integer("generate.seed", 0, "[0, 2^32)", "what is drawn is a function of it and of the row's number", "restart",
        "inference"),

    _choice("predict.backend", "jax", "jax | openvino", "who runs predictions; openvino: CPUs only, needs its extra",
        "restart", "inference"),

    _choice("mesh.preset", "data", "data | fsdp | fsdp_tensor", "the axes that are None: all devices along data, all "
        "along fsdp, or half along fsdp and 2 along tensor", "restart"),
    _integer("mesh.data", None, "[-1, 2^20]", "devices that split the rows; -1 = those left", "restart"),
    _integer("mesh.fsdp", None, "[-1, 2^20]", "devices that split rows and parameters; -1 = those left", "restart"),
    _integer("mesh.tensor", None, "[-1, 2^20]", "devices that split columns, vocabulary; -1 = those left", "restart"),
    _integer("mesh.join_seconds", 300, "[1, 2^31)", "that a process waits for the others to start", "restart"),
    _integer("mesh.smallest", 65_536, "[0, 2^31)", "elements of an array; fsdp does not split smaller ones", "restart"),
    _text("mesh.rules", "", "pattern=axis,axis;… for names of parameters, before the built-in rules; - = not split",
        "restart"),
)

# Groups whose entries the user names: * stands for such a name. `entries.py` adds and reads them.
_NAMED = (
    _text("corpora.*.files", "", "as data.files, of this corpus; parallel: one+other, or a .tsv of two columns"),
    _text("corpora.*.corpus", "text", "as data.corpus, of this corpus; or parallel: texts and translations", "needed"),
    _text("corpora.*.text_field", "text", "as data.text_field, of this corpus", "needed"),
    _text("corpora.*.name_field", "id", "parallel JSONL: the field by which documents belong together", "needed"),
    _text("corpora.*.language", "", "e.g. de; parallel: en+de; empty = the corpus's name"),
    _number("corpora.*.share", None, "[0, 1]", "of the rows; None = of what is left, by size^data.corpora_exponent"),

    _text("tasks.*.task", "", "as task, of this task", "needed"),
    _number("tasks.*.share", None, "[0, 1000000]", "of the batches, relative to the other tasks'; None = by size"),
    _number("tasks.*.weight", 1.0, "[0, 1000000]", "of its loss; 0 = it is evaluated and not trained"),
    _text("tasks.*.metric", "", "of validation, which `mean` takes, e.g. f1; empty = the usual one of its kind"),
)
# fmt: on
OPTIONS = {option.name: option for option in _OPTIONS}
# Options that an entry of `tasks` may set for itself: all tasks share the rest, the vocabulary too.
_OF_A_TASK = re.compile(
    r"(data|head)\.(?!tokenizer|vocab_|lowercase|strip_accents|split_cjk|prefetch)"
    r"|train\.(class_weights|label_smoothing|z_loss|sampled_softmax)|eval\.(blimp|max_examples)"
)
NAMED = {
    group: {option.name.split(".", 2)[2]: option for option in options}
    for group, options in groupby(_NAMED, lambda option: option.name.partition(".")[0])
}
_BORROWED = {"tasks": {name: option for name, option in OPTIONS.items() if _OF_A_TASK.match(name)}}
SHAPE = tuple(name.removeprefix("model.") for name, option in OPTIONS.items() if "shape" in option.marks)
RESTART = tuple(name for name, option in OPTIONS.items() if "restart" in option.marks)
INFERENCE = tuple(name for name, option in OPTIONS.items() if "inference" in option.marks)


def default_config() -> ConfigDict:
    """Returns a config with every option at its default, locked: a key that is not declared here is an error."""
    groups: dict[str, dict[str, object]] = {"": {}} | {group: {} for group in NAMED}
    for name, option in OPTIONS.items():
        group, _, key = name.rpartition(".")
        groups.setdefault(group, {})[key] = _default(option)
    return ConfigDict(groups.pop("") | groups).lock()


def default_entry(group: str) -> dict[str, object]:
    """Returns a new entry of one of the groups `NAMED`, with every option of its own at its default."""
    return {key: _default(option) for key, option in NAMED[group].items()}


def find_option(name: str) -> Option | None:
    """Returns the option that a name stands for, or None: `tasks.sst2.weight` is the entry sst2's own, and
    `tasks.sst2.data.train` is `data.train` for this entry alone."""
    group, entry, key = [*name.split(".", 2), "", ""][:3]
    if group not in NAMED:
        return OPTIONS.get(name)
    option = (NAMED[group] | _BORROWED.get(group, {})).get(key)
    return replace(option, name=name) if option and is_entry_name(entry) else None


def is_entry_name(text: str) -> bool:
    """Returns whether a text can be the name of an entry."""
    return re.fullmatch("[A-Za-z][A-Za-z0-9_]*", text) is not None


def nearest(name: str) -> str:
    """Returns the declared option whose name is most like `name`, whose group may be wrong or missing."""
    group, entry, key = [*name.split(".", 2), "", ""][:3]
    if group in NAMED:
        begin = f"{group}.{entry if is_entry_name(entry) else 'NAME'}."
        return begin + most_like(key or entry, NAMED[group] | _BORROWED.get(group, {}))
    return most_like(name, OPTIONS)


def _default(option: Option) -> object:
    return placeholder(option.type) if option.default is None else option.default


def main(argv: list[str]) -> int:
    """Prints docs/options.md."""
    if argv not in ([], ["--help"], ["-h"]):
        print("error: this command takes no flags but --help", file=sys.stderr)
        return 2
    from bert_jax.options_page import table  # which reads the declarations above

    print(__doc__ if argv else table(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
