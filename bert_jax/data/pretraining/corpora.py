"""The corpora of `config.corpora` → one vocabulary, a prepared dataset of each, and their mixture.

Every corpus has a folder of its own below data.prepared, which other mixtures with the same vocabulary use again. The
vocabulary has one too, with a report of what it makes of each language.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from bert_jax.config import Json, UserError
from bert_jax.data.pretraining.folders import move_into_place, only_preparer, temporary_sibling
from bert_jax.data.pretraining.mixture import sampling_shares
from bert_jax.data.pretraining.prepare import prepare
from bert_jax.data.pretraining.prepared import PreparedCorpus
from bert_jax.data.pretraining.translations import PARALLEL, open_parallel
from bert_jax.data.text.corpus import Corpus, open_corpus
from bert_jax.data.text.json_files import read_object
from bert_jax.data.tokenizers.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from bert_jax.entries import entries

_REPORTED = 1_000_000  # characters of a corpus that the report of the vocabulary is made from
_FORMAT = 1  # of the vocabulary's folder
_REMEDY = "delete this folder; the next start makes it again"
_log = logging.getLogger(__name__)


class Member(NamedTuple):
    """A corpus of a mixture."""

    name: str
    languages: tuple[str, str]  # of the first and the second part of its rows; they differ in a parallel corpus
    is_parallel: bool
    share: float  # of the rows
    prepared: PreparedCorpus


@dataclass(frozen=True)
class Mixture:
    """The prepared corpora of one training; it has those properties of a `PreparedCorpus` that do not ask for one."""

    members: tuple[Member, ...]
    tokenizer: Tokenizer

    @property
    def name(self) -> str:
        """The folders of the datasets, joined by +."""
        return "+".join(member.prepared.name for member in self.members)

    @property
    def shards(self) -> list[Json]:
        return [shard for member in self.members for shard in member.prepared.shards]

    def num_records(self, split: str) -> int:
        """Returns the records of a split; those of a corpus with share 0 are not trained on."""
        own = (member for member in self.members if member.share or split != "train")
        return sum(member.prepared.num_records(split) for member in own)


class _Opened(NamedTuple):
    """A corpus whose files have been found and hashed."""

    data: ConfigDict
    corpus: Corpus
    languages: tuple[str, str]
    share: float | None

    @property
    def is_parallel(self) -> bool:
        return self.data.corpus == PARALLEL


def prepare_corpora(config: ConfigDict, tokenizer: Tokenizer | None, *, progress: bool = True) -> Mixture:
    """Prepares each of `config.corpora`, or finds it prepared. Raises UserError as `prepare`, naming the corpus.

    Which vocabulary: 1. data.vocab_file, 2. `tokenizer` (a checkpoint's), 3. one trained on all corpora but parallel
    ones, of which each gives characters by the rule of `sampling_shares`.
    """
    opened = {name: _open(config.data, name, entry) for name, entry in entries(config, "corpora").items()}
    _check_different(opened)
    if config.data.vocab_file:
        tokenizer = load_tokenizer(config.data.vocab_file, config.data)
    tokenizer = _vocabulary(config.data, opened, tokenizer)
    prepared = {}
    for name, one in sorted(opened.items(), key=lambda item: not item[1].is_parallel):  # whose mistakes show here only
        try:
            prepared[name] = prepare(one.data, config.data.seed, tokenizer, corpus=one.corpus, progress=progress)
        except UserError as error:
            raise UserError(f"corpora.{name}: {error}") from error
    sizes = {name: float(one.manifest["splits"]["train"]["tokens"]) for name, one in prepared.items()}
    shares = sampling_shares(sizes, {name: one.share for name, one in opened.items()}, config.data.corpora_exponent)
    _log_shares(sizes, shares)
    members = (
        Member(name, one.languages, one.is_parallel, shares[name], prepared[name]) for name, one in opened.items()
    )
    return Mixture(tuple(members), tokenizer)


def languages_of(config: ConfigDict) -> list[str]:
    """Returns the languages of a run, whose numbers in batches are their places here: those of model.languages if it
    names some, else those of `config.corpora`, sorted. Raises UserError for a corpus of another language."""
    of_corpora = {name: _languages(name, entry) for name, entry in entries(config, "corpora").items()}
    found = sorted({language for both in of_corpora.values() for language in both})
    if config.model.languages == "auto" and not found:
        raise UserError("model.languages=auto takes the languages of corpora, and there are none: name them here")
    if config.model.languages in (None, "", "auto"):
        return found
    known = [name.strip() for name in config.model.languages.split(",")]
    for name, both in of_corpora.items():
        if new := [language for language in both if language not in known]:
            wrong = f"corpora.{name} is of {new[0]!r}, which model.languages={config.model.languages} lacks"
            raise UserError(f"{wrong}: only a model from scratch can have it; or say one of these instead")
    return known


def _open(data: ConfigDict, name: str, entry: ConfigDict) -> _Opened:
    own = ConfigDict(data.to_dict())
    own.update(corpus=entry.corpus, files=entry.files, text_field=entry.text_field, vocab_file="")
    option = f"corpora.{name}.files"
    if data.files:
        raise UserError(f"data.files names one corpus, and corpora.{name} another: leave out one of the two")
    if entry.corpus == PARALLEL:
        for key, only in (("masking", "dynamic"), ("runner", "local")):
            if data[key] != only:
                raise UserError(f"corpora.{name} is parallel, which needs data.{key}={only}, not {data[key]}")
        own.update(pairing="none", clean="none", deduplicate=False)
        corpus = open_parallel(entry.files, entry.text_field, entry.name_field, option)
    else:
        try:
            corpus = open_corpus(own)
        except UserError as error:
            raise UserError(str(error).replace("data.", f"corpora.{name}.")) from error
    return _Opened(own, corpus, _languages(name, entry), entry.share)


def _languages(name: str, entry: ConfigDict) -> tuple[str, str]:
    """Returns the languages of a corpus. Raises UserError for a parallel one that does not say which two it has."""
    named = [part.strip() for part in (entry.language or name).split("+")]
    wanted = 2 if entry.corpus == PARALLEL else 1
    if len(named) != wanted or not all(named):
        form = "two languages joined by +, e.g. en+de" if wanted == 2 else "one language, e.g. de"
        raise UserError(f"corpora.{name}.language is {entry.language!r}; of corpus={entry.corpus} it must be {form}")
    return named[0], named[-1]


def _check_different(opened: Mapping[str, _Opened]) -> None:
    """Raises UserError for a corpus that is there twice, and for languages that are one, written in two ways."""
    by_text: dict[str, str] = {}
    by_language: dict[str, str] = {}
    for name, one in opened.items():
        first = by_text.setdefault(one.corpus.fingerprint, name)
        if first != name:
            raise UserError(f"corpora.{first} and corpora.{name} have the same text: leave out one of them")
        for language in one.languages:
            known = by_language.setdefault(language.casefold().replace("_", "-"), language)
            if known != language:
                raise UserError(f"corpora.{name}.language is {language!r} and another one {known!r}: write it one way")


def _vocabulary(data: ConfigDict, opened: Mapping[str, _Opened], tokenizer: Tokenizer | None) -> Tokenizer:
    """Returns the vocabulary, which is trained unless it is given, and writes its report."""
    names = ["tokenizer", "vocab_size", "vocab_sample_megabytes", "lowercase", "strip_accents", "split_cjk"]
    settings: Json = {"format": _FORMAT}
    settings |= {name: one.corpus.fingerprint for name, one in opened.items()}
    if tokenizer is None:
        settings |= {name: data[name] for name in (*names, "corpora_exponent")}
    else:
        settings["tokenizer_hash"] = tokenizer.content_hash
    key = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8).hexdigest()
    directory = Path(data.prepared) / f"vocabulary-{key}"
    if (found := _found_vocabulary(directory)) is not None:
        return found
    with only_preparer(directory), temporary_sibling(directory) as temporary:
        if (found := _found_vocabulary(directory)) is not None:  # by the process that this one has waited for
            return found
        texts = {name: one.corpus for name, one in opened.items() if not one.is_parallel}
        texts = texts or {name: one.corpus for name, one in opened.items()}
        characters = {name: sum(map(len, _texts(corpus))) for name, corpus in texts.items()}
        if empty := [name for name, count in characters.items() if not count]:
            raise UserError(f"corpora.{empty[0]} has no text: check corpora.{empty[0]}.files")
        if tokenizer is None:
            shares = sampling_shares(characters, {}, data.corpora_exponent)
            tokenizer = train_tokenizer(data, _training_texts(data, texts, characters, shares))
        tokenizer.save(temporary / "tokenizer")
        rows = [_of_language(tokenizer, name, corpus, characters[name]) for name, corpus in texts.items()]
        report = {"tokenizer_hash": tokenizer.content_hash, "pieces": tokenizer.vocab_size, "corpora": rows}
        (temporary / "report.txt").write_text(_table(rows), "utf-8")
        (temporary / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8")
        _log.info("vocabulary of %d pieces: %s\n%s", tokenizer.vocab_size, directory, _table(rows))
        move_into_place(temporary, directory, lambda path: _found_vocabulary(path) is not None)
    return load_tokenizer(directory / "tokenizer")


def _found_vocabulary(directory: Path) -> Tokenizer | None:
    """Returns the vocabulary of a folder if it is whole, else None."""
    if not directory.exists():
        return None
    try:
        tokenizer = load_tokenizer(directory / "tokenizer")
        known = read_object(directory / "report.json", _REMEDY).get("tokenizer_hash", str)
    except UserError as error:
        _log.warning("making the vocabulary again: %s", error)
        return None
    return tokenizer if tokenizer.content_hash == known else None


def _training_texts(
    data: ConfigDict, corpora: Mapping[str, Corpus], characters: Mapping[str, int], shares: Mapping[str, float]
) -> Iterator[str]:
    """Yields the texts that a vocabulary is trained on: of each corpus its share of data.vocab_sample_megabytes, or of
    all characters if there are fewer. A corpus that has fewer than its share gives its texts several times."""
    total = min(data.vocab_sample_megabytes * 1_000_000, sum(characters.values()))
    for name, corpus in corpora.items():
        times = total * shares[name] / characters[name]
        for _ in range(int(times)):
            yield from _texts(corpus)
        yield from _thinned(_texts(corpus), times % 1)


def _thinned(texts: Iterable[str], share: float) -> Iterator[str]:
    """Yields texts evenly spread over all, with about this share of the characters."""
    seen = kept = 0
    for text in texts:
        seen += len(text)
        if kept + len(text) / 2 <= share * seen:
            kept += len(text)
            yield text


def _texts(corpus: Corpus) -> Iterator[str]:
    return (document.text for document in corpus.documents())


def _of_language(tokenizer: Tokenizer, name: str, corpus: Corpus, characters: int) -> Json:
    """Returns what the vocabulary makes of a corpus. Words are what stands between white space."""
    words = pieces = unknown = length = 0
    used: set[int] = set()
    for text in _thinned(_texts(corpus), min(1, _REPORTED / characters)):
        rows = tokenizer.encode_words(text.split("\n"))
        words, length = words + len(text.split()), length + len(text)
        pieces += sum(map(len, rows))
        unknown += sum(row.count(tokenizer.unk_id) for row in rows)
        used.update(*rows)
    return {
        "corpus": name,
        "characters": characters,
        "pieces_per_word": round(pieces / max(1, words), 3),
        "characters_per_piece": round(length / max(1, pieces), 3),
        "unknown_share": round(unknown / max(1, pieces), 6),
        "vocabulary_share": round(len(used) / tokenizer.vocab_size, 4),
    }


def _table(rows: list[Json]) -> str:
    lines = [f"{'corpus':<12}{'characters':>14}{'pieces/word':>13}{'chars/piece':>13}{'[UNK]':>9}{'of vocabulary':>15}"]
    for row in rows:
        numbers = f"{row['characters']:>14,}{row['pieces_per_word']:>13.2f}{row['characters_per_piece']:>13.2f}"
        shares = f"{row['unknown_share']:>9.3%}{row['vocabulary_share']:>15.1%}"
        lines.append(f"{row['corpus']:<12}{numbers}{shares}")
    return "\n".join(lines) + "\n"


def _log_shares(sizes: Mapping[str, float], shares: Mapping[str, float]) -> None:
    total = sum(sizes.values())
    lines = [f"{'corpus':<12}{'tokens':>14}{'of tokens':>11}{'of rows':>11}"]
    lines += [f"{name:<12}{sizes[name]:>14,.0f}{sizes[name] / total:>11.2%}{shares[name]:>11.2%}" for name in sizes]
    _log.info("rows are sampled from %d corpora\n%s", len(sizes), "\n".join(lines))
