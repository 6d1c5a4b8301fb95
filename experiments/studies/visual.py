"""Does a small BERT answer questions about a picture from the question, the picture, or both?

    python benchmarks/digits_questions.py --to=digits
    python -m bert_jax.lab.sweep --study=experiments/studies/visual.py:digits --workdir=runs/visual

Antol et al. (2015) ask a model for answers about photographs (VQA) and find that the question alone gets most of the
way, the picture alone little: the answers of their data are no even mixture.

Scaled down: 2 layers of 64, scikit-learn's digits of 8 × 8 pixels as 16 patches, four questions about each of 1,257.
Here neither half is enough by construction: the question alone gets at most the more frequent answer, the picture alone
does not know what was asked.

Orderings that may be expected: both are far ahead of either half.

It has 15 runs, which take about 0.4 hours on two cores.
"""

from pathlib import Path

from bert_jax.config import UserError
from bert_jax.lab.study import Point, Stage, Study, choice, grid
from experiments.studies.common import SEEDS

READS = {
    "question": {"data.modalities": "text"},
    "picture": {"data.modalities": "vectors"},
    "both": {"data.modalities": "both"},
}
MODEL = {
    "model.hidden_size": 64,
    "model.num_hidden_layers": 2,
    "model.num_attention_heads": 2,
    "model.max_position_embeddings": 64,
    "model.initializer": "width",
    "model.hidden_dropout": 0.0,
    "model.attention_dropout": 0.0,
    "data.sequence_length": 48,
    "data.image": "image",
    "data.text": "question",
    "data.label": "answer",
    "image.height": 8,
    "image.width": 8,
    "image.channels": 1,
    "image.patch_size": 2,
}
# With AdamW the accuracy of both is that of the question alone for thousands of steps.
RECIPE = {"optimizer.name": "muon", "optimizer.learning_rate": 5e-3, "optimizer.b2": 0.98, "train.epochs": 15.0}


def get_study(argument: str = "") -> Study:
    folder = Path(argument or "digits").expanduser().absolute()
    if not (folder / "images.npy").is_file():
        raise UserError(
            f"{folder} is not the data of this study; make it with python benchmarks/digits_questions.py "
            f"--to={folder}, or name another folder behind the colon of --study"
        )
    files = {f"data.{split}": str(folder / f"{split}.jsonl") for split in ("train", "validation", "test")}
    files["data.vocab_file"] = str(folder / "vocab.txt")
    points = grid(choice("reads", READS), SEEDS, (Point({}, MODEL | RECIPE | files),))
    return Study(
        question="Does a small BERT answer questions about a picture from the question, the picture, or both?",
        stages=(Stage("answers", "experiments/visual.py:classify", points),),
        factor="reads",
        baseline="question",
        metrics={"answers": "test.accuracy"},
        expected=(("both", "question", "answers"), ("both", "picture", "answers")),
    )
