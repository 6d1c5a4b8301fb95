"""Which layers hold what a tagger needs, if BERT itself is not trained any more?

    python -m bert_jax.lab.sweep --study=experiments/studies/layers.py:study_data --workdir=runs/layers

Devlin et al. (2018), table 7, BERT-base on CoNLL-2003, F1 on the development set; but for the first row the model is
frozen, and two layers of a BiLSTM of 768 read its features:

    fine-tuning                     96.4
    embeddings                      91.0
    second-to-last hidden           95.6
    last hidden                     94.9
    weighted sum of last four       95.9
    concatenation of last four      96.1
    weighted sum of all 12          95.5

Scaled down: 4 layers of 128 in place of 12 of 768, minutes of pretraining in place of days; WNUT17 (test set) in place
of CoNLL-2003; a BiLSTM of 128.

Orderings that may be expected: fine-tuning is better than any frozen features; of these, the embeddings are worst, if
the model has learned to use context at all.

It has 40 runs, which take about 0.4 hours on two cores.
"""

from bert_jax.lab.study import Published, Study, choice
from experiments.studies.common import SEEDS, data_folder, fine_tuning, pretraining

# Our name of the features: that of head.layers, F1 in the paper
PAPER = {
    "embeddings": ("embeddings", 91.0),
    "second to last": ("second_to_last", 95.6),
    "last": ("last", 94.9),
    "weighted last four": ("last4_weighted", 95.9),
    "concatenated last four": ("last4_concat", 96.1),
    "weighted all": ("all_weighted", 95.5),
}
FROZEN = {
    "optimizer.freeze": "^(embeddings|encoder|pooler)/",
    "model.hidden_dropout": 0.0,  # features are those of the model at work
    "model.attention_dropout": 0.0,
    "head.lstm_layers": 2,
    "optimizer.learning_rate": 2e-3,
}


def get_study(argument: str = "") -> Study:
    folder = data_folder(argument)
    features = {name: FROZEN | {"head.layers": layers} for name, (layers, _) in PAPER.items()}
    levels = choice("features", {"fine-tuned": {}} | features)
    four_layers = choice("depth", {"4": {"model.num_hidden_layers": 4}})
    return Study(
        question="Which layers hold what a tagger needs, if BERT itself is not trained any more?",
        stages=(pretraining(folder, four_layers, SEEDS), *fine_tuning(folder, levels, tasks=["wnut17"])),
        factor="features",
        baseline="fine-tuned",
        metrics={"wnut17": "test.entity_f1"},
        published=Published(
            title="Feature-based tagging with BERT-base, CoNLL-2003, development set",
            source="Devlin et al. (2018), table 7",
            columns=("F1",),
            rows={"fine-tuned": (96.4,)} | {name: (figure,) for name, (_, figure) in PAPER.items()},
        ),
        expected=[("fine-tuned", name, "wnut17") for name in PAPER]
        + [(name, "embeddings", "wnut17") for name in PAPER if name != "embeddings"],
    )
