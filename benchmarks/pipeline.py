"""The input pipeline alone: rows a second from prepared shards to arrays on the device, without a model.

    python benchmarks/pipeline.py [--files='corpus/*.txt'] [--lengths=128,512] [--read_workers=0,1,2] [--batch=256]
        [--rounds=3] [--seconds=5] [--size=base] [--model_tokens_per_second=800] [--gpu_tflops=989] [--gpu_mfu=0.6]

Variants take turns: pretraining rows of `experiments/base.py` at each length, made by threads of this process
(`read_workers` 0) or by so many others; and batches of mixed lengths for fine-tuning, from examples in memory. Dynamic
masking is part of the training step, not of this. Tokens are positions of the batch, padding included, as a model's
throughput counts them.

Beside them stands what a model eats: on the CPU `model_tokens_per_second` (BERT-base: about 800 on two cores), and on
a GPU that keeps `gpu_mfu` of its `gpu_tflops` busy (H100: 989 in bfloat16) what the operations of a step at that length
and size allow. The last lines are, for every length, the speed of the best number of workers over both needs: of the
medians, and the range of rounds.
"""

import argparse
import logging
import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from timing import machine, run_in_scratch, spread

from bert_jax.data.batching import batches
from bert_jax.data.batching.batch_order import EpochOrder
from bert_jax.data.batching.items import Item, Part
from bert_jax.data.batching.reader import TrainBatches
from bert_jax.data.batching.shapes import Limits, packed_shapes, padded_shapes
from bert_jax.data.pretraining.pipeline import train_batches
from bert_jax.data.pretraining.prepare import prepare
from bert_jax.data.pretraining.prepared import PreparedCorpus
from bert_jax.heap import restart_with_kept_heap
from bert_jax.models.config import bert_config
from bert_jax.models.cost import training_flops
from bert_jax.sharding import make_mesh, to_mesh
from experiments import base

Speed = dict[str, float]  # "rows" and "tokens" a second

_EXAMPLES = 20_000  # for fine-tuning
_VOCAB_SIZE = 30_522  # of the model that the pipeline is compared with


def main() -> None:
    options = _options()
    run_in_scratch(options, compare)


def compare(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Prints a line a variant and the ratios; gives {"machine", "variants": {name: rounds}, "ratios"}."""
    logging.getLogger("bert_jax").setLevel(logging.ERROR)
    figures: dict[str, Any] = {"machine": machine(["jax", "grain", "array_record"])}
    print("\n".join(f"{key}: {value}" for key, value in figures["machine"].items()), flush=True)
    configs = {length: _config(options, length, scratch) for length in options.lengths}
    prepared = {length: prepare(config.data, 0, progress=False) for length, config in configs.items()}
    items = {length: _items(data) for length, data in prepared.items()}
    for length, data in prepared.items():
        print(f"length {length}: {data.num_records('train'):,} chunks in {len(data.manifest['shards'])} shards")
    rounds: dict[str, list[Speed]] = {}
    for _ in range(options.rounds):
        for length, config in configs.items():
            for workers in options.read_workers:
                config.data.read_workers = workers
                speed = _measure(train_batches(prepared[length], config), config, options.seconds)
                rounds.setdefault(_pretraining(length, workers), []).append(speed)
            config.data.read_workers = 0
            speed = _measure(_fine_tuning(items[length], config, packed=options.packing), config, options.seconds)
            rounds.setdefault(f"fine-tuning {length}, threads", []).append(speed)
    print(f"{'':30} {'rows/s':>26} {'tokens/s':>34}")
    for name, speeds in rounds.items():
        cells = [
            f"{spread([speed[key] for speed in speeds], 0):>{width}}" for key, width in (("rows", 26), ("tokens", 34))
        ]
        print(f"{name:30} {' '.join(cells)}")
    return {**figures, "variants": rounds, "ratios": _ratios(rounds, options)}


def _config(options: argparse.Namespace, length: int, scratch: Path) -> ConfigDict:
    config = base.get_config(options.size)
    config.data.prepared = str(scratch)
    config.data.sequence_length = length
    config.data.max_predictions_per_sequence = math.ceil(0.15 * length)  # as in the paper
    config.train.batch_size = options.batch
    if options.packing:
        config.data.packing = True
    if options.files:
        config.data.corpus, config.data.files = "text", options.files
    return config


def _items(prepared: PreparedCorpus) -> list[Item]:
    """Single texts of a few sentences, as the beginnings of chunks give them."""
    source, tokenizer = prepared.source("train"), prepared.tokenizer
    items = []
    for index in range(min(_EXAMPLES, len(source))):
        record = source[index]
        sentences = np.cumsum(record["sentence_lengths"])
        end = min(int(sentences[index % len(sentences)]), prepared.manifest["sequence_length"] - 2)
        ids = np.array([tokenizer.cls_id, *record["tokens"][:end], tokenizer.sep_id], np.int32)
        items.append(Item((Part(ids, np.zeros_like(ids)),), {"labels": np.asarray(index % 2, np.int32)}))
    return items


def _fine_tuning(items: Sequence[Item], config: ConfigDict, *, packed: bool) -> TrainBatches:
    size = config.train.batch_size
    order = EpochOrder(items, size, config.seed, mixed=packed)
    choose = packed_shapes if packed else padded_shapes
    shapes = choose(items, order.epoch(0), size, Limits(config.data.buckets, config.data.sequence_length))
    return batches.train_batches(items, shapes, order, config, fingerprint="")


def _measure(steps: TrainBatches, config: ConfigDict, seconds: float) -> Speed:
    """From the first batch that is not among those that were waiting, to the arrays on the device."""
    mesh = make_mesh(config.mesh)
    for _ in range(config.data.prefetch + 2 * config.data.read_workers):
        jax.block_until_ready(to_mesh(mesh, next(steps)))
    rows = tokens = 0
    started = time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        batch = jax.block_until_ready(to_mesh(mesh, next(steps)))
        rows += len(batch["input_ids"])
        tokens += batch["input_ids"].size
    steps.close()
    return {"rows": rows / elapsed, "tokens": tokens / elapsed}


def _ratios(rounds: dict[str, list[Speed]], options: argparse.Namespace) -> dict[str, Any]:
    """Prints, for each length, what the pipeline delivers over what a model eats."""
    ratios: dict[str, Any] = {}
    for length in options.lengths:
        predictions = math.ceil(0.15 * length)
        shape = bert_config(base.get_config(options.size).model, _VOCAB_SIZE)
        flops = training_flops(shape, 1, length, predictions) / length
        gpu = options.gpu_mfu * options.gpu_tflops * 1e12 / flops
        needs = {"the CPU": options.model_tokens_per_second, "the GPU": gpu}
        best = max(options.read_workers, key=lambda w: statistics.median(_tokens(rounds[_pretraining(length, w)])))
        speeds = _tokens(rounds[_pretraining(length, best)])
        print(
            f"length {length}: BERT-{options.size} eats {options.model_tokens_per_second:,.0f} tokens/s on the CPU; "
            f"at {flops / 1e6:.0f} MFLOP each and {options.gpu_mfu:.0%} of {options.gpu_tflops:g} TFLOP/s, "
            f"{gpu:,.0f} on the GPU"
        )
        for name, need in needs.items():
            values = [speed / need for speed in speeds]
            ratios[f"length {length}, {name}"] = {"read_workers": best, "need": need, "rounds": values}
            print(f"length {length}, read_workers {best}, over {name}: ratio {spread(values)}")
    return ratios


def _pretraining(length: int, workers: int) -> str:
    return f"pretraining {length}, " + (f"{workers} processes" if workers else "threads")


def _tokens(speeds: Sequence[Speed]) -> list[float]:
    return [speed["tokens"] for speed in speeds]


def _options() -> argparse.Namespace:
    def integers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--files", default="", help="paths and globs of a corpus in plain text [the built-in sample]")
    add("--lengths", type=integers, default=[128, 512], help="tokens a row [128,512]")
    add("--read_workers", type=integers, default=[0, 1, 2], help="processes that read; 0: threads [0,1,2]")
    add("--batch", type=int, default=256, help="rows [256]")
    add("--packing", action="store_true", help="several pairs a row (data.packing)")
    add("--rounds", type=int, default=3)
    add("--seconds", type=float, default=5.0, help="of each measurement [5]")
    add("--size", default="base", help="of the model that it would feed [base]")
    add("--model_tokens_per_second", type=float, default=800.0, help="that the model eats on this CPU [800]")
    add("--gpu_tflops", type=float, default=989.0, help="peak of a GPU in bfloat16 [989: H100]")
    add("--gpu_mfu", type=float, default=0.6, help="share of that peak [0.6]")
    add("--json", default="", help="file for the figures")
    return parser.parse_args()


if __name__ == "__main__":
    restart_with_kept_heap()
    main()
