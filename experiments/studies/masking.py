"""What should stand in the place of a token that is predicted: [MASK], the token itself, or a random one?

    python -m bert_jax.lab.sweep --study=experiments/studies/masking.py:study_data --workdir=runs/masking

Devlin et al. (2018), table 8, BERT-base on development sets; shares are of [MASK] / the same token / a random token:

                MNLI   NER, fine-tuned   NER, frozen features
    80/10/10    84.2   95.4              94.9
    100/0/0     84.3   94.9              94.0
    80/0/20     84.1   95.2              94.6
    80/20/0     84.4   95.2              94.7
    0/20/80     83.7   94.8              94.6
    0/0/100     83.6   94.9              94.6

Scaled down: 2 layers of 128 in place of 12 of 768, minutes of pretraining in place of days; SST-2 (500 and 5,000
examples), MRPC, TREC and WNUT17 (test sets).

Orderings that may be expected: the paper's differences are below one point, so most of what five seeds show here will
be "cannot tell". Masks that are never [MASK] (the last two rows) are worst in the paper. BLiMP is measured by hiding
tokens behind [MASK], which these two models have never seen: their BLiMP says nothing about grammar.

It has 180 runs, which take about 1.5 hours on two cores.
"""

from bert_jax.lab.study import Published, Study, choice
from experiments.studies.common import METRICS, SEEDS, data_folder, fine_tuning, pretraining

# [MASK] / the same token / a random token, in percent: MNLI, NER fine-tuned, NER on frozen features
PAPER = {
    (80, 10, 10): (84.2, 95.4, 94.9),
    (100, 0, 0): (84.3, 94.9, 94.0),
    (80, 0, 20): (84.1, 95.2, 94.6),
    (80, 20, 0): (84.4, 95.2, 94.7),
    (0, 20, 80): (83.7, 94.8, 94.6),
    (0, 0, 100): (83.6, 94.9, 94.6),
}


def get_study(argument: str = "") -> Study:
    folder = data_folder(argument)
    names = {shares: "/".join(map(str, shares)) for shares in PAPER}
    shares = {
        name: {"data.mask_share": mask / 100, "data.keep_share": keep / 100, "data.random_share": other / 100}
        for (mask, keep, other), name in names.items()
    }
    return Study(
        question="What should stand in the place of a token that is predicted?",
        stages=(pretraining(folder, choice("shown", shares), SEEDS), *fine_tuning(folder)),
        factor="shown",
        baseline="80/10/10",
        metrics=METRICS,
        published=Published(
            title="Masking: [MASK] / same / random, BERT-base, development sets",
            source="Devlin et al. (2018), table 8",
            columns=("MNLI", "NER fine-tuned", "NER frozen features"),
            rows={names[shares]: figures for shares, figures in PAPER.items()},
        ),
        expected=(("80/10/10", "0/0/100", "wnut17"), ("80/10/10", "0/20/80", "wnut17")),
    )
