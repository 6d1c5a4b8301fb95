"""The last tenth of the paper's steps, at length 512, from a run at length 128.

    python -m bert_jax.main --config=experiments/phase2_512.py --config.init_from=runs/base \\
        --config.data.corpus=text --config.data.files='corpus/*.txt'

Size and vocabulary are those of the run that it starts from. The learning rate goes on where the first phase's
schedule stood, at a tenth of its peak, after a short warm-up: Adam's moments start anew, as in the original.

Hardware and time: part of the 4 days on 16 TPU chips that the paper gives for both phases of base; a row of 512
tokens takes 4.3 times the operations of one of 128. Expect: not trained with this code yet.
"""

from experiments import base


def get_config(arg=None):
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
