"""What a pretrained model has learned, at a glance: its loss beside that of a guesser without context, and a few lines.

    python -m bert_jax.lab.first_look runs/quickstart

The lines are sentences of documents of the test split in which one word is hidden. A rule chooses them, before anybody
looks: sentences of 8 to 16 plain words, one per document, and in them one of the 100 most frequent words of these
documents, which are what little training can teach; of all candidates those whose text has the smallest hash.
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bert_jax.command import Parser, run_command, say
from bert_jax.config import UserError, read_config

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from bert_jax.data.tokenizers.tokenizer import Tokenizer

_WORDS = range(8, 17)  # of a sentence
_FREQUENT = 100  # words, of two letters or more, that can be hidden
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


def hidden_words(records: Sequence[Mapping[str, Any]], tokenizer: "Tokenizer", count: int) -> list[HiddenWord]:
    """Returns up to `count` sentences of prepared records, at most one of each document, chosen by the rule at the top
    of this file."""
    frequent = _frequent(records, tokenizer)
    best: dict[int, HiddenWord] = {}  # by document
    for record in records:
        for sentence in np.split(record["tokens"], np.cumsum(record["sentence_lengths"])[:-1]):
            candidates = [*_candidates(sentence.tolist(), tokenizer, frequent)]
            candidates += [best[record["document"]]] if record["document"] in best else []
            if candidates:
                best[record["document"]] = min(candidates, key=_hash)
    return sorted(set(best.values()), key=_hash)[:count]


def _frequent(records: Iterable[Mapping[str, Any]], tokenizer: "Tokenizer") -> set[int]:
    """Returns the most frequent pieces that are words."""
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    for record in records:
        counts += np.bincount(record["tokens"], minlength=tokenizer.vocab_size)
    order = np.argsort(-counts, kind="stable")
    words = (int(i) for i in order if not tokenizer.is_continuation[i] and _is_word(tokenizer.token(int(i))))
    return set(islice(words, _FREQUENT))


def _candidates(ids: list[int], tokenizer: "Tokenizer", frequent: Collection[int]) -> Iterator[HiddenWord]:
    tokens = [tokenizer.token(i).removeprefix("##").removeprefix("▁") for i in ids]
    continues = [bool(tokenizer.is_continuation[i]) for i in ids] + [False]
    number = sum(token.isalpha() and not more for token, more in zip(tokens, continues, strict=False))
    if number not in _WORDS or tokens[-1] != "." or not all(x.isalpha() or x == "," for x in tokens[:-1]):
        return
    for place in range(1, len(ids)):
        if ids[place] in frequent and not continues[place + 1]:
            before, after = tokenizer.decode(ids[:place]), tokenizer.decode(ids[place + 1 :])
            yield HiddenWord(f"{before} [MASK] {after}".replace(" ,", ",").replace(" .", "."), tokens[place])


def _is_word(token: str) -> bool:
    word = token.removeprefix("▁")
    return word.isalpha() and len(word) > 1


def _filled(folder: Path, config: "ConfigDict", count: int, top_k: int) -> str:
    from bert_jax.data.pretraining.corpora import Mixture
    from bert_jax.inference.fill_mask import FillMask
    from bert_jax.run import start_run
    from bert_jax.tasks.pretraining_text import prepared_corpus

    if config.data.masking == "static":
        return "The lines need data.masking=dynamic: prepared static instances have no sentences."
    prepared = prepared_corpus(config, start_run(config, folder))
    if isinstance(prepared, Mixture):
        return "The lines are those of one corpus; this run has several."
    if not prepared.num_records("test"):
        return "There are no lines: data.test_share leaves no document for them."
    source, fill = prepared.source("test"), FillMask(folder)
    lines = hidden_words([source[i] for i in range(len(source))], fill.tokenizer, count)
    shown, places = ["", "Words hidden in held-out documents, and what the model guesses:"], []
    for line in lines:
        (guesses,) = fill(line.text, top_k)
        named = [token for token, _ in guesses]
        places.append(named.index(line.word) if line.word in named else top_k)
        shown.append(f"{'✓' if places[-1] == 0 else '·'} {line.text}")
        shown.append(f"    was: {line.word}; guesses: {', '.join(f'{token} {p:.2f}' for token, p in guesses)}")
    first, found = sum(place == 0 for place in places), sum(place < top_k for place in places)
    shown.append(f"The hidden word is the first guess in {first} of {len(lines)} lines, and among {top_k} in {found}.")
    return "\n".join(shown)


def _hash(line: HiddenWord) -> bytes:
    return hashlib.blake2b(f"{line.text} {line.word}".encode(), digest_size=8).digest()


if __name__ == "__main__":
    run_command(main)
