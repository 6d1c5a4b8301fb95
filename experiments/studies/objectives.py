"""What does next sentence prediction add, and what is lost if the model reads from left to right only?

    python -m bert_jax.lab.sweep --study=experiments/studies/objectives.py:study_data --workdir=runs/objectives

Devlin et al. (2018), table 5, BERT-base on development sets:

                   MNLI-m  QNLI   MRPC   SST-2  SQuAD F1
    BERT           84.4    88.4   86.7   92.7   88.5
    no NSP         83.9    84.9   86.5   92.6   87.9
    LTR, no NSP    82.1    84.3   77.5   92.1   77.8
      + BiLSTM     82.1    84.1   75.7   91.6   84.9

The BiLSTM is a new one, in fine-tuning only, on top of the model: the stages `…_bilstm`, of all objectives.

Scaled down: 2 layers of 128 in place of 12 of 768, minutes of pretraining in place of days; SST-2 (500 and 5,000
examples), MRPC, TREC and WNUT17 in place of the tasks above, on test sets; BLiMP beside them.

Orderings that may be expected: a model that reads both ways finds more entities than one that reads from left to right
(`wnut17`), since the first words of a sentence have no context on their left. NSP helps with pairs of sentences in the
paper; after so little training do not expect to see it. SST-2 hardly differs in the paper either.

It has 135 runs, which take about 1.0 hours on two cores.
"""

from bert_jax.lab.study import Point, Published, Study, choice
from experiments.studies.common import METRICS, SEEDS, data_folder, fine_tuning, pretraining

OBJECTIVES = {
    "MLM + NSP": {},
    "MLM": {"data.pairing": "none"},
    "LTR": {"data.pairing": "none", "model.causal": True},
}
BILSTM = Point({}, {"head.lstm_layers": 1})
WITH_BILSTM = ("mrpc", "trec", "wnut17")


def get_study(argument: str = "") -> Study:
    folder = data_folder(argument)
    objectives = choice("objective", OBJECTIVES)
    return Study(
        question="What does next sentence prediction add, and what is lost by reading from left to right only?",
        stages=(
            pretraining(folder, objectives, SEEDS),
            *fine_tuning(folder),
            *fine_tuning(folder, (BILSTM,), tasks=WITH_BILSTM, suffix="_bilstm"),
        ),
        factor="objective",
        baseline="MLM + NSP",
        metrics=METRICS | {f"{task}_bilstm": METRICS[task] for task in WITH_BILSTM},
        published=Published(
            title="Ablation of the objectives, BERT-base, development sets",
            source="Devlin et al. (2018), table 5",
            columns=("MNLI-m", "QNLI", "MRPC", "SST-2", "SQuAD F1"),
            rows={
                "MLM + NSP": (84.4, 88.4, 86.7, 92.7, 88.5),
                "MLM": (83.9, 84.9, 86.5, 92.6, 87.9),
                "LTR": (82.1, 84.3, 77.5, 92.1, 77.8),
                "LTR + BiLSTM": (82.1, 84.1, 75.7, 91.6, 84.9),
            },
        ),
        expected=(("MLM", "LTR", "wnut17"), ("MLM + NSP", "LTR", "wnut17")),
    )
