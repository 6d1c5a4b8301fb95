"""A small BERT (size `tiny`: 2 layers, 128 wide) on 198 MB of English Wikipedia and books.

    mkdir -p corpus && tar -xJf ../shared/data/pretrain_en.tar.xz -C corpus
    python -m bert_jax.main --config=experiments/small_en.py \\
        --config.data.files='corpus/enwiki2015/**/wiki_*,corpus/gutenberg/*___*.txt'

Hardware: a CPU. Time: half an hour on 2 shared cores; another size, as in `small_en.py:mini`, learns more and takes
longer. Expect: held-out `mlm_loss` 4.24 (`unigram_entropy` 6.90), `nsp_accuracy` 0.85. docs/RESULTS.md has more, with
machine and time.
"""

from ml_collections import ConfigDict

from experiments import base


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config with the model size `arg`."""
    config = base.get_config(arg or "tiny")
    config.data.corpus = "text"
    config.data.files = "corpus/enwiki2015/**/wiki_*,corpus/gutenberg/*___*.txt"
    config.data.vocab_size = 8_000
    config.model.initializer_range = 0.05  # base's 0.02 · √(768 / 128): wider sizes need less
    config.model.hidden_dropout = 0.0
    config.model.attention_dropout = 0.0
    config.optimizer.learning_rate = 2e-3
    config.optimizer.schedule = "hf"
    config.optimizer.warmup_steps = 600
    config.optimizer.decay_steps = 0
    config.optimizer.b2 = 0.98
    config.optimizer.bias_correction = True
    config.train.steps = 36_000
    config.train.batch_size = 32
    config.train.log_every = 200
    config.eval.every = 6_000
    config.eval.max_examples = 4_000
    config.checkpoint.every = 6_000
    return config
