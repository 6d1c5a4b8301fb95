"""Next sentence prediction, sentence order, or neither?

    python -m bert_jax.lab.sweep --study=experiments/studies/sentence_order.py:study_data --workdir=runs/sentence_order

Devlin et al. (2018, table 5), BERT-base: NSP against none is MNLI-m 84.4 and 83.9, QNLI 88.4 and 84.9, MRPC 86.7 and
86.5, SST-2 92.7 and 92.6, SQuAD F1 88.5 and 87.9. Liu et al. (2019, RoBERTa) find no loss without NSP if rows are full
sentences, as here (`data.pairing=none`). Lan et al. (2020, ALBERT) find sentence order better than both.

Scaled down: 2 layers of 128 in place of 12 of 768, minutes of pretraining in place of days; SST-2, MRPC, TREC and
WNUT17 on test sets; BLiMP.

Orderings that may be expected: none is certain at this size. The task of pairs is MRPC.

It has 90 runs, which take about 0.7 hours on two cores.
"""

from bert_jax.lab.study import Published, Study
from experiments.studies.common import one_factor

LEVELS = {"NSP": {}, "SOP": {"data.pairing": "sop"}, "none": {"data.pairing": "none"}}
PUBLISHED = Published(
    title="Ablation of NSP, BERT-base, development sets",
    source="Devlin et al. (2018), table 5",
    columns=("MNLI-m", "QNLI", "MRPC", "SST-2", "SQuAD F1"),
    rows={"NSP": (84.4, 88.4, 86.7, 92.7, 88.5), "none": (83.9, 84.9, 86.5, 92.6, 87.9)},
)


def get_study(argument: str = "") -> Study:
    question = "Next sentence prediction, sentence order, or neither?"
    return one_factor(argument, question, "second sentence", LEVELS, published=PUBLISHED)
