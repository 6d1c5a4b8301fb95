"""Positions that are learned, fixed sines and cosines, or rotations?

    python -m bert_jax.lab.sweep --study=experiments/studies/positions.py:study_data --workdir=runs/positions

Devlin et al. (2018) learn them. Vaswani et al. (2017, table 3, row E) find "nearly identical results" in translation.
Su et al. (2021, RoFormer) rotate queries and keys by their positions, and reach BERT's loss in fewer steps.

Scaled down: 2 layers of 128 in place of 12 of 768, minutes of pretraining in place of days; SST-2, MRPC, TREC and
WNUT17 on test sets; BLiMP.

Orderings that may be expected: none at the end of a long training. After little training fixed positions may be ahead,
because the model need not first learn which tokens are neighbours, and rotations further ahead.

It has 90 runs, which take about 0.7 hours on two cores.
"""

from bert_jax.lab.study import Study
from experiments.studies.common import one_factor

LEVELS = {kind: {"model.position_embedding": kind} for kind in ("learned", "sinusoidal", "rotary")}


def get_study(argument: str = "") -> Study:
    question = "Positions that are learned, fixed sines and cosines, or rotations?"
    return one_factor(argument, question, "positions", LEVELS)
