"""A small BERT for all purposes that learns the relations between tokens of a large one, on text without labels.

    python -m bert_jax.main --config=experiments/distill.py --config.distillation.teacher=ckpts/bert-base \\
        --config.data.files='corpus/*.txt' --workdir=runs/small
    python -m bert_jax.main --config=experiments/classify.py --config.init_from=runs/small …

The student, by default 3 layers of 256, has the teacher's vocabulary; `--config.model.…` gives it another shape. It
learns the relations of the teacher's last layer between queries, between keys and between values (MiniLMv2, Wang et al.
2021), and nothing else: its MLM head stays as initialised. For a teacher with 24 layers the paper takes one of the
upper middle: `--config.distillation.teacher_layer=21`. To distil a task, add a fine-tuned teacher to any experiment of
fine-tuning: docs/distilling.md.

Hardware and time: the teacher's forward pass comes on top of the student's step; with a student of 3 × 256 and a
teacher of 6 × 384 it is most of it.
"""

from ml_collections import ConfigDict

from experiments import base


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config."""
    config = base.get_config(arg or "mini")
    config.model.num_hidden_layers = 3
    config.data.corpus = "text"
    config.data.pairing = "none"
    config.data.packing = True
    config.distillation.relations = 1.0
    config.distillation.soft = 0.0
    config.distillation.hard = 0.0
    config.optimizer.learning_rate = 6e-4
    config.optimizer.warmup_steps = 1_000
    config.optimizer.b2 = 0.98
    config.train.steps = 20_000
    config.train.batch_size = 64
    config.eval.every = 2_000
    config.eval.max_examples = 2_000
    config.checkpoint.every = 2_000
    config.checkpoint.best_metric = "relations_loss"
    return config
