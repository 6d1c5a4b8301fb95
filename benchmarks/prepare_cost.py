"""What preparation by parts (data.runner=beam) costs: processor time of each stage, and from it 20 GB and 1 TB.

    python benchmarks/prepare_cost.py --files='corpus/enwiki2015/**/wiki_*,corpus/gutenberg/*___*.txt' \\
        [--length=128] [--cores=2,64,256] [--rounds=3]

The stages run one after another in this process, without Beam, so its own work (start of workers, shuffling a list of
parts) is not in the figures; `benchmarks/prepare.py --peers=beam` has it. For a corpus of G GB on C cores

    seconds = G × (fingerprint + plan + merge) + G × (index + records) / C

since the starting process does the first three alone. Left out is what hardly grows: it reads about four documents for
each doubling of the corpus again. The rates are processor seconds per GB of raw text, medians.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from timing import machine, spread

from bert_jax.config import UserError
from bert_jax.data.pretraining import parts
from bert_jax.data.pretraining.chunks import BlockWork
from bert_jax.data.pretraining.records import ShardWriter, record_fields
from bert_jax.data.pretraining.splits import Splitter
from bert_jax.data.text.corpus import open_corpus
from bert_jax.data.tokenizers.tokenizer import Tokenizer, tokenizer_from_config
from bert_jax.heap import restart_with_kept_heap
from experiments import base

_ALONE, _SPREAD = ("fingerprint", "plan", "merge"), ("index", "records")  # stages by who does them
_SHARD = 1 << 23  # bytes


def main() -> None:
    options = _options()
    print("\n".join(f"{key}: {value}" for key, value in machine(["tokenizers", "array_record"]).items()))
    data = base.get_config().data
    data.corpus, data.files, data.sequence_length = "text", options.files, options.length
    try:
        tokenizer = tokenizer_from_config(data, open_corpus(data))
        rounds = [measure(data, tokenizer) for _ in range(options.rounds)]
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    gigabytes = open_corpus(data).num_bytes / 1e9
    rates = {stage: [found[stage] / gigabytes for found in rounds] for stage in (*_ALONE, *_SPREAD)}
    for stage, found in rates.items():
        print(f"{stage:12} {spread(found)} processor seconds per GB")
    medians = {stage: statistics.median(found) for stage, found in rates.items()}
    print(f"{'corpus':>8} {'cores':>6} {'hours':>8} {'core hours':>11} {'of which alone':>15}")
    for name, size in (("20 GB", 20.0), ("1 TB", 1000.0)):
        for cores in options.cores:
            alone, shared, hours = cost(medians, size, cores)
            print(f"{name:>8} {cores:>6} {hours:>8.2f} {alone + shared:>11.2f} {alone:>15.2f}")


def cost(rates: dict[str, float], gigabytes: float, cores: int) -> tuple[float, float, float]:
    """Returns the hours of the starting process, the core hours of the workers, and the hours from start to end."""
    alone, shared = (gigabytes * sum(rates[stage] for stage in stages) / 3600 for stages in (_ALONE, _SPREAD))
    return alone, shared, alone + shared / cores


def measure(data: Any, tokenizer: Tokenizer) -> dict[str, float]:
    """Returns the processor seconds of each stage."""
    seconds: dict[str, float] = {}

    def timed(stage: str, call: Callable[[], Any]) -> Any:
        before = time.process_time()
        result = call()
        seconds[stage] = time.process_time() - before
        return result

    corpus = timed("fingerprint", lambda: open_corpus(data))
    work = BlockWork(
        tokenizer, data.sequence_length, np.dtype(record_fields("dynamic", tokenizer.vocab_size)["tokens"])
    )
    with tempfile.TemporaryDirectory() as name:
        folder, cut = epath.Path(name), parts.cut_parts(corpus)
        index, prepare = parts.IndexPart(name, data.seed, 0), parts.PreparePart(name, data.seed, work)
        timed("index", lambda: list(map(index, cut)))
        timed("plan", lambda: _split(folder, cut, data))
        planned = parts.plan_parts(folder, cut, Splitter(data.validation_share, data.test_share))
        timed("records", lambda: list(map(prepare, planned)))
        parts.raise_error(folder)
        writer = ShardWriter(Path(name), _SHARD)

        def merge() -> None:
            for result in parts.read_results(folder, cut):
                for split, records in result.records.items():
                    writer.write(split, records)
            writer.finish()

        timed("merge", merge)
    return seconds


def _split(folder: epath.Path, cut: list[parts.Part], data: Any) -> None:
    """Does the part of `plan_parts` that grows with the corpus."""
    splitter = Splitter[parts.Ref](data.validation_share, data.test_share)
    for part in cut:
        for index, value in enumerate(parts.load(folder / f"{part.number:06d}.index")["hashes"].tolist()):
            splitter.add(value, (part.number, index))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--files", required=True, help="paths and globs of a plain-text corpus, uncompressed")
    add("--length", type=int, default=128, help="tokens a row [128]")
    add("--cores", type=lambda text: list(map(int, text.split(","))), default=[2, 64, 256], help="[2,64,256]")
    add("--rounds", type=int, default=3, help="measurements of each stage [3]")
    return parser.parse_args()


if __name__ == "__main__":
    restart_with_kept_heap()
    main()
