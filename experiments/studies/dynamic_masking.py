"""New masks in each epoch, or masks that are drawn once when the corpus is prepared?

    python -m bert_jax.lab.sweep --study=experiments/studies/dynamic_masking.py:study_data \\
        --workdir=runs/dynamic_masking

Devlin et al. (2018) draw ten copies of the corpus with fixed masks (`data.dupe_factor`). Liu et al. (2019, RoBERTa,
table 1) find dynamic masks equal or slightly better.

Scaled down: 2 layers of 128 in place of 12 of 768, minutes of pretraining in place of days; SST-2, MRPC, TREC and
WNUT17 on test sets; BLiMP. To let masks repeat at all, the corpus is a few files and one copy of it, which is read
several times.

Orderings that may be expected: dynamic masks at least as good. Where less than one epoch is read, there can be no
difference.

It has 60 runs, which take about 0.5 hours on two cores.
"""

from bert_jax.lab.study import Study
from experiments.studies.common import data_folder, one_factor


def get_study(argument: str = "") -> Study:
    few = {"data.files": str(data_folder(argument) / "corpus" / "00*")}
    levels = {"static": few | {"data.masking": "static", "data.dupe_factor": 1}, "dynamic": few}
    return one_factor(argument, "New masks in each epoch, or masks that are drawn once?", "masks", levels)
