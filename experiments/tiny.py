"""A tiny BERT (2 layers, 128 wide) on the built-in sample, in rows of 64 tokens: the quickstart.

    python -m bert_jax.main --config=experiments/tiny.py

Hardware: any CPU; two cores are enough. Time: the whole quickstart takes less than 5 minutes on two cores.
Expect: held-out `mlm_accuracy` at least twice `majority_accuracy`, and `nsp_accuracy_low` over 0.5 (the log of the last
evaluation has all of them); docs/RESULTS.md has what was measured.
"""

from ml_collections import ConfigDict

from experiments import base


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config with the model size `arg`."""
    config = base.get_config(arg or "tiny")
    config.model.hidden_dropout = 0.0  # two passes over little text: nothing to regularise yet
    config.model.attention_dropout = 0.0
    config.data.vocab_size = 4_000
    config.data.validation_share = 0.1
    config.data.test_share = 0.05
    config.data.sequence_length = 64
    config.data.max_predictions_per_sequence = 10
    config.optimizer.learning_rate = 2e-3
    config.optimizer.schedule = "hf"
    config.optimizer.warmup_steps = 150
    config.optimizer.decay_steps = 0
    config.optimizer.b2 = 0.98
    config.optimizer.bias_correction = True
    config.train.steps = 1_500
    config.train.batch_size = 64
    config.train.log_every = 100
    config.eval.every = 500
    config.checkpoint.every = 500
    return config
