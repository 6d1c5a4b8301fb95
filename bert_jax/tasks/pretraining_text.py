"""The text of a pretraining run: prepared by one of its processes, and counted."""

import logging
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float
from ml_collections import ConfigDict

from bert_jax.config import UserError
from bert_jax.data.pretraining.corpora import Mixture, languages_of, prepare_corpora
from bert_jax.data.pretraining.pipeline import Prepared, pairs_per_row
from bert_jax.data.pretraining.prepare import prepare
from bert_jax.data.pretraining.prepared import PreparedCorpus
from bert_jax.data.text.sample import sample_versions
from bert_jax.phases import phase_configs
from bert_jax.tasks.masking import WordsOfLanguages
from bert_jax.tasks.task import Source

_RECORDS = 20_000  # that tokens are counted in

Made = TypeVar("Made")


def prepared_corpora(config: ConfigDict, source: Source | None) -> dict[int, Prepared]:
    """Returns the text of a run, by the length of its rows: that of the config, and those of phases with other rows,
    which have its vocabulary."""
    prepared = prepared_corpus(config, source)
    found, known = {config.data.sequence_length: prepared}, Source(prepared.tokenizer, config.task, {})
    for _, phase in phase_configs(config):
        if (length := phase.data.sequence_length) not in found:
            found[length] = prepared_corpus(phase, known)
    return found


def prepared_corpus(config: ConfigDict, source: Source | None) -> Prepared:
    """Returns the corpus of the config, or the mixture of its corpora, prepared first unless it was before."""
    if config.data.corpus == "sample" and not config.data.files and not config.corpora:
        logging.warning(
            "THE CORPUS IS THE BUILT-IN SAMPLE (7 MB of the documentation of %s). "
            "For yours: --config.data.corpus=text --config.data.files='corpus/*.txt'",
            sample_versions(),
        )
    if config.data.runner == "beam" and jax.process_count() > 1:
        remedy = "run --mode=prepare in one process first, then train with data.runner=local"
        raise UserError(f"data.runner=beam starts workers itself, and {jax.process_count()} processes run: {remedy}")
    tokenizer = source and source.tokenizer
    if config.corpora:
        return _first_by_one(lambda: prepare_corpora(config, tokenizer))
    return _first_by_one(lambda: prepare(config.data, config.data.seed, tokenizer))


def steps_of_an_epoch(config: ConfigDict, corpora: Mapping[int, Prepared]) -> Fraction:
    """Returns the steps per epoch, exactly; of a run in phases, their mean over all of its steps. `corpora` are by the
    length of rows."""
    epochs_per_step, before = Fraction(0), 0.0
    for share, phase in phase_configs(config):
        prepared = corpora[phase.data.sequence_length]
        pairs = phase.train.batch_size * pairs_per_row(prepared, phase)
        epochs_per_step += Fraction(share - before) * Fraction(pairs) / prepared.num_records("train")
        before = share
    return 1 / epochs_per_step


def token_counts(prepared: Prepared) -> Float[np.ndarray, " V"]:
    """Returns how often each entry of the vocabulary occurs in training records, which are taken at even distances; of
    a mixture, weighted by the shares of its corpora."""
    if not isinstance(prepared, Mixture):
        return _counts(prepared)
    found = [(one.share, _counts(one.prepared)) for one in prepared.members]
    return np.sum([share * _RECORDS * counts / counts.sum() for share, counts in found], axis=0)


def assumed_words(config: ConfigDict, vocab_size: int) -> WordsOfLanguages:
    """Returns what stands for `words_of_languages` where there is no text: of each language, the whole vocabulary.
    Raises UserError for a run without languages."""
    if not config.corpora:
        raise UserError("data.random_words=language needs the languages of corpora; set it to vocabulary")
    count = len(languages_of(config))
    return np.tile(np.arange(vocab_size, dtype=np.int32), (count, 1)), np.full(count, vocab_size, np.int32)


def words_of_languages(mixture: Mixture, languages: Sequence[str]) -> WordsOfLanguages:
    """Returns for each language the tokens that occur in its corpora, special ones left out, in the first entries of a
    row; and their number. Parallel corpora are not counted, unless the language has no other."""
    vocab_size = mixture.tokenizer.vocab_size
    table, numbers = np.zeros((len(languages), vocab_size), np.int32), np.zeros(len(languages), np.int32)
    for row, language in enumerate(languages):
        own = [one for one in mixture.members if language in one.languages]
        own = [one for one in own if not one.is_parallel] or own
        if not own:  # a language of model.languages that the run has no text of: no row is of it
            continue
        counts = np.sum([_counts(one.prepared) for one in own], axis=0)
        counts[list(mixture.tokenizer.special_ids)] = 0
        found = np.flatnonzero(counts)
        table[row, : len(found)], numbers[row] = found, len(found)
    return table, numbers


def _counts(prepared: PreparedCorpus) -> Float[np.ndarray, " V"]:
    source = prepared.source("train")
    field = "input_ids" if prepared.manifest["masking"] == "static" else "tokens"
    numbers = np.unique(np.linspace(0, len(source) - 1, _RECORDS).astype(int))
    tokens = np.concatenate([source[number][field] for number in numbers.tolist()])
    return np.bincount(tokens, minlength=prepared.tokenizer.vocab_size).astype(np.float64)


def _first_by_one(make: Callable[[], Made]) -> Made:
    """Calls `make` in the first of several processes; the others wait, then find its work done or fail for the same
    reason. The folder must be visible to every machine."""
    if jax.process_index() > 0:
        multihost_utils.sync_global_devices("prepared")
    try:
        return make()
    finally:
        if jax.process_index() == 0 and jax.process_count() > 1:
            multihost_utils.sync_global_devices("prepared")
