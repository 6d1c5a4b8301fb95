"""The same experiment with several seeds: mean and spread, the best run, the runs that learned nothing."""

import json
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path

from ml_collections import ConfigDict

from bert_jax.command import say
from bert_jax.config import Json, UserError
from bert_jax.files import write_atomically
from bert_jax.lab.statistics.differences import summary
from bert_jax.lab.statistics.levels import at_chance
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


def summarise(results: Mapping[str, Result], metric: str, mode: str) -> Json:
    """Returns mean, sample standard deviation, 95 % t interval (low, high) and values of each metric, for the splits
    that every run has. A value that is not finite is in none of these, and counted in `not_finite`.

    `best` is the run that is best on validation (None without one), `test_of_best` its metric on test; `failed` are
    those whose accuracy on validation is no higher than that of always guessing the most frequent class.
    """
    splits: dict[str, dict[str, Json]] = {}
    for split, attribute in SPLITS.items():
        found = [getattr(result, attribute) for result in results.values()]
        common = [name for name in found[0] if all(name in metrics for metrics in found)]
        splits |= {split: {name: _spread([metrics[name] for metrics in found]) for name in common}} if common else {}
    evaluated = {name: result.best for name, result in results.items() if metric in result.best}
    sign = -1 if mode == "min" else 1
    finite = [name for name in evaluated if math.isfinite(evaluated[name][metric])]
    best = max(finite, key=lambda name: sign * evaluated[name][metric], default=None)
    return {
        "steps": max(result.step for result in results.values()),
        "best": best,
        "test_of_best": None if best is None else results[best].test.get(metric),
        "failed": [name for name, metrics in evaluated.items() if at_chance(metrics)],
        "splits": splits,
    }


def format_summary(report: Json) -> str:
    """Returns one line per split and metric, with mean ± half of the t interval, and one about the runs."""
    lines = [
        f"{split:9} {name:20} {_shown(values)}   ({', '.join(f'{x:.4f}' for x in values['values'])})"
        for split, metrics in report["splits"].items()
        for name, values in metrics.items()
    ]
    if report["best"] is None:
        return "\n".join([*lines, "no run was evaluated on validation examples"])
    failed = ", ".join(report["failed"]) or "none"
    test = "" if report["test_of_best"] is None else f", {report['test_of_best']:.4f} on test"
    best = f"best on validation: {report['best']}{test}; no better than the commonest class: {failed}"
    return "\n".join([*lines, "mean ± half of the 95 % t interval over seeds, sd", best])


def _shown(values: Json) -> str:
    half = (values["high"] - values["low"]) / 2
    failed = f", {values['not_finite']} of {len(values['values'])} not finite" if values["not_finite"] else ""
    return f"{values['mean']:.4f} ± {half:.4f}, sd {values['sd']:.4f}{failed}"


def _spread(values: list[float]) -> Json:
    finite = [value for value in values if math.isfinite(value)]
    found = summary(finite) if finite else None
    fields = {name: getattr(found, name, math.nan) for name in ("mean", "sd", "low", "high")}
    return fields | {"values": values, "not_finite": len(values) - len(finite)}
