"""May sequences that share a row see each other?

    python -m bert_jax.lab.sweep --study=experiments/studies/packing.py:study_data --workdir=runs/packing

Krell et al. (2021) pack several sequences into a row with a mask between them and find that BERT learns the same as
from padded rows, in half of the time. Without the mask tokens attend to texts that have nothing to do with theirs.

Scaled down: 2 layers of 128 in place of 24 of 1,024, minutes of pretraining in place of days; half of the pairs are cut
short, so that there is something to pack. All levels take the same number of steps; a packed step holds more pairs than
a padded one. SST-2, MRPC, TREC and WNUT17 on test sets; BLiMP.

Orderings that may be expected: isolated is at least as good as padded, since it sees more text per step. Leaking is not
better than isolated.

It has 90 runs, which take about 1.1 hours on two cores.
"""

from bert_jax.lab.study import Study
from experiments.studies.common import one_factor

SHORT = {
    "data.sequence_length": 64,
    "data.max_predictions_per_sequence": 10,
    "data.short_sequence_rate": 0.5,
}
LEVELS = {
    "padded": SHORT,
    "isolated": SHORT | {"data.packing": True},
    "leaking": SHORT | {"data.packing": True, "data.isolated": False},
}


def get_study(argument: str = "") -> Study:
    return one_factor(argument, "May sequences that share a row see each other?", "rows", LEVELS)
