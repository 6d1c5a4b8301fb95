"""Does it help to pretrain further on texts of the task's domain, or on the task's own texts?

    python -m bert_jax.lab.sweep --study=experiments/studies/domain_adaptive.py:study_data \\
        --workdir=runs/domain_adaptive

Gururangan et al. (2020) continue the pretraining of RoBERTa on texts of the domain (DAPT), on the unlabelled texts of
the task (TAPT), or on both; all three help on most of eight tasks, the last one most, and least where the domain is
close to that of the first corpus.

Scaled down: 2 layers of 128 in place of 12 of 768. The domain is film reviews (IMDB, 50,000 without labels), the task
SST-2 with 500 and 5,000 labels, its texts those of the 67,349 training phrases. The baseline continues on Wikipedia and
books for as many steps. DAPT + TAPT is one corpus of both here, not one after the other. TREC, of another domain, is
the control.

Orderings that may be expected: DAPT and TAPT are better than the baseline on SST-2, more so with 500 labels; on TREC
they are not.

It has 85 runs, which take about 0.9 hours on two cores.
"""

from bert_jax.lab.study import Point, Study, choice
from experiments.studies.common import METRICS, SEEDS, data_folder, fine_tuning, pretraining

TASKS = ("sst2_500", "sst2_5000", "trec")
# Half as long as before, at half the rate
FURTHER = Point({}, dict.fromkeys(("train.steps", "eval.every", "checkpoint.every"), 500))
RATE = Point({}, {"optimizer.learning_rate": 2.5e-3, "optimizer.warmup_steps": 50})
SENTENCES = (Point({}, {"data.pairing": "none"}),)  # a text of SST-2 has no second sentence


def get_study(argument: str = "") -> Study:
    folder = data_folder(argument)
    reviews, texts = str(folder / "reviews" / "*"), str(folder / "sst2_texts" / "*")
    corpora = {"DAPT": reviews, "TAPT": texts, "DAPT + TAPT": f"{reviews},{texts}"}
    levels = {name: {"data.corpus": "jsonl", "data.files": files} for name, files in corpora.items()}
    return Study(
        question="Does it help to pretrain further on texts of the task's domain, or on the task's own texts?",
        stages=(
            pretraining(folder, SENTENCES, SEEDS),
            pretraining(
                folder,
                SENTENCES,
                (FURTHER,),
                (RATE,),
                choice("more", {"same corpus": {}} | levels),
                name="adapt",
                after="pretrain",
            ),
            *fine_tuning(folder, tasks=TASKS, after="adapt"),
        ),
        factor="more",
        baseline="same corpus",
        metrics={"adapt": METRICS["pretrain"]} | {task: METRICS[task] for task in TASKS},
        expected=[(name, "same corpus", task) for name in corpora for task in TASKS[:2]],
    )
