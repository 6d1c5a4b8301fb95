"""BERT-base with the recipe of the paper: every key, its unit, its default.

    python -m bert_jax.main --config=experiments/base.py

Devlin et al. (arXiv:1810.04805, appendix A.2): 256 sequences a step, Adam at 1e-4 with 10,000 steps of
warm-up and linear decay over 1,000,000 steps; the first 90 % of the steps at length 128 (this file),
the rest at length 512 (`phase2_512.py`). Hardware and time: published on 16 TPU chips, 4 days.
Expect: not trained to its end with this code yet; the paper's figures after fine-tuning are GLUE 79.6 (test)
and SQuAD 1.1 F1 88.5 (development set). Without options it runs on the built-in sample of 2 MB: a trial, not a BERT.

Other experiments import this file and change a few keys; `--config.group.key=value` changes one for a run.
A `placeholder` (None) takes its value from elsewhere: the line says from where.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg` is the text after the colon of `--config=experiments/base.py:large`: a model size."""
    config = ConfigDict()
    config.task = "pretraining"  # pretraining | classification | tagging | span_qa | multiple_choice | a module.Class
    config.seed = 0
    config.seeds = 1  # runs one after another, with seeds seed, seed + 1, …; their mean and spread
    config.init_from = ""  # checkpoint directory or workdir to warm-start from; "" = from scratch

    config.model = ConfigDict()
    # The first thirteen are the model's shape. What is None comes from `init_from`, or else is the value in brackets.
    config.model.size = arg or placeholder(str)  # tiny | mini | small | medium | base | large [base]
    config.model.hidden_size = placeholder(int)  # from size
    config.model.num_hidden_layers = placeholder(int)  # from size
    config.model.num_attention_heads = placeholder(int)  # from size
    config.model.intermediate_size = placeholder(int)  # from size (4 × hidden_size)
    config.model.embedding_size = placeholder(int)  # from hidden_size; smaller = factorised embeddings
    config.model.max_position_embeddings = placeholder(int)  # [512]
    config.model.type_vocab_size = placeholder(int)  # [2]
    config.model.hidden_act = placeholder(str)  # gelu_tanh (original) | gelu (exact erf: Hugging Face) [gelu_tanh]
    config.model.layer_norm_eps = placeholder(float)  # [1e-12]
    config.model.position_embedding = placeholder(str)  # learned | sinusoidal [learned]
    config.model.norm = placeholder(str)  # post | pre [post]
    config.model.causal = placeholder(bool)  # True: left-to-right attention, the paper's ablation [False]
    config.model.vocab_size = placeholder(int)  # from the tokenizer; if given, the two must agree
    config.model.pooling = placeholder(str)  # cls | mean | max: how tokens become one vector [cls]
    config.model.hidden_dropout = 0.1
    config.model.attention_dropout = 0.1
    config.model.initializer_range = 0.02
    config.model.attention = "auto"  # auto | xla | cudnn
    config.model.layers = "auto"  # scan | unroll | auto (unroll on CPU, scan elsewhere)
    config.model.remat = "none"  # none | dots (keep matrix products) | full
    config.model.dtype = "bfloat16"  # bfloat16 | float32: of the matrix products; parameters stay float32

    config.data = ConfigDict()
    config.data.corpus = "sample"  # sample (text, if there are files) | text | jsonl | wikiextractor | tfds:NAME
    config.data.files = ""  # path or glob, comma-separated; plain, .gz, .xz or .zst
    config.data.text_field = "text"  # of a JSONL line or a TFDS example
    config.data.prepared = "prepared"  # folder that holds prepared datasets, one subfolder each
    config.data.tokenizer = "wordpiece"  # wordpiece | unigram | bpe (the last two are SentencePiece)
    config.data.vocab_file = ""  # vocab.txt, tokenizer.json or *.model to load; "" = train on the corpus
    config.data.vocab_size = 30_522  # of a vocabulary trained here (fewer if the corpus is too small)
    config.data.vocab_sample_megabytes = 64  # of corpus text that a vocabulary is trained on
    config.data.lowercase = True
    config.data.strip_accents = placeholder(bool)  # from lowercase, as in the original
    config.data.split_cjk = True  # each CJK character a word
    config.data.sequence_length = 128  # tokens a row, [CLS] and [SEP] included
    config.data.pairing = "nsp"  # nsp | sop | none (packed full sentences)
    config.data.random_next_rate = 0.5  # share of nsp pairs with a random second part
    config.data.short_sequence_rate = 0.1  # share of rows with a random shorter target length
    config.data.packing = False  # True: several pairs in a row, where they fit; needs dynamic masking
    config.data.masking = "dynamic"  # dynamic (on the device, anew each step) | static (original script)
    config.data.mask_unit = "token"  # token | word | span
    config.data.mask_rate = 0.15  # share of a row's tokens that are predicted
    config.data.mask_share = 0.8  # of the predicted: shown as [MASK]
    config.data.random_share = 0.1  # of the predicted: shown as a random token
    config.data.keep_share = 0.1  # of the predicted: shown as they are
    config.data.max_predictions_per_sequence = 20
    config.data.dupe_factor = 10  # static masking only: passes over the corpus
    config.data.seed = 12_345  # of the split into train, validation and test, and of static instances
    config.data.validation_share = 0.01  # of documents
    config.data.test_share = 0.01  # of documents
    config.data.workers = placeholder(int)  # processes that prepare; from the number of cores
    config.data.read_workers = 0  # processes that read while training; 0 = threads of this one
    config.data.prefetch = 8  # batches kept ready
    # Fine-tuning only: labelled examples, in a file, a glob, or tfds:NAME[/CONFIG][:VERSION]@SPLIT
    config.data.train = ""
    config.data.validation = ""
    config.data.test = ""
    config.data.text = "text"  # name of a column, or its number from 0 in files without a header
    config.data.text_pair = ""  # the second text; "" = there is none
    config.data.label = "label"
    config.data.choices = ""  # multiple choice: columns with the endings, comma-separated
    config.data.labels = ""  # names in the order of their numbers, comma-separated; "" = as found, sorted
    config.data.label_kind = "single"  # single | multi (several a text) | regression
    config.data.label_separator = "|"  # between several labels in one column
    config.data.long_texts = "head"  # head | tail | head+tail | windows | error: texts over sequence_length
    config.data.window_stride = 128  # tokens from the start of a window to that of the next
    config.data.window_pooling = "mean"  # mean | max | attention: windows of one text → one vector
    config.data.max_windows = 8  # a text; what lies behind them is cut off and counted
    config.data.max_query_length = 64  # tokens of a question
    config.data.repair_tags = True  # invalid BIO: True = mended and counted, False = an error
    config.data.buckets = 6  # shapes of batches

    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"  # adamw | lamb
    config.optimizer.learning_rate = 1e-4
    config.optimizer.schedule = "bert"  # bert | hf | electra | cosine | constant
    config.optimizer.warmup_steps = 10_000
    config.optimizer.warmup_share = placeholder(float)  # of all steps, in place of warmup_steps
    config.optimizer.decay_steps = 1_000_000  # length of the decay in steps; 0 = train.steps
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-6
    config.optimizer.bias_correction = False  # as in the original
    config.optimizer.weight_decay = 0.01
    config.optimizer.no_decay = r"(layer_norm/.*|bias)$"  # parameter names that do not decay
    config.optimizer.clip_norm = 1.0  # global norm of the gradient; 0 = off
    config.optimizer.layer_decay = 1.0  # learning rate of a layer relative to that of the one above it
    config.optimizer.freeze = ""  # regular expression of names that do not change; layers by number: encoder/layers/3/

    config.train = ConfigDict()
    config.train.steps = 900_000
    config.train.epochs = placeholder(float)  # fine-tuning: passes over the examples, in place of steps
    config.train.batch_size = 256  # sequences a step, all devices and micro-batches together
    config.train.accumulation = 1  # micro-batches a step
    config.train.log_every = 100  # steps
    config.train.patience = 0  # evaluations without a better checkpoint.best_metric before the run ends; 0 = no end
    config.train.reinitialise_layers = 0  # top layers (and the pooler) that a warm start leaves as initialised
    config.train.new_head = False  # True: classes may differ from those of init_from, whose head is then left behind
    config.train.class_weights = "none"  # none | balanced: a class weighs as much as it is rare
    config.train.label_smoothing = 0.0
    config.train.peak_tflops = 0.0  # a device's; 0 = by the accelerator's name, measured on other devices

    config.eval = ConfigDict()
    config.eval.every = 10_000  # steps; None = once an epoch (fine-tuning)
    config.eval.at_start = True  # before the first step
    config.eval.batch_size = 256
    config.eval.max_examples = 10_000  # of the validation split; 0 = all
    config.eval.seed = 12_345  # of the fixed pairs and masks

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 10_000  # steps; None = with every evaluation
    config.checkpoint.keep = 3  # latest ones; the best is kept besides
    config.checkpoint.best_metric = "loss"  # of the eval split
    config.checkpoint.best_mode = "min"  # min | max

    config.mesh = ConfigDict()
    config.mesh.data = -1  # devices along the batch; -1 = all
    return config
