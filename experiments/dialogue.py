"""Replies in a dialogue: JSONL or Parquet with `history`, a list of turns, and `reply`.

    python -m bert_jax.main --config=experiments/dialogue.py --config.init_from=ckpts/bert-base \\
        --config.data.train=train.jsonl --config.data.validation=dev.jsonl
    python -m bert_jax.main --config=experiments/dialogue.py --workdir=runs/dialogue --mode=generate \\
        --input=chats.jsonl --output=replies.jsonl --config.generate.temperature=0.8 --config.generate.top_p=0.9

    {"history": ["Hi!", "Hello, how can I help?", "My train is late."], "reply": "Which one is it?"}

The turns are joined by [SEP]; of a long history the last tokens are kept. The best checkpoint is the one with the
lowest loss: there are many good replies, so that BLEU, which is shown beside it, says little.

Hardware and time: a GPU of 16 GB for BERT-base; it has not been timed with this code. Expect: depends on the data; a
perplexity that still falls when training ends means that more epochs are worth it.
"""

from ml_collections import ConfigDict

from experiments import finetune


def get_config() -> ConfigDict:
    config = finetune.get_config("seq2seq", "loss")
    config.checkpoint.best_mode = "min"
    config.seq2seq.scores = "translation"
    config.data.text, config.data.label = "history", "reply"
    config.data.long_texts = "tail"
    config.optimizer.learning_rate = 1e-4
    config.train.epochs = 10.0
    config.train.batch_size = 64
    config.train.label_smoothing = 0.1
    return config
