"""Are five tasks together better than each alone?

    python benchmarks/study_data.py --archives=../shared/data --to=study_data
    python -m bert_jax.lab.sweep --study=experiments/studies/multitask.py:study_data --workdir=runs/multitask

Liu et al. (2019, MT-DNN) train the tasks of GLUE together and then each further; small sets gain most.

Scaled down: 2 layers of 128; SST-2 (5,000 examples), MRPC, TREC, STS (2012 to 2015, tested on 2016) and WNUT 2017, as
many epochs together as alone, batches of 32. Every stage is judged by one task, whose validation metric also chooses
its checkpoint: so all five tasks are trained together once for each of them. A stage's run alone has its task's own
learning rate.

Orderings that may be expected: MRPC, the smallest set of pairs, gains from STS, which is of pairs too; TREC and WNUT
2017 gain little.

It has 80 runs; about 3 hours on two cores, by an estimate.
"""

from bert_jax.lab.study import Stage, Study, choice, grid
from experiments import study_finetuning
from experiments.studies.common import SEEDS, data_folder, pretraining
from experiments.study_multitask import TASKS


def get_study(argument: str = "") -> Study:
    folder = data_folder(argument)
    metrics = {name: f"{name}/{study_finetuning.TASKS[name][1]}" for name in TASKS}
    return Study(
        question="Are five tasks together better than each alone?",
        stages=(
            pretraining(folder, SEEDS),
            *(
                Stage(
                    name,
                    f"experiments/study_multitask.py:{folder}",
                    grid(choice("training", {"alone": alone(folder / name), "together": {}, "annealed": ANNEALED})),
                    after="pretrain",
                    overrides={"checkpoint.best_metric": metric},
                )
                for name, metric in metrics.items()
            ),
        ),
        factor="training",
        baseline="alone",
        metrics={name: f"test.{metric}" for name, metric in metrics.items()},
        expected=[("together", "alone", "mrpc")],
    )


ANNEALED = {"multitask.sampling": "annealed"}


def alone(folder):
    """Returns what gives every batch to the task of the folder, by its own recipe."""
    config = study_finetuning.get_config(str(folder))
    recipe = {"optimizer.learning_rate": config.optimizer.learning_rate, "train.epochs": config.train.epochs}
    shares = {f"tasks.{name}.share": float(name == folder.name) for name in TASKS}
    return {"multitask.sampling": "explicit"} | recipe | shares
