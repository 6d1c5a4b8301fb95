"""Can nine tenths of the steps be made with rows of a quarter of the length?

    python -m bert_jax.lab.sweep --study=experiments/studies/phase2.py:study_data --workdir=runs/phase2

Devlin et al. (2018, appendix A.2) make 90 % of the steps at length 128 and the rest at 512, to learn the positions;
they report no comparison.

Scaled down: 2 layers of 128 in place of 12 of 768, minutes of pretraining in place of days; rows of 16 and then of 64
tokens. SST-2, MRPC, TREC and WNUT17 on test sets; BLiMP, whose sentences have 10 tokens.

Orderings that may be expected: none is certain. Short rows see a quarter of the text in the same number of steps.

It has 70 runs, which take about 0.6 hours on two cores.
"""

from bert_jax.lab.study import Point, Study, choice
from experiments.studies.common import METRICS, SEEDS, TASKS, data_folder, fine_tuning, pretraining

LEARNED = {"model.position_embedding": "learned"}  # the question is whether few steps suffice for the late ones
LONG = {"data.sequence_length": 64, "data.max_predictions_per_sequence": 10} | LEARNED
LENGTHS = {
    "64 tokens": LONG,
    "16 tokens, then 64": {"data.sequence_length": 16, "data.max_predictions_per_sequence": 3} | LEARNED,
}
SECOND = Point({}, LONG | dict.fromkeys(("train.steps", "eval.every", "checkpoint.every"), 150))
RATE = Point({}, {"optimizer.learning_rate": 5e-4, "optimizer.warmup_steps": 15})


def get_study(argument: str = "") -> Study:
    folder = data_folder(argument)
    return Study(
        question="Can nine tenths of the steps be made with rows of a quarter of the length?",
        stages=(
            pretraining(folder, choice("rows", LENGTHS), SEEDS),
            pretraining(folder, (SECOND,), (RATE,), name="phase2", after="pretrain"),
            *fine_tuning(folder, after="phase2"),
        ),
        factor="rows",
        baseline="64 tokens",
        metrics={"phase2": METRICS["pretrain"]} | {task: METRICS[task] for task in TASKS},
    )
