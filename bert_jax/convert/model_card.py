"""README.md of an exported model, complete by itself: what it is, its data and recipe, metrics with intervals, limits,
cost, how to cite. All of it is from what the run left behind."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bert_jax.config import Json
from bert_jax.tasks.scores import wilson_interval
from bert_jax.training.energy import described, energy_of
from bert_jax.training.metrics_log import Record, read_metrics
from bert_jax.training.observer import LEDGER

PIPELINES = {
    "BertForPreTraining": "fill-mask",
    "BertForMaskedLM": "fill-mask",
    "BertModel": "feature-extraction",
    "BertForSequenceClassification": "text-classification",
    "BertForTokenClassification": "token-classification",
    "BertForQuestionAnswering": "question-answering",
    "BertForMultipleChoice": "multiple-choice",
    "EncoderDecoderModel": "text2text-generation",
}


_BERT = (
    "Devlin, Chang, Lee and Toutanova: BERT: Pre-training of Deep Bidirectional Transformers for Language "
    "Understanding. NAACL-HLT 2019, doi:10.18653/v1/N19-1423"
)


def model_card(run: Json, metrics: Path | None, architecture: str, num_parameters: int) -> str:
    """Returns the card. `run`: as the checkpoint has it; `metrics`: the run's metrics.jsonl, beside which its other
    files lie."""
    header = ["---", "library_name: transformers", f"pipeline_tag: {PIPELINES[architecture]}", "tags:", "- bert", "---"]
    title = f"# {architecture}, {num_parameters:,} parameters"
    lines = [*header, "", title, "", summary(run), "", *_table("Model", _model(run["config"], num_parameters))]
    lines += ["", "## Training", "", *training_lines(run)]
    records = [one for one in (read_metrics(metrics) if metrics is not None else ()) if one["step"] <= run["step"]]
    lines += [f"| {name} | {text} |" for name, text in described(energy_of(records)).items()]
    lines += _made_with(metrics.parent / "environment.json") if metrics is not None else []
    last: dict[str, Record] = {}  # of each held-out split, the newest metrics up to the checkpoint
    for record in records:
        if record["split"] not in ("train", LEDGER):
            last[record["split"]] = record
    for split, record in last.items():
        intervals = _intervals(split, record, metrics)
        lines += ["", f"## {split}, step {record['step']:,}", "", *_measured(record, intervals)]
    known = limits(run["config"], run["task"], evaluated=bool(last))
    lines += ["", "## Limits", "", *(f"- {limit}" for limit in known)]
    lines += ["", "## Use", "", "```python", f"from transformers import AutoTokenizer, {architecture}", ""]
    for name, kind in (("model", architecture), ("tokenizer", "AutoTokenizer")):
        lines.append(f'{name} = {kind}.from_pretrained("path/to/this/folder")')
    lines += ["```", "", "## How to cite", "", *(f"- {work}" for work in works(run["config"]))]
    return "\n".join([*lines, ""])


def limits(config: Mapping[str, Any], task: Mapping[str, Any] | None = None, *, evaluated: bool = True) -> list[str]:
    """Returns what a user of the model has to know, as sentences. `task` is the run's item of that name."""
    data = config["data"]
    found = [
        "It knows the languages and subjects of its training texts; what they say about people and groups, it may "
        "repeat. Nobody has examined it for that."
    ]
    if config["task"] == "pretraining":
        found.append("It is not fine-tuned: its vectors and its next-sentence head are a start, not an answer.")
    elif (task or {}).get("labels"):
        found.append("It gives one of its labels to any text, also to one that none of them fits.")
    found.append(f"Its rows had {data['sequence_length']} tokens; longer texts are cut, or read in windows.")
    if data["lowercase"]:
        found.append(
            "It does not see the case of letters" + (", nor accents." if data["strip_accents"] is None else ".")
        )
    if not evaluated:
        found.append("It has not been evaluated on held-out data.")
    found.append("Metrics without an interval over seeds are those of one run; another seed gives others.")
    return [*found, "To be added by who publishes it: what it is for, whose texts it learned from, and their terms."]


def works(config: Mapping[str, Any]) -> list[str]:
    """Returns what to cite: this software, the paper, and the models that the run started and learned from."""
    found = ["bert_jax, version and authors in its CITATION.cff", _BERT]
    starts = (config["init_from"], config["distillation"]["teacher"])
    return found + [f"the authors of `{name}`" for name in dict.fromkeys(starts) if name]


def summary(run: Mapping[str, Any]) -> str:
    config = run["config"]
    made = "converted by bert_jax" if "converted_from" in run else "trained with bert_jax"
    kind = "pretrained BERT" if config["task"] == "pretraining" else f"BERT for {config['task'].rpartition('.')[2]}"
    labels = run["task"].get("labels", ())
    return f"A {kind}, {made}" + (f"; it chooses among {len(labels)} labels." if labels else ".")


def _model(config: Mapping[str, Any], num_parameters: int) -> Json:
    model, data = config["model"], config["data"]
    names = {
        "layers": "num_hidden_layers",
        "hidden size": "hidden_size",
        "attention heads": "num_attention_heads",
        "positions": "max_position_embeddings",
        "vocabulary": "vocab_size",
        "activation": "hidden_act",
    }
    rows = {name: model.get(key) for name, key in names.items()} | {"parameters": f"{num_parameters:,}"}
    letters = "lower case" if data["lowercase"] else "case kept"
    return {"size": model.get("size"), **rows, "tokenizer": f"{data['tokenizer']}, {letters}"}


def _table(title: str, rows: Mapping[str, object]) -> list[str]:
    table = [f"| {name} | {value} |" for name, value in rows.items() if value not in ("", None)]
    return [f"## {title}", "", "| | |", "|---|---|", *table]


def _made_with(environment: Path) -> list[str]:
    """Returns rows about the newest start of the run: code, devices, and hashes of its data."""
    try:
        start = json.loads(environment.read_bytes())["starts"][-1]
        groups = {name: dict(start.get(name, {})) for name in ("code", "packages", "devices", "data")}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return []
    code, packages, devices = groups["code"], groups["packages"], groups["devices"]
    rows = {
        "code": f"bert_jax {code.get('version', '')}, commit {code.get('commit', '')[:12] or 'unknown'}",
        "packages": ", ".join(f"{name} {packages[name]}" for name in ("jax", "flax") if name in packages),
        "devices": ", ".join(
            f"{name} {value}" for name, value in devices.items() if not isinstance(value, dict | list)
        ),
        "hashes of the data": ", ".join(f"{name} {value}" for name, value in groups["data"].items()),
    }
    return [f"| {name} | {value} |" for name, value in rows.items() if value]


def _measured(record: Record, intervals: Mapping[str, tuple[float, float, str]]) -> list[str]:
    numbers = {name: value for name, value in record.items() if isinstance(value, int | float)}
    names = [name for name in numbers if name not in ("step", "time") and not _is_end(name, numbers)]
    if not intervals:
        return ["| measure | value |", "|---|---|", *(f"| {name} | {numbers[name]:.4g} |" for name in names)]
    rows = ["| measure | value | 95 % interval |", "|---|---|---|"]
    for name in names:
        low, high, of = intervals.get(name, (0.0, 0.0, ""))
        rows.append(f"| {name} | {numbers[name]:.4g} | {f'{low:.4g} to {high:.4g} ({of})' if of else ''} |")
    return rows


def _is_end(name: str, numbers: Mapping[str, float]) -> bool:
    """Returns whether a number is an end of the interval of another one."""
    return name.endswith(("_low", "_high")) and name.rpartition("_")[0] in numbers


def _intervals(split: str, record: Record, metrics: Path | None) -> dict[str, tuple[float, float, str]]:
    """Returns the intervals of metrics (low, high, of what): 1. over the seeds of several runs, 2. those that the
    evaluation gives, 3. of the accuracy over the examples that were predicted (Wilson 1927)."""
    found: dict[str, tuple[float, float, str]] = {}
    right = _predicted(metrics.parent / "predictions" / "validation.jsonl") if metrics and split == "eval" else []
    # The file is that of the best checkpoint, which this one need not be.
    if right and abs(sum(right) / len(right) - record.get("accuracy", -1.0)) < 5e-4:
        found["accuracy"] = (*wilson_interval(sum(right) / len(right), len(right)), f"{len(right):,} examples")
    for name in record:
        if f"{name}_low" in record and f"{name}_high" in record:
            found[name] = (record[f"{name}_low"], record[f"{name}_high"], "examples")
    return found | (_over_seeds(metrics.parent.parent / "seeds.json", split) if metrics else {})


def _over_seeds(path: Path, split: str) -> dict[str, tuple[float, float, str]]:
    try:
        splits = json.loads(path.read_bytes())["splits"].get(split, {})
        return {
            name: (float(values["low"]), float(values["high"]), f"mean of {len(values['values'])} seeds")
            for name, values in splits.items()
            if math.isfinite(values["low"])
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def _predicted(path: Path) -> list[bool]:
    """Returns for each example whether its label was predicted; [] if examples have no labels or the file is none."""
    try:
        with path.open(encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]
        return [line["prediction"]["label"] == line["label"] for line in lines]
    except (OSError, ValueError, LookupError, TypeError):
        return []


def training_lines(run: Json) -> list[str]:
    config = run["config"]
    if "converted_from" in run:
        return [f"Converted from `{run['converted_from']}` by bert_jax, which has not trained it."]
    data, optimizer, train = config["data"], config["optimizer"], config["train"]
    rows = {
        "task": config["task"],
        "data": data["train"] or data["files"] or data["corpus"],
        "steps": f"{run['step']:,}",
        "batch": f"{train['batch_size']} sequences of up to {data['sequence_length']} tokens",
        "optimizer": f"{optimizer['name']}, learning rate {optimizer['learning_rate']:g} ({optimizer['schedule']}), "
        f"{optimizer['warmup_steps']:,} warm-up steps, weight decay {optimizer['weight_decay']:g}",
        "products in": config["model"]["dtype"],
        "seed": config["seed"],
        "started from": config["init_from"],
        "labels": ", ".join(run["task"].get("labels", ())),
    }
    table = [f"| {name} | {value} |" for name, value in rows.items() if value != ""]
    return ["Trained with bert_jax.", "", "| | |", "|---|---|", *table]
