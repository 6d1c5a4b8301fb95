"""Folders of studies whose runs were never made: their records and metrics are numbers drawn at random."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.lab.records import RECORD, read_run, write_record, write_study
from bert_jax.lab.study import PlannedRun, Published, Stage, Study, choice, grid, plan, seeds
from bert_jax.options import default_config

QUESTION = "Does next sentence prediction help, and does reading to both sides?"
OBJECTIVES = {
    "MLM + NSP": {},
    "MLM": {"data.pairing": "none"},
    "left-to-right": {"data.pairing": "none", "model.causal": True},
}
# Mean of each level, as on the published table, and the spread between seeds.
MEANS = {
    "sst2": ({"MLM + NSP": 0.842, "MLM": 0.840, "left-to-right": 0.801}, 0.006),
    "mrpc": ({"MLM + NSP": 0.741, "MLM": 0.729, "left-to-right": 0.702}, 0.011),
    "trec": ({"MLM + NSP": 0.871, "MLM": 0.874, "left-to-right": 0.868}, 0.009),
}


def make_study(objectives: Mapping[str, Mapping] = OBJECTIVES, count: int = 5, **changes: Any) -> Study:
    first, *others = objectives
    stages = [Stage("pretrain", "experiments/tiny.py", grid(choice("objective", objectives), seeds(count)))]
    stages += [Stage(name, f"experiments/{name}.py", after="pretrain") for name in MEANS]
    published = Published(
        "Devlin et al. 2019, Table 5",
        "BERT-base, development sets (arXiv:1810.04805)",
        ["SST-2", "MRPC"],
        {"BERT-base": [92.7, 86.7], "No NSP": [92.6, 86.5], "LTR & No NSP": [92.1, None]},
    )
    expected = [(first, other, "mrpc") for other in others]
    study = Study(
        QUESTION, tuple(stages), "objective", first, dict.fromkeys(MEANS, "test.accuracy"), published, expected
    )
    return replace(study, **changes)


def make_folder(workdir: Path, study: Study, means: Mapping = MEANS, *, with_curves: bool = True) -> list[PlannedRun]:
    """Writes the study with every run complete."""
    runs = plan(study)
    workdir.mkdir(parents=True, exist_ok=True)
    write_study(workdir, workdir.name, "experiments/studies/objectives.py", study, runs)
    for number, run in enumerate(runs):
        random = np.random.default_rng(number)
        level = run.levels.get(study.factor, "")
        table, spread = means.get(run.stage, ({}, 0.0))
        value = table.get(level, 0.8) + spread * random.standard_normal()
        result = {
            split: {"accuracy": round(value, 4), "loss": round(1 - value, 4)} for split in ("eval", "last", "test")
        }
        complete(workdir, run, result)
        if with_curves:
            write_curves(workdir / run.stage / run.name, run, value, random)
    return runs


def complete(workdir: Path, run: PlannedRun, result: Mapping, **changes: Any) -> None:
    record = replace(read_run(workdir, run), status="complete", result=result, seconds=412.0, attempts=1, host="desk")
    write_record(replace(record, devices="1 cpu", **changes))


def write_curves(folder: Path, run: PlannedRun, end: float, random: np.random.Generator) -> None:
    config = default_config()
    config.model.update(size="tiny")
    config.update_from_flattened_dict(run.overrides)
    (folder / "config.json").write_text(config.to_json())
    lines = []
    for step in range(0, 2001, 200):
        share = 1 - np.exp(-step / 500)
        noise = 0.01 * random.standard_normal()
        if run.stage == "pretrain":
            metrics = {"loss": 9.4 - 5 * share + 5 * noise, "mlm_loss": 8.7 - 4.9 * share + 5 * noise}
            metrics |= {"mlm_accuracy": 0.35 * share + noise / 2}
            metrics |= {} if "data.pairing" in run.overrides else {"nsp_accuracy": 0.5 + 0.25 * share + noise}
        else:
            metrics = {"loss": 0.69 - 0.4 * share + noise, "accuracy": 0.5 + (end - 0.5) * share + noise / 3}
        lines += [{"step": step, "split": "eval"} | metrics]
        speed = {"tokens_per_second": 10_000.0, "step_seconds": 0.2, "mfu": 0.5}
        lines += [{"step": step, "split": "train", "loss": metrics["loss"]} | speed] if step else []
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    machine = {"system": "Linux x86_64", "processor": "a processor", "cores": 2, "memory_gb": 24.0}
    code = {"version": "0.1.0", "commit": "6e382b26eee35b674e9f314fc91415c6975240f2", "changes": ""}
    entry = {
        "time": "2026-11-30T04:00:00+00:00",
        "step": 0,
        "code": code,
        "packages": {"python": "3.11.9", "jax": "0.10.2"},
    }
    entry |= {"machine": machine, "devices": {"platform": "cpu", "kind": "cpu", "count": 1, "settings": {}}, "data": {}}
    (folder / "environment.json").write_text(json.dumps({"starts": [entry]}))


def fail(workdir: Path, run: PlannedRun, status: str, error: str) -> None:
    """Turns a complete run into one that is not."""
    path = workdir / run.stage / run.name / RECORD
    path.write_text(json.dumps(json.loads(path.read_text()) | {"status": status, "error": error, "result": {}}))
