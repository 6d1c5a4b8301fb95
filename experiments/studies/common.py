"""What the studies share: the folder of the data, the stages of fine-tuning, and the seeds. No study by itself."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from bert_jax.config import UserError
from bert_jax.lab.study import Axis, Points, Published, Stage, Study, choice, grid, seeds
from bert_jax.option import Value

SEEDS = seeds(5)
METRICS = {
    "pretrain": "eval.blimp",
    "sst2_500": "test.accuracy",
    "sst2_5000": "test.accuracy",
    "mrpc": "test.accuracy",
    "trec": "test.accuracy",
    "wnut17": "test.entity_f1",
}
ADAMW = {"optimizer.name": "adamw", "optimizer.learning_rate": 2e-3}  # study_pretraining.py has Muon
TASKS = tuple(name for name in METRICS if name != "pretrain")


def data_folder(argument: str, *others: str) -> Path:
    """Returns the folder behind the colon of --study=FILE:FOLDER, `study_data` if there is none. `others` are parts of
    it that only some studies read. Raises UserError for one that benchmarks/study_data.py has not made."""
    folder = Path(argument or "study_data").expanduser().absolute()
    if not all((folder / name).is_dir() for name in ("corpus", "blimp", *TASKS, *others)):
        raise UserError(
            f"{folder} is not the data of the studies; make it with python benchmarks/study_data.py "
            f"--archives=../shared/data --to={folder}, or name another folder behind the colon of --study"
        )
    return folder


def pretraining(folder: Path, *axes: Axis | Points, name: str = "pretrain", after: str = "") -> Stage:
    """Returns a stage that pretrains the small BERT of study_pretraining.py once for each point."""
    return Stage(name, f"experiments/study_pretraining.py:{folder}", grid(*axes), after)


def fine_tuning(
    folder: Path, *axes: Axis | Points, tasks: Sequence[str] = TASKS, after: str = "pretrain", suffix: str = ""
) -> list[Stage]:
    """Returns a stage for each task, named by it, that fine-tunes every pretrained model once for each point."""
    base = "experiments/study_finetuning.py"
    return [Stage(f"{task}{suffix}", f"{base}:{folder / task}", grid(*axes), after) for task in tasks]


def one_factor(
    argument: str,
    question: str,
    factor: str,
    levels: Mapping[str, Mapping[str, Value]],
    *,
    tasks: Sequence[str] = TASKS,
    published: Published | None = None,
    expected: Sequence[tuple[str, str, str]] = (),
) -> Study:
    """Returns a study that pretrains with each level × seed and fine-tunes every model on each task. The first level is
    the baseline."""
    folder = data_folder(argument)
    return Study(
        question=question,
        stages=(pretraining(folder, choice(factor, levels), SEEDS), *fine_tuning(folder, tasks=tasks)),
        factor=factor,
        baseline=next(iter(levels)),
        metrics={name: METRICS[name] for name in ("pretrain", *tasks)},
        published=published,
        expected=expected,
    )
