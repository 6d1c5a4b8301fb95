"""Preparation on Apache Beam: the parts of a corpus on many machines, or on this one with Beam's DirectRunner.

Each stage is one pipeline over the parts that it has not finished yet. The stages meet in a folder that all workers can
write to; the records go from there through the same writer as with the local runner.
"""

import argparse
import contextlib
import importlib.util
import json
import logging
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from bert_jax.config import Json, UserError
from bert_jax.data.pretraining.chunks import BlockResult, BlockWork
from bert_jax.data.pretraining.parts import (
    IndexPart,
    Part,
    PreparePart,
    Ref,
    SamplePart,
    cut_parts,
    load,
    plan_parts,
    raise_error,
    read_results,
    sample_stride,
    store,
    unfinished,
)
from bert_jax.data.pretraining.splits import Splitter
from bert_jax.data.text.buckets import is_url, list_afresh
from bert_jax.data.text.corpus import Corpus
from bert_jax.data.tokenizers.tokenizer import (
    Tokenizer,
    normalizer_from_config,
    tokenizer_from_files,
    tokenizer_of_words,
    train_tokenizer,
)
from bert_jax.data.tokenizers.vocabulary import count_words
from bert_jax.extras import install
from bert_jax.files import only_writer

_OWN_OPTIONS = ("DirectRunner", "DataflowRunner")  # runners all of whose options Beam's package declares; the default
_log = logging.getLogger(__name__)
Item = TypeVar("Item")


def check_beam(data: ConfigDict) -> None:
    """Raises UserError unless Beam is installed and accepts data.beam_options."""
    if importlib.util.find_spec("apache_beam") is None:
        raise UserError(f"data.runner=beam needs Apache Beam, which is not installed: {install('beam')}")
    if data.masking == "static":
        wrong = "is the original script, which reads the corpus in one process"
        raise UserError(f"data.masking=static {wrong}: set data.runner=local or data.masking=dynamic")
    _pipeline_options(data)


@contextlib.contextmanager
def beam_preparation(data: ConfigDict, seed: int, corpus: Corpus, name: str, learns: bool) -> Iterator["Preparation"]:
    """Gives the preparation of `corpus`. Its folder is named after the dataset, and stays if an error ends it: the next
    start does only what is missing. Raises UserError if another process works in the folder."""
    folder = epath.Path(data.beam_temp or data.prepared) / f".{name}.beam"
    with contextlib.ExitStack() as stack:
        if is_url(data.beam_temp):
            list_afresh()
            (folder / "begun").write_text("")  # a bucket has no empty folders, and no locks
        else:
            folder = epath.Path(Path(folder).absolute())  # workers may have another working directory
            folder.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(only_writer(Path(folder)))
            except BlockingIOError as error:
                raise UserError(f"{folder}: {error.strerror}: wait for it, or end it") from error
        yield Preparation(data, seed, corpus, folder, learns)
    folder.rmtree()


class Preparation:
    """The stages of a preparation, each over the parts of the corpus."""

    def __init__(self, data: ConfigDict, seed: int, corpus: Corpus, folder: epath.Path, learns: bool):
        self._data, self._seed, self._folder = data, seed, folder
        self._parts = cut_parts(corpus)
        self._options = _pipeline_options(data)
        self._limit = data.vocab_sample_megabytes * 1_000_000 if learns else 0
        self._stage("index", self._parts, IndexPart(str(folder), seed, self._limit, data.deduplicate))

    def tokenizer(self) -> Tokenizer:
        """Learns the vocabulary that the local runner learns, or finds the one that an earlier start has learned."""
        path = self._folder / "tokenizer"
        if path.exists():
            return tokenizer_from_files({name: content.tobytes() for name, content in load(path).items()}, str(path))
        stride, firsts = sample_stride(self._folder, self._parts, self._limit)
        parts = list(zip(self._parts, firsts, strict=True))
        sample = SamplePart(stride, self._limit)
        if self._data.tokenizer == "wordpiece":
            tokenizer = tokenizer_of_words(self._data, self._count_words(parts, sample))
        else:  # SentencePiece learns from text, which is gathered here whoever reads it
            tokenizer = train_tokenizer(self._data, (text for part in parts for text in sample(*part)))
        store(path, {name: np.frombuffer(content, np.uint8) for name, content in tokenizer.files().items()})
        return tokenizer

    def results(self, work: BlockWork) -> Iterator[BlockResult]:
        """Yields what `BlockWork` makes of the corpus, in the order of the local runner."""
        splitter = Splitter[Ref](self._data.validation_share, self._data.test_share)
        planned = plan_parts(self._folder, self._parts, splitter)
        self._stage("done", planned, PreparePart(str(self._folder), self._seed, work))
        return read_results(self._folder, self._parts)

    def _stage(self, suffix: str, items: Sequence[Item], work: Callable[[Item], None]) -> None:
        """Does `work` for the parts that have no file with this suffix yet, which `work` writes."""
        missing = unfinished(self._folder, range(len(items)), suffix)
        _log.info("beam, stage %s: %d of %d parts are finished", suffix, len(items) - len(missing), len(items))
        if missing:
            with self._pipeline() as elements:
                _ = elements([items[number] for number in missing], "parts") | suffix >> _beam().Map(work)
            raise_error(self._folder)

    def _count_words(self, parts: Sequence[tuple[Part, int]], sample: SamplePart) -> Counter[str]:
        beam, path = _beam(), self._folder / "words"
        with self._pipeline() as elements:
            counted = elements(parts, "parts") | beam.FlatMap(_WordCount(sample, self._data.to_dict()))
            lines = counted | beam.CombinePerKey(sum) | beam.Map(json.dumps)
            _ = lines | beam.io.WriteToText(str(path), num_shards=1, shard_name_template="")
        with path.open("rb") as stream:
            return Counter(dict(map(json.loads, stream)))

    @contextlib.contextmanager
    def _pipeline(self) -> Iterator[Callable[[Sequence[Any], str], Any]]:
        """Gives a function from a list to a collection of a pipeline, which runs at the end. Raises UserError."""
        beam = _beam()
        try:
            with beam.Pipeline(options=self._options) as pipeline:
                # Without the shuffle, one worker would get all parts: they come from one element.
                yield lambda items, label: pipeline | label >> beam.Create(items) | beam.Reshuffle()
        except (UserError, KeyboardInterrupt, MemoryError):
            raise
        except Exception as error:  # of the runner, or of a worker, in whatever class the runner raises it
            _log.debug("the pipeline failed", exc_info=True)
            lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            wrong = f"the pipeline failed ({lines[-1][:300]})"
            remedy = "see the runner's log above; finished parts are kept, so start again"
            raise UserError(f"data.beam_options={self._data.beam_options!r}: {wrong}: {remedy}") from error


class _WordCount:
    """Gives (word, count) of the sample in a part, by the counter of the local runner."""

    def __init__(self, sample: SamplePart, data: Json):
        self._sample, self._data = sample, data

    def __call__(self, numbered: tuple[Part, int]) -> Iterator[tuple[str, int]]:
        return iter(count_words(self._sample(*numbered), normalizer_from_config(ConfigDict(self._data))).items())


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def _pipeline_options(data: ConfigDict) -> Any:
    """Returns Beam's PipelineOptions. Raises UserError for what Beam would refuse later, or ignore with a warning."""
    from apache_beam.options.pipeline_options import PipelineOptions  # pyright: ignore[reportMissingImports]

    try:
        flags = shlex.split(data.beam_options)
        parser = _Parser(allow_abbrev=False, add_help=False)
        for options in PipelineOptions.__subclasses__():
            options._add_argparse_args(parser)
        _, unknown = parser.parse_known_args(flags)
        made = PipelineOptions(flags)
        wrong = _refused(made, unknown)
    except (UserError, ValueError, ImportError, AttributeError) as error:
        made, wrong = None, [str(error)]
    if wrong:
        reasons = "; ".join(" ".join(reason.split()) for reason in wrong)
        raise UserError(f"data.beam_options={data.beam_options!r}: {reasons}: correct the options")
    return made


def _refused(options: Any, unknown: list[str]) -> list[str]:
    """Returns what the runner would say about the options; `unknown` are those that no class of Beam declares."""
    from apache_beam.options.pipeline_options import StandardOptions  # pyright: ignore[reportMissingImports]
    from apache_beam.options.pipeline_options_validator import (  # pyright: ignore[reportMissingImports]
        PipelineOptionsValidator,
    )
    from apache_beam.runners.runner import create_runner  # pyright: ignore[reportMissingImports]

    runner = options.view_as(StandardOptions).runner or _OWN_OPTIONS[0]
    wrong = PipelineOptionsValidator(options, create_runner(runner)).validate()
    if unknown and runner in _OWN_OPTIONS:  # other runners take options that only their job server knows
        wrong.append(f"{runner} has no option {' '.join(unknown)}")
    return wrong


def _beam() -> Any:
    import apache_beam  # pyright: ignore[reportMissingImports]  (takes seconds, and only this runner needs it)

    return apache_beam
