"""Does the approximation of GELU by a tanh matter?

    python -m bert_jax.lab.sweep --study=experiments/studies/gelu.py:study_data --workdir=runs/gelu

Hendrycks and Gimpel (2016) give both forms; google-research/bert has the tanh, PyTorch's BERT the error function. They
differ by less than 0.001 everywhere, and no source reports a difference in quality.

Scaled down: 2 layers of 128 in place of 12 of 768, minutes of pretraining in place of days; SST-2, MRPC, TREC and
WNUT17 on test sets; BLiMP.

Orderings that may be expected: none. A difference here would be one of the seeds: this study shows what "no effect"
looks like.

It has 60 runs, which take about 0.5 hours on two cores.
"""

from bert_jax.lab.study import Study
from experiments.studies.common import one_factor

LEVELS = {"tanh": {"model.hidden_act": "gelu_tanh"}, "erf": {"model.hidden_act": "gelu"}}


def get_study(argument: str = "") -> Study:
    return one_factor(argument, "Does the approximation of GELU by a tanh matter?", "GELU", LEVELS)
