"""What makes vectors of two languages alike: sampling, or texts beside their translations?

    python benchmarks/multilingual_data.py --archives=../shared/data --to=multilingual_data
    python -m bert_jax.lab.sweep --study=experiments/studies/multilingual.py:multilingual_data \\
        --workdir=runs/multilingual

Lample and Conneau (2019) find translation language modelling (TLM) ahead of masked language modelling alone by 3.6
points of XNLI, and sample languages with an exponent of 0.5 to 0.7; multilingual BERT takes 0.7, XLM-R 0.3.

Scaled down: 2 layers of 128, 2,500 steps of 64 rows of 64 tokens, a vocabulary of 8,000 pieces for eight languages.
Each language has its manual pages; English, German and French have captions of pictures besides. TLM adds the pages and
captions of English–German and English–French side by side as two corpora more: of the same text, in the same number of
steps. Measured is the retrieval of translations (accuracy in both directions, mean of four sets): captions of
test2016 and descriptions of 200 pages, en–de and en–fr. The loss by language is in every run's metrics.jsonl.

Orderings that may be expected: with TLM better than without; the exponent changes retrieval little, because English,
German and French are among the larger languages here, and the loss of the small ones more.

It has 25 runs, which take about 5 hours on two cores.
"""

from pathlib import Path

from bert_jax.config import UserError
from bert_jax.lab.study import Stage, Study, choice, grid
from bert_jax.option import Value
from experiments.studies.common import SEEDS
from experiments.study_multilingual import WITH_CAPTIONS


def get_study(argument: str = "") -> Study:
    folder = Path(argument or "multilingual_data").expanduser().absolute()
    if not (folder / "pages").is_dir():
        raise UserError(
            f"{folder} is not the data of this study; make it with python benchmarks/multilingual_data.py "
            f"--archives=../shared/data --to={folder}, or name another folder behind the colon of --study"
        )
    exponents = (0.7, 0.3, 1.0)
    levels: dict[str, dict[str, Value]] = {f"MLM, S = {s}": {"data.corpora_exponent": s} for s in exponents}
    levels["MLM + TLM, S = 0.7"] = {"data.corpora_exponent": 0.7} | _translations(folder)
    levels["MLM + TLM, languages"] = levels["MLM + TLM, S = 0.7"] | {"model.languages": "auto"}
    base = f"experiments/study_multilingual.py:{folder}"
    return Study(
        question="What makes vectors of two languages alike: sampling, or texts beside their translations?",
        stages=(Stage("pretrain", base, grid(choice("objective", levels), SEEDS)),),
        factor="objective",
        baseline="MLM, S = 0.7",
        metrics={"pretrain": "eval.retrieval"},
        expected=(("MLM + TLM, S = 0.7", "MLM, S = 0.7", "pretrain"),),
    )


def _translations(folder: Path) -> dict[str, Value]:
    """Returns the options of the parallel corpora of English with German and with French."""
    found: dict[str, Value] = {}
    for language in WITH_CAPTIONS[1:]:
        pages, captions = f"{folder}/pages/{{}}.jsonl", f"{folder}/captions.{{}}"
        files = ",".join(f"{form.format('en')}+{form.format(language)}" for form in (pages, captions))
        name = f"corpora.en_{language}"
        found |= {f"{name}.corpus": "parallel", f"{name}.language": f"en+{language}"}
        found |= {f"{name}.files": files, f"{name}.name_field": "page"}
    return found
