"""Does a small student learn more from a teacher than from the text alone, in the same time?

    python -m bert_jax.convert --from=sentence-transformers/all-MiniLM-L6-v2 \\
        --format=huggingface --to=study_data/minilm
    python -m bert_jax.lab.sweep --study=experiments/studies/distilling.py:study_data --workdir=runs/distilling

Wang et al. (2020), table 1, dev sets: a student of 6 layers of 768 that learns the relations of BERT-base's last layer
has 81.7 on average over SQuAD 2 and seven tasks of GLUE; DistilBERT, of the same shape, 77.6; BERT-base 82.5.

Scaled down: students of 2 layers of 128, as `small_en.py` (`study_data,3x256` behind the colon: 3 of 256); the teacher
is MiniLM (6 layers of 384, tuned for sentences), in `study_data/minilm`; MINUTES of pretraining on 66 MB of English in
place of days. Both students have the teacher's vocabulary and read the same rows of 64 tokens. One learns the relations
between the tokens of the teacher's last layer (`distillation.relations`), the other masked tokens. Steps are as many as
fit into the MINUTES, at SECONDS each (of 2 × 128 0.83 with the teacher and 0.46 without, of 3 × 256 1.3 and 1.0): on
another machine measure these by `python benchmarks/distilling.py steps`.
SST-2, MRPC, TREC and WNUT17 on test sets.

Orderings that may be expected: with the teacher is better on SST-2 and TREC. WNUT17, of rare names, is open.

It has 50 runs, which take about 2.3 hours on two cores, 2 of them for the ten pretrained students.
"""

from pathlib import Path

from bert_jax.config import UserError
from bert_jax.lab.study import Stage, Study, choice, grid
from bert_jax.option import Value
from experiments.studies.common import METRICS, SEEDS, data_folder, fine_tuning

MINUTES = 12  # of each pretraining: an hour of two cores for the five seeds of a student
STUDENTS: dict[str, dict[str, Value]] = {
    "2x128": {"model.num_hidden_layers": 2, "model.hidden_size": 128, "model.num_attention_heads": 4},
    "3x256": {"model.num_hidden_layers": 3, "model.hidden_size": 256, "model.num_attention_heads": 4},
}
# Seconds of a step with and without teacher on two cores of an Intel Xeon (AVX512-BF16, AMX), 2026-12-01
SECONDS = {"2x128": (0.83, 0.46), "3x256": (1.3, 1.0)}
TASKS = ("sst2_5000", "mrpc", "trec", "wnut17")


def get_study(argument: str = "") -> Study:
    name, _, student = (argument or "study_data").partition(",")
    folder, student = data_folder(name), student or "2x128"
    if student not in STUDENTS:
        raise UserError(f"distilling.py: no student {student!r}; behind the comma can be {' or '.join(STUDENTS)}")
    teacher = folder / "minilm"
    if not teacher.is_dir():
        raise UserError(
            f"{teacher} is missing: python -m bert_jax.convert --from=sentence-transformers/all-MiniLM-L6-v2 "
            f"--format=huggingface --to={teacher}, or with --from=FOLDER of that model"
        )
    taught, alone = (_steps(seconds) for seconds in SECONDS[student])
    levels = {
        "text": alone | MASKED | {"data.vocab_file": str(teacher)},
        "teacher": taught | {"distillation.teacher": str(teacher)},
    }
    pretrain = Stage(
        "pretrain",
        "experiments/distill.py",
        grid(choice("learns from", levels), SEEDS),
        overrides=_common(folder, student),
    )
    return Study(
        question="Does a small student learn more from a teacher than from the text alone, in the same time?",
        stages=(pretrain, *fine_tuning(folder, tasks=TASKS)),
        factor="learns from",
        baseline="text",
        metrics={task: METRICS[task] for task in TASKS},
        expected=[("teacher", "text", task) for task in ("sst2_5000", "trec")],
    )


MASKED: dict[str, Value] = {
    "distillation.relations": 0.0,
    "distillation.soft": 1.0,
    "distillation.hard": 1.0,
    "checkpoint.best_metric": "loss",
}


def _steps(seconds: float) -> dict[str, Value]:
    count = round(60 * MINUTES / seconds, -2)
    return dict.fromkeys(("train.steps", "eval.every", "checkpoint.every"), int(count))


def _common(folder: Path, student: str) -> dict[str, Value]:
    """Returns what both students share, beside experiments/distill.py; the recipe is that of study_pretraining.py."""
    return STUDENTS[student] | {
        "data.files": str(folder / "corpus" / "*"),
        "data.prepared": str(folder / "prepared"),
        "data.sequence_length": 64,
        "data.max_predictions_per_sequence": 10,
        "model.position_embedding": "rotary",
        "model.initializer_range": 0.05,
        "model.hidden_dropout": 0.0,
        "model.attention_dropout": 0.0,
        "model.dtype": "float32",
        "optimizer.name": "muon",
        "optimizer.learning_rate": 5e-3,
        "optimizer.schedule": "hf",
        "optimizer.warmup_steps": 100,
        "optimizer.decay_steps": 0,
        "optimizer.bias_correction": True,
        "eval.at_start": False,
        "checkpoint.keep": 1,
    }
