"""Texts with pictures, sounds or features of regions: classes, or pretraining on both.

    python benchmarks/digits_questions.py --to=digits
    python -m bert_jax.main --config=experiments/visual.py:classify --workdir=runs/digits \\
        --config.data.train=digits/train.jsonl --config.data.validation=digits/validation.jsonl \\
        --config.data.text=question --config.data.label=answer --config.data.image=image \\
        --config.data.vocab_file=digits/vocab.txt --config.model.size=tiny \\
        --config.image.height=8 --config.image.width=8 --config.image.channels=1 --config.image.patch_size=2

`visual.py:pretrain` learns from the same table without labels: masked tokens, masked patches, and whether text and
picture belong together; `--config.init_from=` of a BERT, or of such a run, starts from its parameters.
`--config.data.modalities=text` or `vectors` leaves out the other half of every row. docs/images_and_sound.md explains
files, sounds and features.

Hardware and time: the digits take two minutes on two cores; a BERT-base with pictures of 196 patches needs a GPU.
Expect: with this recipe little more than the question alone gives. The digits of docs/RESULTS.md are by that of
experiments/studies/visual.py, with Muon.
"""

from ml_collections import ConfigDict

from bert_jax.config import choose
from experiments import finetune

TASKS = {"classify": ("classification", "accuracy"), "pretrain": ("visual_pretraining", "loss")}


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config for `arg`: classify or pretrain."""
    kind = choose(arg, TASKS, "visual")
    config = finetune.get_config(*TASKS[kind])
    if kind == "pretrain":
        config.data.packing = False
        config.checkpoint.best_mode = "min"
        config.optimizer.learning_rate = 1e-4
    return config
