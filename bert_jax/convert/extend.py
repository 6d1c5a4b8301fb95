"""New words for the vocabulary of a model that is trained further, chosen from the texts that it is trained on.

A run with extend.words makes them before its first step: `new_words.txt` in its workdir, one per line, and `extended`,
the checkpoint of init_from with a token for each, from which the run then starts.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from ml_collections import ConfigDict

from bert_jax.config import UserError
from bert_jax.convert.conversion import convert
from bert_jax.data.labelled.columns import names_of
from bert_jax.data.text.corpus import Corpus, open_corpus
from bert_jax.data.tokenizers.tokenizer import Tokenizer
from bert_jax.data.tokenizers.wordpiece import WordPieceTokenizer
from bert_jax.entries import entries
from bert_jax.files import write_atomically
from bert_jax.option import can_be
from bert_jax.tasks import task_class
from bert_jax.training.checkpoint import EXTENDED, choose_checkpoint, describe_checkpoint, has_checkpoint

WORDS = "new_words.txt"


def extend_start(config: ConfigDict, workdir: Path) -> None:
    """Makes the checkpoint that a run with extend.words starts from; what is there from an earlier try is replaced.

    Does nothing for a run that continues, nor if init_from is no checkpoint, which `run.inherit` explains.

    Raises UserError if there is nothing to extend, if the workdir cannot be written, and as `new_words`.
    """
    if not config.extend.words or has_checkpoint(str(workdir)):
        return
    can_extend = task_class(config.task).extends_vocabulary
    if not can_extend or not config.init_from:
        missing = "init_from" if can_extend else "task=pretraining"
        raise UserError(f"extend.words needs {missing}: it adds tokens to a trained model that is pretrained further")
    if config.data.vocab_file:
        raise UserError("extend.words adds to the vocabulary of init_from: leave data.vocab_file out")
    if not has_checkpoint(config.init_from):
        return
    _, tokenizer = describe_checkpoint(choose_checkpoint(config.init_from))
    words = new_words(tokenizer, _texts(config), config.extend.words, config.extend.least)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_atomically(workdir / WORDS, "".join(f"{word}\n" for word in words))
    except OSError as problem:
        raise UserError(f"--workdir {workdir} cannot be written to ({problem.strerror}); choose another") from problem
    report = convert(config.init_from, str(workdir / EXTENDED), extend_vocab=str(workdir / WORDS), overwrite=True)
    logging.info("%d new tokens, listed in %s; %s", len(words), workdir / WORDS, report.replace("\n", "; "))


def new_words(tokenizer: Tokenizer, texts: Iterable[str], count: int, least: int) -> list[str]:
    """Returns up to `count` words of letters that the tokenizer splits and that occur at least `least` times, those
    first whose tokens would save most pieces: occurrences × (pieces − 1).

    Raises UserError for a tokenizer that is not WordPiece, and if there is no such word.
    """
    if not isinstance(tokenizer, WordPieceTokenizer):
        raise UserError("extend.words: the tokenizer of init_from is SentencePiece; only WordPiece can be extended")
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word for words in tokenizer.split_words([text]) for word in words if word.isalpha())
    known = sorted(word for word, times in counts.items() if times >= least)
    pieces = [len(ids) for ids in tokenizer.encode_words(known)]
    saved = {word: counts[word] * (size - 1) for word, size in zip(known, pieces, strict=True) if size > 1}
    if not saved:
        raise UserError(
            f"extend.words: no word of the corpus that has several pieces occurs {least} times (extend.least); set it "
            "to 0"
        )
    return sorted(saved, key=lambda word: (-saved[word], word))[:count]


def _texts(config: ConfigDict) -> Iterator[str]:
    """Yields the documents of the corpora that extend.corpora names; of large ones every k-th."""
    most = config.data.vocab_sample_megabytes * 1_000_000
    for corpus in _corpora(config):
        every = max(1, -(-(corpus.num_bytes or 0) // most))
        for number, document in enumerate(corpus.documents()):
            if number % every == 0:
                yield document.text


def _corpora(config: ConfigDict) -> Iterator[Corpus]:
    named, known = names_of("extend.corpora", config.extend.corpora), entries(config, "corpora")
    for name in named:
        if name not in known:
            raise UserError(
                f"extend.corpora names {name!r}; {can_be(name, known) if known else 'there are no corpora'}"
            )
    if not known:
        yield open_corpus(config.data)
    for name, entry in known.items():
        if entry.corpus != "parallel" and (name in named or not named):
            own = ConfigDict(config.data.to_dict())
            own.update(corpus=entry.corpus, files=entry.files, text_field=entry.text_field)
            try:
                yield open_corpus(own)
            except UserError as error:
                raise UserError(str(error).replace("data.", f"corpora.{name}.")) from error
