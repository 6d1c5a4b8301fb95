"""Translations: two files whose lines belong together, or a table with the columns `source` and `target`.

    python -m bert_jax.main --config=experiments/translate.py --config.init_from=ckpts/bert-base-multilingual \\
        --config.data.train=train.en+train.de --config.data.validation=val.en+val.de --config.data.test=test.en+test.de
    python -m bert_jax.main --config=experiments/translate.py:scratch --config.data.train=train.en+train.de …

`:scratch` learns a vocabulary from both sides of the training pairs (SentencePiece, cased, so that what is written
needs no repair) and trains an encoder and a decoder of 4 layers each from nothing. Without it the model is UniLM's
(Dong et al. 2019) and the vocabulary the checkpoint's, which must know both languages; a WordPiece writes spaces around
apostrophes and hyphens, which costs BLEU.

Of validation 500 sentences are written, greedily; `--mode=evaluate --config.generate.beams=5` searches.

Hardware and time: a GPU of 16 GB for BERT-base; `:scratch` is meant for Multi30k (29,000 pairs) on a few cores. Expect
on its test of 2016 (en–de, 13a): 29.4 BLEU of 2 layers × 128 with 4,000 pieces after 1.3 epochs, 5 minutes of one core
(docs/LOG.md); the whole recipe has not been timed with this code. Small Transformers reach the mid-thirties.
"""

from ml_collections import ConfigDict

from bert_jax.config import choose
from experiments import finetune

# Learning rate, epochs.
RECIPES = {"warm": (1e-4, 10.0), "scratch": (5e-3, 30.0)}


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config of the recipe `arg`: warm or scratch."""
    recipe = choose(arg, RECIPES, "translate")
    config = finetune.get_config("seq2seq", "bleu")
    config.seq2seq.scores = "translation"
    config.data.text, config.data.label = "source", "target"
    config.data.target_length = 128
    config.optimizer.learning_rate, config.train.epochs = RECIPES[recipe]
    config.train.batch_size = 128
    config.train.label_smoothing = 0.1
    config.eval.batch_size = 64
    if recipe == "scratch":
        config.model.size = "mini"
        config.model.initializer = "width"
        config.seq2seq.model = "encoder_decoder"
        config.optimizer.name = "muon"  # leaves the plateau of the first steps sooner than AdamW
        config.optimizer.muon = r"^(encoder|heads/decoder)/(layers|cross)/.*kernel$"
        config.optimizer.b2 = 0.98
        config.data.tokenizer, config.data.vocab_size = "unigram", 8_000
        config.data.lowercase = False
    return config
