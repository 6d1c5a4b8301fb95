"""LayerNorm after the sum, as in BERT, or before each sub-layer?

    python -m bert_jax.lab.sweep --study=experiments/studies/norm.py:study_data --workdir=runs/norm

Devlin et al. (2018) normalise after the sum. Xiong et al. (2020) show that before the sub-layer the gradients are well
scaled at the start, and that warm-up is not needed then.

Scaled down: 2 layers of 128 in place of 12 of 768, minutes of pretraining in place of days; SST-2, MRPC, TREC and
WNUT17 on test sets; BLiMP. The optimizer is AdamW, whose warm-up it is about.

Orderings that may be expected: without warm-up, "before" trains and "after" may not. With warm-up and two layers,
none.

It has 120 runs, which take about 1.0 hours on two cores.
"""

from bert_jax.lab.study import Study
from experiments.studies.common import ADAMW, one_factor

NO_WARMUP = ADAMW | {"optimizer.warmup_steps": 0}
LEVELS = {
    "after": ADAMW,
    "before": ADAMW | {"model.norm": "pre"},
    "after, no warm-up": NO_WARMUP,
    "before, no warm-up": {"model.norm": "pre"} | NO_WARMUP,
}


def get_study(argument: str = "") -> Study:
    question = "LayerNorm after the sum, as in BERT, or before each sub-layer?"
    return one_factor(argument, question, "LayerNorm", LEVELS)
