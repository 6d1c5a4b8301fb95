"""The same experiment with several seeds: mean and spread, the best run, the runs that learned nothing."""

import json
import logging
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from bert_jax.command import say


def train_seeds(config: ConfigDict, workdir: Path, train: Callable[[ConfigDict, Path], int]) -> int:
    """Runs `config.seeds` seeds in `workdir/seed<n>`, each resumable by itself, and writes `workdir/seeds.json`.

    `workdir/metrics.jsonl` gets one line of each split with the means. Returns the exit status: that of a run that was
    stopped, or 0.
    """
    folders = []
    for seed in range(config.seed, config.seed + config.seeds):
        one = config.copy_and_resolve_references()
        one.seed, one.seeds = seed, 1
        folders.append(workdir / f"seed{seed}")
        logging.info("seed %d: %s", seed, folders[-1])
        status = train(one, folders[-1])
        if status:
            return status
    report = summarise(folders, config.checkpoint.best_metric, config.checkpoint.best_mode)
    (workdir / "seeds.json").write_text(json.dumps(report, indent=2) + "\n")
    with open(workdir / "metrics.jsonl", "w") as file:
        for split, metrics in report["splits"].items():
            means = {name: values["mean"] for name, values in metrics.items()}
            file.write(json.dumps({"step": report["steps"], "split": split} | means) + "\n")
    say(format_summary(report))
    return 0


def summarise(folders: list[Path], metric: str, mode: str) -> dict[str, Any]:
    """The last line of each split of every run → mean, sample standard deviation and values of each figure.

    `best` is the run that is best on validation; `failed` are those no better than always the commonest class.
    """
    last = {folder.name: _last_lines(folder / "metrics.jsonl") for folder in folders}
    splits: dict[str, dict[str, dict[str, Any]]] = {}
    for split in ("eval", "test"):
        lines = [lines[split] for lines in last.values() if split in lines]
        if len(lines) == len(folders):
            names = [name for name in lines[0] if name not in ("step", "split")]
            splits[split] = {name: _spread([line[name] for line in lines]) for name in names}
    sign = -1 if mode == "min" else 1
    evaluated = {name: lines["eval"] for name, lines in last.items() if "eval" in lines}
    return {
        "steps": max(line["step"] for line in evaluated.values()),
        "best": max(evaluated, key=lambda name: sign * evaluated[name][metric]),
        "failed": [
            name
            for name, line in evaluated.items()
            if "majority_accuracy" in line and line["accuracy"] <= line["majority_accuracy"]
        ],
        "splits": splits,
    }


def format_summary(report: dict[str, Any]) -> str:
    lines = [
        f"{split:5} {name:20} {v['mean']:.4f} ± {v['sd']:.4f}   ({', '.join(f'{x:.4f}' for x in v['values'])})"
        for split, metrics in report["splits"].items()
        for name, v in metrics.items()
    ]
    failed = ", ".join(report["failed"]) or "none"
    return "\n".join([*lines, f"best on validation: {report['best']}; no better than the commonest class: {failed}"])


def _spread(values: list[float]) -> dict[str, Any]:
    sd = statistics.stdev(values) if len(values) > 1 else math.nan
    return {"mean": statistics.fmean(values), "sd": sd, "values": values}


def _last_lines(path: Path) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {line["split"]: line for line in lines}
