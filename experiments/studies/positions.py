"""Positions that are learned, or fixed sines and cosines?

    python -m bert_jax.lab.sweep --study=experiments/studies/positions.py:study_data --workdir=runs/positions

Devlin et al. (2018) learn them. Vaswani et al. (2017, table 3, row E) find "nearly identical results" in translation.

Scaled down: 2 layers of 128 in place of 12 of 768, minutes of pretraining in place of days; SST-2, MRPC, TREC and
WNUT17 on test sets; BLiMP.

Orderings that may be expected: none at the end of a long training. After little training fixed positions may be ahead,
because the model need not first learn which tokens are neighbours.

It has 60 runs, which take about 0.5 hours on two cores.
"""

from bert_jax.lab.study import Study
from experiments.studies.common import one_factor

LEVELS = {kind: {"model.position_embedding": kind} for kind in ("learned", "sinusoidal")}


def get_study(argument: str = "") -> Study:
    return one_factor(argument, "Positions that are learned, or fixed sines and cosines?", "positions", LEVELS)
