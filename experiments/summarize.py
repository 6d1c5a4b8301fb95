"""Summaries that a model writes: a table with the columns `document` and `summary`.

    python -m bert_jax.main --config=experiments/summarize.py --config.init_from=ckpts/bert-base \\
        --config.data.train=train.jsonl --config.data.validation=dev.jsonl --config.data.test=test.jsonl
    python -m bert_jax.main --config=experiments/summarize.py --workdir=runs/summarize \\
        --mode=evaluate --config.generate.beams=5

Other names of columns: --config.data.text=article --config.data.label=highlights. Documents are cut to 384 tokens,
summaries to 128, which is a row of BERT. For ROUGE-Lsum the sentences of a summary are put on lines; where a reference
has line breaks, these are its sentences.

Recipe: UniLM with pseudo-masks, label smoothing 0.1, batches of 64 (Bao et al. 2021, s2s-ft), no three words twice.
Hardware and time: CNN/DailyMail (287,000 pairs) needs a GPU of 16 GB and has not been timed with this code. Expect on
its test set ROUGE-1, -2 and -L of 41.6, 19.2 and 38.6, published for a MiniLM of 6 layers (22 million parameters); not
trained with this code yet.

Sentences chosen from the document in place of new ones (Liu and Lapata 2019, BERTSum):

    python -m bert_jax.main --config=experiments/summarize.py:extractive --config.init_from=ckpts/bert-base \\
        --config.data.train=train.jsonl --config.data.validation=dev.jsonl

There a row has `document`, a text or a list of sentences, and `summary`: a text, a list of sentences, or the numbers of
sentences of the document, from 0. Summaries that copy sentences are recognised; for others an oracle finds the
sentences to learn. `config.extractive` says how long a summary is.
"""

from ml_collections import ConfigDict

from bert_jax.config import choose
from experiments import finetune


def get_config(arg: str = "abstractive") -> ConfigDict:
    """Returns the config of summaries that are written, or with "extractive" of those that are chosen."""
    if choose(arg, ("abstractive", "extractive"), "summarize") == "extractive":
        return _extractive()
    config = finetune.get_config("seq2seq", "rouge2")
    config.seq2seq.scores = "summary"
    config.data.text, config.data.label = "document", "summary"
    config.data.sequence_length, config.data.target_length = 384, 128
    config.optimizer.learning_rate = 1e-4
    config.train.epochs = 10.0
    config.train.batch_size = 64
    config.train.label_smoothing = 0.1
    config.generate.no_repeat_ngram = 3
    return config


def _extractive() -> ConfigDict:
    config = finetune.get_config("extractive", "rouge2")
    config.data.text, config.data.label = "document", "summary"
    config.data.sequence_length = 512
    config.data.long_texts = "windows"
    return config
