"""The right ending of a context, out of several: SWAG, or with other columns CODAH and the like.

    python -m bert_jax.main --config=experiments/multiple_choice.py --config.init_from=ckpts/bert-base \\
        --config.data.train=train.csv --config.data.validation=val.csv

The columns are SWAG's: sent1 is the context, sent2 the beginning of every ending (`--config.data.text_pair=` if
there is none), ending0 … ending3 the choices, label the number of the right one, from 0. In other data
`data.choices` may also name one column of lists.

Recipe: three epochs of 2e-5 in batches of 16 questions, each with one row per choice. Hardware and time: SWAG
(73,546 questions) takes hours on one 16 GB GPU. Expect on SWAG's development set: BERT-base 81.6 % accuracy, BERT-large
86.6 (Devlin et al. 2018, table 4).
"""

from ml_collections import ConfigDict

from experiments import finetune


def get_config() -> ConfigDict:
    config = finetune.get_config("multiple_choice", "accuracy")
    config.data.text, config.data.text_pair = "sent1", "sent2"
    config.data.choices = "ending0,ending1,ending2,ending3"
    config.optimizer.learning_rate = 2e-5
    config.train.batch_size = 16
    return config
