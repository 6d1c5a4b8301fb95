"""Corpus → TFDS dataset in ArrayRecord shards, with tokenizer, manifest and report in the same folder.

A dataset's folder is named after the corpus, the sequence length and a hash of everything its records depend on; if
that folder is whole it is used again. It is written beside its final path and moved there last.
"""

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from bert_jax.config import Json, UserError
from bert_jax.data.pretraining.beam import Preparation, beam_preparation, check_beam
from bert_jax.data.pretraining.chunks import BlockResult, BlockWork, blocks, num_bytes
from bert_jax.data.pretraining.cleaning import Cleaning, marked
from bert_jax.data.pretraining.folders import move_into_place, only_preparer, temporary_sibling
from bert_jax.data.pretraining.original import Instance, OriginalSettings, create_instances
from bert_jax.data.pretraining.prepared import FORMAT_VERSION, MANIFEST, Incomplete, PreparedCorpus, open_prepared
from bert_jax.data.pretraining.records import DATASET_NAME, ShardWriter, encode_record, record_fields, tfds_features
from bert_jax.data.pretraining.report import Statistics, make_report, report_text
from bert_jax.data.pretraining.splits import SPLITS, split_documents
from bert_jax.data.pretraining.translations import PARALLEL, TranslationWork
from bert_jax.data.pretraining.workers import in_order, in_worker
from bert_jax.data.text.corpus import Corpus, Document, open_corpus, split_sentences
from bert_jax.data.tokenizers.tokenizer import Tokenizer, WordPieceTokenizer, load_tokenizer, tokenizer_from_config

_SMALL_CORPUS = 8 << 20  # bytes that one process prepares sooner than others start
_log = logging.getLogger(__name__)


def prepare(
    data: ConfigDict,
    seed: int,
    tokenizer: Tokenizer | None = None,
    *,
    corpus: Corpus | None = None,
    progress: bool = True,
) -> PreparedCorpus:
    """Builds the dataset of the `data` group of a config, or reuses it; `corpus` is what it names, if it is open
    already. Raises UserError.

    Which vocabulary: 1. data.vocab_file, 2. `tokenizer` (a checkpoint's), 3. one trained on the corpus. Its workers
    import the script that calls it: there, call it under `if __name__ == "__main__":`, else it raises RuntimeError.
    """
    if in_worker():
        raise RuntimeError("a worker cannot prepare what it is a worker for")
    if data.masking == "static" and (data.pairing != "nsp" or data.mask_unit == "span"):
        wrong = f"the original script, which has no pairing={data.pairing} with mask_unit={data.mask_unit}"
        remedy = "use pairing=nsp and mask_unit=token|word, or masking=dynamic"
        raise UserError(f"data.masking=static is {wrong}: {remedy}")
    if data.runner == "beam":
        check_beam(data)
    elif data.beam_options or data.beam_temp:
        raise UserError(f"data.beam_options and data.beam_temp belong to data.runner=beam, not {data.runner}: set it")
    corpus = corpus or open_corpus(data)
    tokenizer = tokenizer_from_config(data, corpus) if data.vocab_file else tokenizer
    settings = _settings(data, seed, corpus, tokenizer)
    key = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8).hexdigest()
    directory = Path(data.prepared) / f"{corpus.name}-{data.sequence_length}-{key}"
    if (found := _found(directory)) is not None:
        return _checked(found, data)
    with only_preparer(directory), temporary_sibling(directory) as temporary, contextlib.ExitStack() as stack:
        if (found := _found(directory)) is not None:  # by the process that this one has waited for
            return _checked(found, data)
        preparation = None
        if data.runner == "beam":
            begun = beam_preparation(data, seed, corpus, directory.name, learns=tokenizer is None)
            preparation = stack.enter_context(begun)
            tokenizer = tokenizer or preparation.tokenizer()
        tokenizer = tokenizer or tokenizer_from_config(data, corpus)
        folder = temporary / "tokenizer"
        tokenizer.save(folder)
        if data.masking == "static":  # switches the saved tokenizer to the original's rules, in its files too
            tokenizer = load_tokenizer(folder)
            if not isinstance(tokenizer, WordPieceTokenizer):
                remedy = "set data.tokenizer=wordpiece"
                raise UserError(f"data.masking=static is the original script, which knows WordPiece only: {remedy}")
            tokenizer = WordPieceTokenizer(tokenizer.backend, str(folder), original=True)
            tokenizer.save(folder)
        results = _results(data, seed, corpus, tokenizer, preparation)
        _build(temporary, data, corpus, tokenizer, settings, results, progress)
        move_into_place(temporary, directory, _is_whole)
    return _checked(open_prepared(directory), data)


def _found(directory: Path) -> PreparedCorpus | None:
    """Returns the dataset of a folder if it is whole, else None."""
    if directory.exists():
        try:
            prepared = open_prepared(directory)
            _log.info("using the prepared dataset %s", directory)
            return prepared
        except Incomplete as error:
            _log.warning("preparing again: %s", error)
    return None


def _settings(data: ConfigDict, seed: int, corpus: Corpus, tokenizer: Tokenizer | None) -> Json:
    """Returns everything the records depend on. A vocabulary still to be trained is known by its training options."""
    names = ["corpus", "text_field", "sequence_length", "masking", "validation_share", "test_share"]
    if tokenizer is None:
        names += ["tokenizer", "vocab_size", "vocab_sample_megabytes", "lowercase", "strip_accents", "split_cjk"]
    if data.masking == "static":
        names += ["mask_unit", "mask_rate", "mask_share", "random_share", "keep_share", "dupe_factor"]
        names += ["max_predictions_per_sequence", "random_next_rate", "short_sequence_rate"]
    names += [name for name in ("clean", "deduplicate") if data[name] not in ("none", False)]
    settings = {name: data[name] for name in names}
    settings |= {"format": FORMAT_VERSION, "seed": seed, "fingerprint": corpus.fingerprint}
    return settings | {"tokenizer_hash": tokenizer.content_hash if tokenizer else None}


def _checked(prepared: PreparedCorpus, data: ConfigDict) -> PreparedCorpus:
    """Returns the dataset. Raises UserError if this config cannot train on it."""
    documents = prepared.manifest["splits"]["train"]["documents"]
    if prepared.num_records("train") == 0:
        rules = "" if data.clean == "none" else f", or data.clean={data.clean}, which leaves out what report.txt says"
        raise UserError(f"corpus {data.corpus} {data.files!r} has no text to train on: check data.files{rules}")
    if data.pairing == "nsp" and documents < 2:
        raise UserError(
            f"corpus {data.corpus} {data.files!r} has {documents} training document: nsp draws random sentences from "
            "another one; separate documents by blank lines or set --config.data.pairing=sop (or none)"
        )
    return prepared


def _results(
    data: ConfigDict, seed: int, corpus: Corpus, tokenizer: Tokenizer, preparation: Preparation | None
) -> Iterator[BlockResult]:
    """Returns the records and statistics of the whole corpus. Their order within a split does not depend on who makes
    them."""
    fields = record_fields(data.masking, tokenizer.vocab_size)
    documents, whole = corpus.documents(), Statistics()
    if data.deduplicate:
        documents = marked(documents, seed, whole.removed)
    split = split_documents(documents, seed, data.validation_share, data.test_share)
    if data.masking == "static":
        yield from _static_results(data, seed, tokenizer, fields, split)
    else:
        dtype, cleaning = np.dtype(fields["tokens"]), Cleaning.from_config(data)
        kind = TranslationWork if data.corpus == PARALLEL else BlockWork
        work = kind(tokenizer, data.sequence_length, dtype, cleaning)
        small = corpus.num_bytes is not None and corpus.num_bytes < _SMALL_CORPUS
        workers = data.workers or (1 if small else os.cpu_count() or 1)
        yield from in_order(work, blocks(split), workers) if preparation is None else preparation.results(work)
    yield BlockResult(0, {}, {"train": whole})  # the report shows what was left out of all splits together


def _build(
    directory: Path,
    data: ConfigDict,
    corpus: Corpus,
    tokenizer: Tokenizer,
    settings: Json,
    results: Iterator[BlockResult],
    progress: bool,
) -> None:
    """Writes the shards, the metadata for TFDS, the report, and the manifest last."""
    started = time.monotonic()
    fields = record_fields(data.masking, tokenizer.vocab_size)
    statistics = {name: Statistics() for name in SPLITS}
    writer = ShardWriter(directory, _shard_bytes(corpus))
    with tqdm(total=corpus.num_bytes, unit="B", unit_scale=True, desc="preparing", disable=not progress) as bar:
        for result in results:
            for name, block_statistics in result.statistics.items():
                statistics[name].merge(block_statistics)
            for name, records in result.records.items():
                writer.write(name, records)
            bar.update(result.num_bytes)
        shards = writer.finish()
    _write_metadata(directory, fields, shards)
    report = make_report(statistics)
    (directory / "report.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    (directory / "report.txt").write_text(report_text(report), "utf-8")
    manifest = {"format": FORMAT_VERSION, "corpus": corpus.name, "masking": data.masking}
    manifest |= {"sequence_length": data.sequence_length, "vocab_size": tokenizer.vocab_size}
    manifest |= {"tokenizer_hash": tokenizer.content_hash, "settings": settings}
    manifest |= {"splits": report["splits"], "shards": shards}
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")
    level = logging.WARNING if report["warnings"] else logging.INFO
    tokens = sum(counts["tokens"] for counts in report["splits"].values()) / 1e6
    seconds = time.monotonic() - started
    _log.log(level, "prepared %.1f million tokens in %.1f s\n%s", tokens, seconds, report_text(report))


def _shard_bytes(corpus: Corpus) -> int:
    """Returns the size of a shard: 1/64 of the records, which take half of the text's bytes; 128 KB to 8 MB."""
    return 1 << 21 if corpus.num_bytes is None else min(max(corpus.num_bytes // 128, 1 << 17), 1 << 23)


def _static_results(
    data: ConfigDict,
    seed: int,
    tokenizer: Tokenizer,
    fields: dict[str, np.dtype | None],
    split: Iterator[tuple[str, Document]],
) -> Iterator[BlockResult]:
    """Yields the statistics of each document, then the original script's instances of each split: with both shares 0,
    exactly its output for this seed."""
    vocabulary = [tokenizer.token(index) for index in range(tokenizer.vocab_size)]
    cleaning = Cleaning.from_config(data)
    documents: dict[str, list[list[list[str]]]] = {name: [] for name in SPLITS}
    for name, original in split:
        statistics = Statistics()
        document, statistics.removed = cleaning(original)
        sentences = split_sentences(document)
        statistics.add_lines(sentences)
        ids = [sentence for sentence in tokenizer.encode_words(sentences) if sentence]
        if ids:
            statistics.add_document([len(s) for s in ids], [], sum(s.count(tokenizer.unk_id) for s in ids))
            documents[name].append([[vocabulary[token] for token in sentence] for sentence in ids])
        yield BlockResult(num_bytes(original), {}, {name: statistics})

    def encode(instance: Instance) -> bytes:
        tokens, labels = (list(map(tokenizer.id, names)) for names in (instance.tokens, instance.labels))
        arrays = {"input_ids": tokens, "segment_ids": instance.segment_ids}
        arrays |= {"masked_lm_positions": instance.positions, "masked_lm_ids": labels}
        record: Json = {name: np.asarray(value, fields[name]) for name, value in arrays.items()}
        return encode_record(record | {"next_sentence_labels": int(instance.is_random_next)})

    options = OriginalSettings.from_config(data, tokenizer.continuation_prefix)
    for name in SPLITS:
        instances = create_instances(documents.pop(name), vocabulary, Random(seed), options, store=encode)
        yield BlockResult(0, {name: instances}, {})


def _write_metadata(directory: Path, fields: dict[str, np.dtype | None], shards: list[Json]) -> None:
    import tensorflow_datasets as tfds
    from etils import epath

    infos = []
    for split in dict.fromkeys(shard["split"] for shard in shards):
        files = [shard for shard in shards if shard["split"] == split]
        lengths, size = [shard["records"] for shard in files], sum(shard["bytes"] for shard in files)
        template = tfds.core.ShardedFileTemplate(
            data_dir=epath.Path(directory), dataset_name=DATASET_NAME, split=split, filetype_suffix="array_record"
        )
        infos.append(tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=size, filename_template=template))
    if infos:
        tfds.folder_dataset.write_metadata(
            data_dir=os.fspath(directory), features=tfds_features(fields), split_infos=infos, check_data=False
        )


def _is_whole(directory: Path) -> bool:
    try:
        open_prepared(directory)
    except UserError:
        return False
    return True
