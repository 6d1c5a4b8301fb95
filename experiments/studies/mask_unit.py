"""Should pieces of words, whole words or spans of words be hidden?

    python -m bert_jax.lab.sweep --study=experiments/studies/mask_unit.py:study_data --workdir=runs/mask_unit

google-research/bert (README), BERT-large uncased on SQuAD 1.1, exact match and F1: pieces 84.4 and 90.9, whole words
86.7 and 92.8. Joshi et al. (2020, SpanBERT) find spans better than both for questions and coreference.

Scaled down: 2 layers of 128 in place of 12 of 768, minutes of pretraining in place of days; SST-2, MRPC, TREC and
WNUT17 on test sets; BLiMP.

Orderings that may be expected: whole words and spans are harder to predict, so their training loss is higher; it says
nothing about the model. On these tasks and after so little training, no ordering is certain.

It has 90 runs, which take about 0.7 hours on two cores.
"""

from bert_jax.lab.study import Published, Study
from experiments.studies.common import one_factor

LEVELS = {unit: {"data.mask_unit": unit} for unit in ("token", "word", "span")}
PUBLISHED = Published(
    title="BERT-large uncased on SQuAD 1.1",
    source="google-research/bert, README",
    columns=("EM", "F1"),
    rows={"token": (84.4, 90.9), "word": (86.7, 92.8)},
)


def get_study(argument: str = "") -> Study:
    question = "Should pieces of words, whole words or spans of words be hidden?"
    return one_factor(argument, question, "unit", LEVELS, published=PUBLISHED)
