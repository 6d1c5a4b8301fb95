"""The recipe of fine-tuning that the task experiments start from (Devlin et al. 2018, section 4.1 and appendix A.3).

Three epochs in batches of 32 with warm-up over a tenth of the steps and linear decay. Adam's bias correction is on:
without it small sets often fail to train (Mosbach et al. 2020, arXiv:2006.04884). Learning rates to try: 5e-5, 3e-5 and
2e-5 for base, 1e-4 to 3e-4 for the small sizes. This file is not an experiment by itself.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from experiments import base


def get_config(task: str, metric: str) -> ConfigDict:
    """Returns the config of a task; the best checkpoint is the one with the highest `metric`."""
    config = base.get_config()
    config.task = task
    config.data.packing = placeholder(bool)  # None: several texts share a row where it saves time
    config.optimizer.learning_rate = 5e-5
    config.optimizer.schedule = "hf"
    config.optimizer.warmup_share = 0.1
    config.optimizer.decay_steps = 0
    config.optimizer.bias_correction = True
    config.train.epochs = 3.0
    config.train.batch_size = 32
    config.eval.batch_size = 32
    config.eval.every = placeholder(int)
    config.eval.at_start = False
    config.checkpoint.every = placeholder(int)
    config.checkpoint.keep = 1
    config.checkpoint.best_metric = metric
    config.checkpoint.best_mode = "max"
    return config
