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

For a domain of your own make a folder of these, and give it in the place of study_data:

    model/      checkpoint or workdir of the BERT to start from
    domain/     texts of the domain, any number of files; documents stand between blank lines
    general/    texts like those that the BERT was pretrained on
    task/       train.jsonl, validation.jsonl and test.jsonl with `text` and `label`

Then the model is used as it is, after DAPT, and after DAPT with 1,000 new words in its vocabulary; each of these
without and with TAPT; and every one of the six models is fine-tuned with five seeds. The mean of the five is one value
of a model: for intervals and verdicts, give the stage dapt the axis SEEDS. That stage also reports the MLM loss of the
domain and, in the page of each run, that of general texts before and after (docs/domains.md).
"""

from pathlib import Path

from bert_jax.config import UserError
from bert_jax.lab.study import Point, Stage, Study, choice, grid
from experiments.studies.common import METRICS, SEEDS, data_folder, fine_tuning, pretraining

TASKS = ("sst2_500", "sst2_5000", "trec")
# Half as long as before, at half the rate
FURTHER = Point({}, dict.fromkeys(("train.steps", "eval.every", "checkpoint.every"), 750))
RATE = Point({}, {"optimizer.learning_rate": 2.5e-3, "optimizer.warmup_steps": 50})
SENTENCES = (Point({}, {"data.pairing": "none"}),)  # a text of SST-2 has no second sentence


# The model as it was, as a run of its own: it is evaluated like the others, and what follows can start from it.
UNCHANGED = {
    "train.steps": 1,
    "train.epochs": None,
    "optimizer.learning_rate": 0.0,
    "eval.every": 1,
    "checkpoint.every": 1,
}


def get_study(argument: str = "") -> Study:
    """Returns the study of the folder of the studies' data, or of one of your own that has a model."""
    own = Path(argument or "study_data").expanduser().absolute()
    if (own / "model").exists():
        return _of_own_domain(own)
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


def _of_own_domain(folder: Path) -> Study:
    files = {split: folder / "task" / f"{split}.jsonl" for split in ("train", "validation", "test")}
    if missing := [p for p in (folder / "domain", folder / "general", *files.values()) if not p.exists()]:
        raise UserError(f"{missing[0]} is missing; the docstring of domain_adaptive.py says what {folder} must have")
    corpora = {
        "corpora.domain.files": str(folder / "domain" / "*"),
        "corpora.general.files": str(folder / "general" / "*"),
        "corpora.general.share": 0.2,
    }
    start = {"init_from": str(folder / "model"), "data.prepared": str(folder / "prepared")}
    domain = {"as it is": UNCHANGED, "DAPT": {}, "DAPT, new words": {"extend.words": 1_000}}
    texts = {"corpora.task.files": str(files["train"]), "data.prepared": str(folder / "prepared")}
    labelled = {f"data.{split}": str(path) for split, path in files.items()}
    further = {"no": UNCHANGED, "TAPT": {}}
    return Study(
        question=f"Does it help to pretrain {folder / 'model'} further on the domain, or on the task's own texts?",
        stages=(
            Stage("dapt", "experiments/domain.py:dapt", grid(choice("domain", domain)), overrides=start | corpora),
            Stage("tapt", "experiments/domain.py:tapt", grid(choice("TAPT", further)), "dapt", texts),
            Stage("task", "experiments/classify.py", grid(SEEDS), "tapt", labelled),
        ),
        factor="domain",
        baseline="as it is",
        metrics={"dapt": "eval.domain/mlm_loss", "task": "test.accuracy"},
        expected=(("DAPT", "as it is", "task"),),
    )
