"""How many pieces should the vocabulary have?

    python -m bert_jax.lab.sweep --study=experiments/studies/vocabulary.py:study_data --workdir=runs/vocabulary

Devlin et al. (2018) have 30,522 pieces for 3.3 billion words and compare no others.

Scaled down: 2 layers of 128 in place of 12 of 768, minutes of pretraining in place of days; SST-2, MRPC, TREC and
WNUT17 on test sets; BLiMP. Training losses of different vocabularies cannot be compared: they are per piece.

Orderings that may be expected: none is certain. Small vocabularies cut words into pieces that have seen more text;
large ones have longer rows' worth of words in the same number of tokens, and many rows of the table are hardly trained.

It has 120 runs, which take about 1.0 hours on two cores.
"""

from bert_jax.lab.study import Study
from experiments.studies.common import one_factor

SIZES = (4_000, 2_000, 8_000, 16_000)


def get_study(argument: str = "") -> Study:
    levels = {f"{size:,}": {"data.vocab_size": size} for size in SIZES}
    return one_factor(argument, "How many pieces should the vocabulary have?", "pieces", levels)
