"""Does a BERT translate better than the same model from nothing?

    python benchmarks/translation_data.py --archives=../shared/data --to=translation_data
    python -m bert_jax.lab.sweep --study=experiments/studies/translation.py:translation_data --workdir=runs/translation

Rothe et al. (2020) find encoder–decoders of BERT-base's size ahead on WMT14 if the encoder is warm.

Scaled down: 2 layers of 128 on each side, 4 epochs of Multi30k (29,000 pairs), BLEU on its test set of 2016; the BERT
is pretrained for minutes on manual pages and on the captions of the training pairs, without saying which belong
together.

Orderings that may be expected: the warm start is ahead; how far depends on how much of the budget 29,000 pairs need.

It has 15 runs, which take about 2 hours on two cores.
"""

from pathlib import Path

from bert_jax.config import UserError
from bert_jax.lab.study import Point, Stage, Study, choice, grid
from experiments.studies.common import SEEDS

RANDOM = {"seq2seq.encoder": "random", "seq2seq.decoder": "random"}
STARTS = {"RND2RND": RANDOM, "BERT2BERT": {}}
BOTH = {"data.corpus": "jsonl", "data.tokenizer": "unigram", "data.lowercase": False, "data.pairing": "none"}
RECIPE = {
    "seq2seq.model": "encoder_decoder",
    "data.sequence_length": 64,
    "data.target_length": 64,
    "model.dtype": "float32",
    "optimizer.name": "muon",
    "optimizer.muon": r"^(encoder|heads/decoder)/(layers|cross)/.*kernel$",
    "optimizer.learning_rate": 5e-3,
    "optimizer.b2": 0.98,
    "train.batch_size": 32,
    "train.epochs": 4.0,
    "train.label_smoothing": 0.0,
    "eval.every": 900,
    "seq2seq.eval_examples": 100,
}


def get_study(argument: str = "") -> Study:
    folder = Path(argument or "translation_data").expanduser().absolute()
    if not (folder / "corpus").is_dir():
        raise UserError(
            f"{folder} is not the data of this study; make it with python benchmarks/translation_data.py "
            f"--archives=../shared/data --to={folder}, or name another folder behind the colon of --study"
        )
    sets = {"train": "train", "validation": "val", "test": "test2016"}
    files = {f"data.{split}": f"{folder}/{name}.en+{folder}/{name}.de" for split, name in sets.items()}
    corpus = BOTH | {"data.files": f"{folder}/corpus/*.jsonl", "eval.blimp": ""}
    return Study(
        question="Does a BERT translate better than the same model from nothing?",
        stages=(
            Stage("pretrain", f"experiments/study_pretraining.py:{folder}", grid((Point({}, corpus),), SEEDS)),
            Stage(
                "translate",
                "experiments/translate.py",
                grid(choice("start", STARTS), (Point({}, RECIPE | files),)),
                after="pretrain",
            ),
        ),
        factor="start",
        baseline="RND2RND",
        metrics={"translate": "test.bleu"},
        expected=(("BERT2BERT", "RND2RND", "translate"),),
    )
