"""Answers to questions, as spans of a text: SQuAD 1.1 or, behind the colon, 2.0, or files of your own in their form.

    python -m bert_jax.main --config=experiments/squad.py:v1 --config.init_from=ckpts/bert-base \\
        --config.data.train=train-v1.1.json --config.data.validation=dev-v1.1.json
    python -m bert_jax.main --config=experiments/squad.py:v2 --config.init_from=ckpts/bert-base \\
        --config.data.train=train-v2.0.json --config.data.validation=dev-v2.0.json

The version only chooses the recipe: whether there are questions without an answer follows from the data. If there are,
every evaluation on validation searches the threshold above which "no answer" is given, and saves it with the model.

Recipe: windows of 384 tokens, 128 apart; v1 two epochs of 3e-5 in batches of 12 (google-research/bert; the paper has
three of 5e-5 and 32), v2 two of 5e-5 in batches of 48 (the paper). Hardware and time: hours on one 16 GB GPU. Expect on
the development sets: BERT-base 81.2 exact match and 88.4 F1 in v1 (google-research/bert), about 76.6 and 79.2 in v2
(the Transformers project's run); BERT-large 84.1 and 90.9, 78.7 and 81.9 (Devlin et al. 2018, tables 2 and 3).
"""

from ml_collections import ConfigDict

from bert_jax.config import choose
from experiments import finetune

RECIPES = {"v1": (3e-5, 12), "v2": (5e-5, 48)}


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config for the version `arg`: v1 or v2."""
    version = choose(arg, RECIPES, "squad")
    config = finetune.get_config("span_qa", "f1")
    config.data.sequence_length = 384
    config.data.window_stride = 128
    config.data.max_query_length = 64
    config.optimizer.learning_rate, config.train.batch_size = RECIPES[version]
    config.train.epochs = 2.0
    return config
