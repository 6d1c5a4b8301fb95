"""Which share of the tokens should be predicted?

    python -m bert_jax.lab.sweep --study=experiments/studies/mask_rate.py:study_data --workdir=runs/mask_rate

Devlin et al. (2018) predict 15 % and give no comparison. Wettig et al. (2023) find 40 % better than 15 % for a model of
BERT-large's size, and lower rates better for smaller models.

Scaled down: 2 layers of 128 in place of 12 of 768, minutes of pretraining in place of days; SST-2, MRPC, TREC and
WNUT17 on test sets; BLiMP.

Orderings that may be expected: none is certain. A higher rate gives more predictions per step and less context for
each; with so few steps the first may count for more.

It has 120 runs, which take about 1.0 hours on two cores.
"""

from bert_jax.lab.study import Study
from experiments.studies.common import one_factor

LENGTH = 32  # data.sequence_length of study_pretraining.py
RATES = (0.15, 0.2, 0.3, 0.4)


def get_study(argument: str = "") -> Study:
    levels = {
        f"{rate:.0%}": {"data.mask_rate": rate, "data.max_predictions_per_sequence": round(rate * LENGTH)}
        for rate in RATES
    }
    return one_factor(argument, "Which share of the tokens should be predicted?", "mask rate", levels)
