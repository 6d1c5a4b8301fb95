"""The same experiment with several seeds: mean and spread, the best run, the runs that learned nothing."""

import json
import logging
import math
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from bert_jax.command import say
from bert_jax.config import UserError
from bert_jax.files import write_atomically
from bert_jax.run import Result

# Split in seeds.json and metrics.jsonl → its attribute of a Result. "eval" and "test" belong to the same checkpoint.
SPLITS = {"eval": "best", "eval_last": "last", "test": "test"}


def train_seeds(config: ConfigDict, workdir: Path, run: Callable[[ConfigDict, Path], Result]) -> int:
    """Makes `config.seeds` runs in `workdir/seed<n>`, each resumable by itself, and writes `workdir/seeds.json`.

    `workdir/metrics.jsonl` gets one line per split with the means. Returns the exit status: that of a run that was
    stopped, or 0. Raises UserError if the workdir holds a single run.
    """
    if (workdir / "config.json").exists() or (workdir / "checkpoints").exists():
        raise UserError(f"{workdir} holds a single run; choose another --workdir for seeds={config.seeds}")
    results: dict[str, Result] = {}
    for seed in range(config.seed, config.seed + config.seeds):
        one = config.copy_and_resolve_references()
        one.seed, one.seeds = seed, 1
        folder = workdir / f"seed{seed}"
        one.checkpoint.mirror = f"{one.checkpoint.mirror}/{folder.name}" if one.checkpoint.mirror else ""
        logging.info("seed %d: %s", seed, folder)
        results[folder.name] = run(one, folder)
        if results[folder.name].status:
            return results[folder.name].status
    import jax

    if jax.process_index() == 0:
        report = summarise(results, config.checkpoint.best_metric, config.checkpoint.best_mode)
        lines = [
            {"step": report["steps"], "split": split} | {name: values["mean"] for name, values in metrics.items()}
            for split, metrics in report["splits"].items()
        ]
        write_atomically(workdir / "seeds.json", json.dumps(report, indent=2) + "\n")
        write_atomically(workdir / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        say(format_summary(report))
    return 0


def summarise(results: Mapping[str, Result], metric: str, mode: str) -> dict[str, Any]:
    """Returns mean, sample standard deviation and values of each metric, for the splits that every run has.

    `best` is the run that is best on validation (None without one); `failed` are those whose accuracy there is no
    higher than that of always guessing the most frequent class.
    """
    splits: dict[str, dict[str, dict[str, Any]]] = {}
    for split, attribute in SPLITS.items():
        found = [getattr(result, attribute) for result in results.values()]
        common = [name for name in found[0] if all(name in metrics for metrics in found)]
        splits |= {split: {name: _spread([metrics[name] for metrics in found]) for name in common}} if common else {}
    evaluated = {name: result.best for name, result in results.items() if metric in result.best}
    sign = -1 if mode == "min" else 1
    of_classes = {name: best for name, best in evaluated.items() if {"accuracy", "majority_accuracy"} <= best.keys()}
    return {
        "steps": max(result.step for result in results.values()),
        "best": max(evaluated, key=lambda name: sign * evaluated[name][metric], default=None),
        "failed": [name for name, best in of_classes.items() if best["accuracy"] <= best["majority_accuracy"]],
        "splits": splits,
    }


def format_summary(report: dict[str, Any]) -> str:
    """Returns one line per split and metric, and one about the runs."""
    lines = [
        f"{split:9} {name:20} {v['mean']:.4f} ± {v['sd']:.4f}   ({', '.join(f'{x:.4f}' for x in v['values'])})"
        for split, metrics in report["splits"].items()
        for name, v in metrics.items()
    ]
    if report["best"] is None:
        return "\n".join([*lines, "no run was evaluated on validation examples"])
    failed = ", ".join(report["failed"]) or "none"
    return "\n".join([*lines, f"best on validation: {report['best']}; no better than the commonest class: {failed}"])


def _spread(values: list[float]) -> dict[str, Any]:
    sd = statistics.stdev(values) if len(values) > 1 else math.nan
    return {"mean": statistics.fmean(values), "sd": sd, "values": values}
