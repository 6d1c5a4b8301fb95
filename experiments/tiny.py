"""A tiny BERT (2 layers, 128 wide) on the built-in sample, in rows of 32 tokens: the quickstart.

    python -m bert_jax.main --config=experiments/tiny.py

Hardware: any CPU; two cores are enough. Time: the whole quickstart takes under 3 minutes on two cores. Expect:
held-out `mlm_loss` 3.9 (`unigram_entropy` 6.2) and a third of the hidden pieces named; docs/RESULTS.md has what was
measured. It differs from BERT where that takes hours to learn: rotary positions, optimizer Muon, no next sentence
prediction. `experiments/base.py` is BERT itself.
"""

from ml_collections import ConfigDict

from experiments import base


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config with the model size `arg`."""
    config = base.get_config(arg or "tiny")
    config.model.position_embedding = "rotary"  # with learned ones twice the steps end at a loss of 4.5
    config.model.dtype = "float32"  # the same on every machine, and on most CPUs as fast as bfloat16
    config.model.initializer_range = 0.05  # base's 0.02 · √(768 / 128): wider sizes need less
    config.model.hidden_dropout = 0.0  # a few passes over little text: nothing to regularise yet
    config.model.attention_dropout = 0.0
    config.data.vocab_size = 4_000
    config.data.validation_share = 0.1
    config.data.test_share = 0.05
    config.data.pairing = "none"
    config.data.sequence_length = 32
    config.data.max_predictions_per_sequence = 5
    config.optimizer.name = "muon"  # needs a third of AdamW's steps
    config.optimizer.learning_rate = 5e-3
    config.optimizer.schedule = "hf"
    config.optimizer.warmup_steps = 100
    config.optimizer.decay_steps = 0
    config.optimizer.b2 = 0.98
    config.optimizer.bias_correction = True
    config.train.steps = 900
    config.train.batch_size = 128
    config.train.log_every = 100
    config.eval.every = 450
    config.eval.at_start = False
    config.checkpoint.every = 450
    return config
