"""A BERT that is there → a BERT of your domain: pretraining on its texts, with some general text against forgetting.

    python -m bert_jax.main --config=experiments/domain.py:dapt --workdir=runs/dapt \\
        --config.init_from=ckpts/bert-base --config.corpora.domain.files='reports/*.txt' \\
        --config.corpora.general.files='wikipedia/*.txt' --config.corpora.general.share=0.2
    python -m bert_jax.main --config=experiments/domain.py:tapt --workdir=runs/tapt --config.init_from=runs/dapt \\
        --config.corpora.task.files=train.jsonl --config.corpora.task.text_field=review
    python -m bert_jax.main --config=experiments/classify.py --workdir=runs/task --config.init_from=runs/tapt …

`dapt` (domain-adaptive) reads the domain; here a fifth of the rows are general text, without which the model forgets
it. `tapt` (task-adaptive) reads the texts of the task itself, without their labels, for 100 epochs. Gururangan et al.
(2020) find both useful, and one after the other most.

`--config.extend.words=2000` first gives the vocabulary a token for each of so many words of the domain.
`--config.optimizer.layer_decay=0.9` holds the lower layers back. docs/domains.md says what to choose, and how the loss
on domain and general texts before and after is shown. experiments/studies/domain_adaptive.py makes all these runs in
one command.

Hardware and time: a BERT-base needs a GPU and hours; a small one an hour on two cores. Expect: docs/RESULTS.md.
"""

from ml_collections import ConfigDict

from bert_jax.config import choose
from bert_jax.entries import add_entry
from experiments import base


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config for `arg`: dapt or tapt."""
    kind = choose(arg, ("dapt", "tapt"), "domain")
    config = base.get_config()
    config.data.pairing = "none"
    config.data.validation_share = 0.05  # of each corpus; of 1 % a few documents may have none
    config.optimizer.learning_rate = 5e-5
    config.optimizer.schedule = "hf"
    config.optimizer.warmup_share = 0.06
    config.optimizer.decay_steps = 0
    config.optimizer.bias_correction = True
    config.train.batch_size = 64
    config.eval.every = 1_000
    config.checkpoint.every = 1_000
    config.checkpoint.keep = 1
    if kind == "dapt":
        config.train.steps = 12_500
        add_entry(config, "corpora.domain")
        config.extend.corpora = "domain"
    else:
        config.train.epochs = 100.0
        add_entry(config, "corpora.task", corpus="jsonl")
    return config
