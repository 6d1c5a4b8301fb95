"""The last tenth of the paper's steps, at length 512, from a run at length 128.

    python -m bert_jax.main --config=experiments/phase2_512.py --config.init_from=runs/base \\
        --config.data.corpus=text --config.data.files='corpus/*.txt'

Size and vocabulary are those of the run that it starts from. After a short warm-up the learning rate continues
where the first phase's schedule stopped, at a tenth of its peak. Adam's moments start at zero, as in the original.

Hardware and time: part of the 4 days on 16 TPU chips that the paper gives for both phases of base; a row of 512
tokens takes 4.3 times the operations of a row of 128. Expect: not trained with this code yet.
"""

from ml_collections import ConfigDict

from experiments import base


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config with the model size `arg`."""
    config = base.get_config(arg)
    config.data.sequence_length = 512
    config.data.max_predictions_per_sequence = 76
    config.optimizer.learning_rate = 1e-5
    config.optimizer.schedule = "hf"
    config.optimizer.warmup_steps = 1_000
    config.optimizer.decay_steps = 0
    config.train.steps = 100_000
    config.train.accumulation = 4
    return config
