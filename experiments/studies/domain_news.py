"""What does a small BERT gain on news from further pretraining on news, and what does it forget?

    python benchmarks/study_data.py --archives=../shared/data --to=study_data
    python -m bert_jax.lab.sweep --study=experiments/studies/domain_news.py:study_data --workdir=runs/domain_news

Gururangan et al. (2020) continue pretraining on the texts of a domain; what it costs on general text is a question of
every user (docs/domains.md), and so are the means against it: some general text among the rows (replay), and a lower
learning rate.

Scaled down: 2 layers of 128 in place of 12 of 768. The domain is BBC News, 1,525 articles, read about three times in
750 steps; the task is to tell its five sections from 100 or 500 labelled articles, whose first 62 tokens are read. The
MLM loss of both kinds of text is measured on documents that no run has seen. The baseline continues on Wikipedia and
books for as many steps.

Orderings that may be expected: news lowers the loss on news and raises that on general text; replay and a tenth of the
rate raise it less.

It has 65 runs, which take about 0.7 hours on two cores, by an estimate.
"""

from bert_jax.lab.study import Point, Stage, Study, choice, grid
from experiments.studies.common import SEEDS, data_folder, fine_tuning, pretraining

TASKS = ("bbc_100", "bbc_500")
SENTENCES = (Point({}, {"data.pairing": "none", "eval.blimp": ""}),)
RATE = 2.5e-3  # half of that before
LEVELS = {
    "same corpus": {"corpora.news.share": 0.0, "optimizer.learning_rate": RATE},
    "news": {"corpora.general.share": 0.0, "optimizer.learning_rate": RATE},
    "news, 30 % general": {"corpora.general.share": 0.3, "optimizer.learning_rate": RATE},
    "news, a tenth of the rate": {"corpora.general.share": 0.0, "optimizer.learning_rate": RATE / 10},
}
ON_NEWS, ON_GENERAL = "adapt news/mlm_loss", "adapt general/mlm_loss"


def get_study(argument: str = "") -> Study:
    folder = data_folder(argument, "news", *TASKS)
    further = {"data.corpus": "sample", "data.files": "", "data.pairing": "none", "eval.blimp": ""}
    further |= {"corpora.news.corpus": "jsonl", "corpora.news.files": str(folder / "news" / "*")}
    further |= {"corpora.general.files": str(folder / "corpus" / "*"), "optimizer.warmup_steps": 50}
    further |= dict.fromkeys(("train.steps", "eval.every", "checkpoint.every"), 750)
    base = f"experiments/study_pretraining.py:{folder}"
    return Study(
        question="What does further pretraining on news bring on news, and what does it cost elsewhere?",
        stages=(
            pretraining(folder, SENTENCES, SEEDS),
            Stage("adapt", base, grid(choice("more", LEVELS)), "pretrain", further),
            *fine_tuning(folder, tasks=TASKS, after="adapt"),
        ),
        factor="more",
        baseline="same corpus",
        metrics={"adapt": "eval.news/mlm_loss, eval.general/mlm_loss"} | dict.fromkeys(TASKS, "test.accuracy"),
        expected=(
            ("news", "same corpus", ON_NEWS),
            ("same corpus", "news", ON_GENERAL),
            ("news, 30 % general", "news", ON_GENERAL),
            ("news, a tenth of the rate", "news", ON_GENERAL),
            *(("news", "same corpus", task) for task in TASKS),
        ),
    )
