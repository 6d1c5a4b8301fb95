"""A small BERT (size `tiny`: 2 layers, 128 wide) on 198 MB of English Wikipedia and books.

    mkdir -p corpus && tar -xJf ../shared/data/pretrain_en.tar.xz -C corpus
    python -m bert_jax.main --config=experiments/small_en.py \\
        --config.data.files='corpus/enwiki2015/**/wiki_*,corpus/gutenberg/*___*.txt'

Hardware: a CPU. Time: half an hour on 2 shared cores; another size behind a colon (`small_en.py:mini`)
learns more and takes longer.
Expect: held-out `mlm_loss` 4.24 (`unigram_entropy` 6.90), `nsp_accuracy` 0.85. More figures,
with machine and time: docs/RESULTS.md.
"""

from experiments import base


def get_config(arg=None):
    config = base.get_config(arg or "tiny")
    config.data.corpus = "text"
    config.data.files = "corpus/enwiki2015/**/wiki_*,corpus/gutenberg/*___*.txt"
    config.data.vocab_size = 8_000
    config.model.initializer_range = 0.05  # of 128 columns: base's 0.02 · √(768 / 128). Wider sizes want less
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
