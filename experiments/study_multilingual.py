"""The small BERT of eight languages that experiments/studies/multilingual.py pretrains.

    python benchmarks/multilingual_data.py --archives=../shared/data --to=multilingual_data
    python -m bert_jax.main --config=experiments/study_multilingual.py:multilingual_data

The name behind the colon is the folder of the data. The model is that of `study_pretraining.py`, in rows of 64 tokens;
`retrieval` is measured on captions and on descriptions of manual pages, en–de and en–fr.
"""

from ml_collections import ConfigDict

from bert_jax.entries import add_entry
from experiments import study_pretraining

LANGUAGES = ("en", "de", "fr", "es", "ru", "pl", "ja", "zh")
WITH_CAPTIONS = ("en", "de", "fr")
RETRIEVAL = {"captions": "test", "pages": "about"}  # name of a set: its files


def get_config(arg: str = "multilingual_data") -> ConfigDict:
    """Returns the config with the data in the folder `arg`."""
    config = study_pretraining.get_config(arg)
    for language in LANGUAGES:
        captions = f",{arg}/captions/{language}.jsonl" if language in WITH_CAPTIONS else ""
        add_entry(config, f"corpora.{language}", corpus="jsonl", files=f"{arg}/pages/{language}.jsonl{captions}")
    config.data.update(corpus="sample", files="", pairing="none", lowercase=False, vocab_size=8_000)
    config.data.update(sequence_length=64, max_predictions_per_sequence=10)
    config.train.update(steps=2_500, batch_size=64)
    config.eval.update(every=2_500, max_examples=500, blimp="")
    config.eval.retrieval = ",".join(
        f"{name}_{language}={arg}/{file}.en+{arg}/{file}.{language}"
        for language in WITH_CAPTIONS[1:]
        for name, file in RETRIEVAL.items()
    )
    config.checkpoint.every = 2_500
    return config
