"""Muon, AdamW or LAMB, and which shape of the learning rate?

    python -m bert_jax.lab.sweep --study=experiments/studies/optimizer.py:study_data --workdir=runs/optimizer

Devlin et al. (2018) use Adam with decoupled weight decay and a linear decay. You et al. (2020) need LAMB for batches of
thousands of sequences, and find the quality of small batches kept.

Scaled down: 2 layers of 128 in place of 12 of 768, minutes of pretraining in place of days; batches of 128;
SST-2, MRPC, TREC and WNUT17 on test sets; BLiMP.

Orderings that may be expected: a learning rate that decays is better than a constant one. At this batch size nothing
speaks for LAMB. Muon learns faster per step (Jordan et al. 2024), of which so short a training shows a lot.

It has 150 runs, which take about 1.3 hours on two cores.
"""

from bert_jax.lab.study import Study
from experiments.studies.common import ADAMW, one_factor

LEVELS = {
    "AdamW, linear": ADAMW,
    "AdamW, cosine": ADAMW | {"optimizer.schedule": "cosine"},
    "AdamW, constant": ADAMW | {"optimizer.schedule": "constant"},
    "Muon, linear": {},
    "LAMB, linear": {"optimizer.name": "lamb", "optimizer.learning_rate": 1e-2},
}


def get_study(argument: str = "") -> Study:
    expected = [("AdamW, linear", "AdamW, constant", "pretrain"), ("Muon, linear", "AdamW, linear", "pretrain")]
    question = "Muon, AdamW or LAMB, and which shape of the learning rate?"
    return one_factor(argument, question, "optimizer", LEVELS, expected=expected)
