"""How long should one pretrain, and does the masked language model learn more slowly than a left-to-right one?

    python -m bert_jax.lab.sweep --study=experiments/studies/steps.py:study_data --workdir=runs/steps

Devlin et al. (2018), figure 5: BERT-base gains almost 1 point on MNLI from 500,000 to 1,000,000 steps. The masked
language model needs more steps than the left-to-right one, because it predicts 15 % of the tokens, but is better in
accuracy almost from the beginning.

Scaled down: 2 layers of 128 in place of 12 of 768, minutes of pretraining in place of days; 250 to 2,000 steps in
place of 200,000 to 1,000,000, each with a schedule of its own. SST-2, MRPC, TREC and WNUT17 on test sets; BLiMP. Here
the left-to-right model predicts 15 % of the tokens too.

Orderings that may be expected: more steps are better, at BLiMP and at the tasks with many examples; at equal steps
the masked language model is better at entities.

It has 240 runs, which take about 1.9 hours on two cores.
"""

from bert_jax.lab.study import Study
from experiments.studies.common import one_factor

STEPS = (1_000, 250, 500, 2_000)
MODELS = {"MLM": {}, "LTR": {"model.causal": True}}


def get_study(argument: str = "") -> Study:
    levels = {
        f"{name}, {steps:,}": options | {"data.pairing": "none"} | _steps(steps)
        for name, options in MODELS.items()
        for steps in STEPS
    }
    expected = [(f"{name}, 2,000", f"{name}, 250", task) for name in MODELS for task in ("pretrain", "wnut17")]
    expected += [(f"MLM, {steps:,}", f"LTR, {steps:,}", "wnut17") for steps in STEPS]
    question = "How long should one pretrain, and does the masked language model learn more slowly?"
    return one_factor(argument, question, "steps", levels, expected=expected)


def _steps(steps: int) -> dict[str, int]:
    names = ("train.steps", "eval.every", "checkpoint.every")
    return dict.fromkeys(names, steps) | {"optimizer.warmup_steps": steps // 10}
