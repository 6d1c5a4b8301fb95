"""What a pretrained model has learned, at a glance: its loss beside that of a guesser without context, and a few lines.

    python -m bert_jax.lab.first_look runs/quickstart

The lines are sentences of held-out documents in which one word is hidden. A rule chooses them, before anybody looks:
sentences of 8 to 16 plain words, one per document, and a word of at least four letters that the vocabulary has as one
piece; of all candidates those whose text has the smallest hash.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bert_jax.command import Parser, run_command, say
from bert_jax.config import UserError, read_config

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from bert_jax.data.text.corpus import Document
    from bert_jax.data.tokenizers.tokenizer import Tokenizer

_SENTENCE = re.compile(r"[A-Z][a-z]*(?:,? [A-Za-z][a-z]*)+\.")
_WORDS = range(8, 17)  # of a sentence
_SHORTEST = 4  # letters of a hidden word
_NEXT = """Next, on text of your own (docs/pretraining.md), and then on labels of your own (docs/finetuning.md):
  python -m bert_jax.main --config=experiments/small_en.py --config.data.files='corpus/*.txt' --workdir=runs/mine
  python -m bert_jax.main --config=experiments/classify.py --config.init_from=runs/mine --config.data.train=train.csv"""


class HiddenWord(NamedTuple):
    """A sentence with [MASK] in place of a word."""

    text: str
    word: str


def main(argv: list[str]) -> int:
    """Prints the figures and the lines. Heavy imports wait until the flags are known to be right."""
    parser = Parser("bert_jax.lab.first_look", __doc__ or "")
    parser.usage = "python -m bert_jax.lab.first_look RUN [--NAME=VALUE …]"
    parser.flag("lines", 4, "sentences with a hidden word", least=0)
    parser.flag("top_k", 5, "guesses for each", least=1)
    parser.flag("debug", False, "show the traceback of an error")
    flags, words = parser.parse_with_names(argv)
    if len(words) != 1:
        raise UserError(f"{len(words)} runs are given; give one workdir, e.g. runs/quickstart")
    folder = Path(words[0])
    if not (folder / "config.json").exists():
        raise UserError(
            f"{folder} is not the workdir of a run: there is no config.json; give one such as runs/quickstart"
        )
    config = read_config(folder / "config.json")
    say(describe_loss(folder))
    if flags["lines"]:
        say(_filled(folder, config, flags["lines"], flags["top_k"]))
    say(f"\n{_NEXT}")
    return 0


def describe_loss(folder: Path) -> str:
    """Returns sentences about the newest evaluation of a run. Raises UserError for a run without one of an MLM."""
    from bert_jax.training.metrics_log import read_metrics

    evaluations = [line for line in read_metrics(folder / "metrics.jsonl") if line["split"] == "eval"]
    names = ("mlm_loss", "unigram_entropy", "mlm_accuracy", "majority_accuracy")
    if not evaluations or any(name not in evaluations[-1] for name in names):
        raise UserError(f"{folder} has no evaluation of a masked language model; give the workdir of a pretraining run")
    loss, unigram, right, majority = (evaluations[-1][name] for name in names)
    return (
        f"Held-out text, step {evaluations[-1]['step']}: a hidden piece costs the model {loss:.2f} nats, and "
        f"{unigram:.2f} to a guesser that knows only how frequent each piece is.\n"
        f"The model names {100 * right:.0f} % of the pieces; the most frequent piece alone is right in "
        f"{100 * majority:.0f} %."
    )


def hidden_words(documents: Sequence["Document"], tokenizer: "Tokenizer", count: int) -> list[HiddenWord]:
    """Returns up to `count` sentences, at most one of each document, chosen by the rule at the top of this file."""
    from bert_jax.data.text.corpus import split_sentences

    chosen = []
    for document in documents:
        candidates = {one for sentence in split_sentences(document) for one in _candidates(sentence, tokenizer)}
        chosen += sorted(candidates, key=_hash)[:1]
    return sorted(set(chosen), key=_hash)[:count]


def _candidates(sentence: str, tokenizer: "Tokenizer") -> Iterator[HiddenWord]:
    words = sentence.split()
    if len(words) not in _WORDS or not _SENTENCE.fullmatch(sentence):
        return
    for match in re.finditer(r"(?<= )[a-z]+", sentence):
        (ids,) = tokenizer.encode_words([match[0]])
        if len(match[0]) >= _SHORTEST and len(ids) == 1 and ids[0] != tokenizer.unk_id:
            yield HiddenWord(f"{sentence[: match.start()]}[MASK]{sentence[match.end() :]}", match[0])


def _filled(folder: Path, config: "ConfigDict", count: int, top_k: int) -> str:
    from bert_jax.data.pretraining.splits import split_documents
    from bert_jax.data.text.corpus import open_corpus
    from bert_jax.inference.fill_mask import FillMask

    data = config.data
    split = split_documents(open_corpus(data).documents(), data.seed, data.validation_share, data.test_share)
    held_out = [document for name, document in split if name == "test"]
    fill = FillMask(folder)
    lines = hidden_words(held_out, fill.tokenizer, count)
    if not lines:
        return "No held-out document has a sentence for a hidden word."
    shown = ["", "Hidden words of held-out documents, and what the model guesses:"]
    places = []
    for line in lines:
        (guesses,) = fill(line.text, top_k)
        named = [token for token, _ in guesses]
        places.append(named.index(line.word) if line.word in named else top_k)
        mark = "✓" if places[-1] == 0 else "·"
        shown += [
            f"{mark} {line.text}",
            f"    hidden: {line.word}; guesses: {', '.join(f'{t} {p:.2f}' for t, p in guesses)}",
        ]
    first, found = sum(place == 0 for place in places), sum(place < top_k for place in places)
    shown.append(f"{first} of {len(lines)} with the first guess, {found} among the first {top_k}")
    return "\n".join(shown)


def _hash(line: HiddenWord) -> bytes:
    return hashlib.blake2b(f"{line.text} {line.word}".encode(), digest_size=8).digest()


if __name__ == "__main__":
    run_command(main)
