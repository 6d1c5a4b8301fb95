"""One small BERT of several languages: each is a corpus, and rows are sampled by P(L)^0.7, as for multilingual BERT.

    python -m bert_jax.main --config=experiments/multilingual.py \\
        --config.corpora.en.files='corpus/en/*.txt' --config.corpora.de.files='corpus/de/*.txt'

Texts with their translations are a corpus of their own (translation language modelling), and JSONL files have their
kind: docs/languages.md.

        --config.corpora.en_de.corpus=parallel --config.corpora.en_de.files=train.en+train.de \\
        --config.corpora.en_de.language=en+de

Hardware: a CPU. Time: not measured; a step of `small_en.py`, with half the vocabulary, takes 0.05 s on two shared
cores. Expect: docs/RESULTS.md, once the study experiments/studies/multilingual.py has run.
"""

from ml_collections import ConfigDict

from experiments import small_en


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config with the model size `arg`."""
    config = small_en.get_config(arg)
    config.data.files = ""
    config.data.lowercase = False  # what is an accent in one language tells words apart in another
    config.data.vocab_size = 16_000
    config.data.corpora_exponent = 0.7
    config.data.pairing = "none"
    config.train.steps = 16_000
    config.eval.every = 4_000
    config.eval.max_examples = 1_000  # of each corpus
    config.checkpoint.every = 4_000
    return config
