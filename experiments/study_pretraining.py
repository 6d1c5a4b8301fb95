"""The small BERT that the studies pretrain: 2 layers, 128 wide, rotary positions, 66 MB of English, rows of 32 tokens.

    python benchmarks/study_data.py --archives=../shared/data --to=study_data
    python -m bert_jax.main --config=experiments/study_pretraining.py:study_data

The name behind the colon is the folder of the data.
"""

from pathlib import Path

from ml_collections import ConfigDict

from experiments import base


def get_config(arg: str = "study_data") -> ConfigDict:
    """Returns the config with the data in the folder `arg`."""
    config = base.get_config()
    config.model.update(hidden_size=128, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64)
    # Learned ones hold the loss on a plateau, which seeds leave at different steps: noise larger than most effects.
    config.model.position_embedding = "rotary"
    config.model.initializer_range = 0.05  # base's 0.02 · √(768 / 128): wider sizes need less
    config.model.hidden_dropout = 0.0  # less than one pass over the text: nothing to regularise
    config.model.attention_dropout = 0.0
    config.model.dtype = "float32"  # faster than bfloat16 on a CPU without AMX, and the same on every machine
    config.data.corpus = "text"
    config.data.files = str(Path(arg) / "corpus" / "*")
    config.data.prepared = str(Path(arg) / "prepared")
    config.data.vocab_size = 4_000
    config.data.sequence_length = 32
    config.data.max_predictions_per_sequence = 5
    config.optimizer.name = "muon"  # leaves the plateau of the first steps in half of AdamW's time
    config.optimizer.learning_rate = 5e-3
    config.optimizer.schedule = "hf"
    config.optimizer.warmup_steps = 200
    config.optimizer.decay_steps = 0
    config.optimizer.b2 = 0.98
    config.optimizer.bias_correction = True
    config.train.steps = 1_500
    config.train.batch_size = 128
    config.train.log_every = 100
    config.eval.every = 1_500
    config.eval.at_start = False
    config.eval.max_examples = 2_000
    config.eval.blimp = str(Path(arg) / "blimp")
    config.checkpoint.every = 1_500
    config.checkpoint.keep = 1
    return config
