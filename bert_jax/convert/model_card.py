"""README.md of an exported model: what it is and how it was trained, from what the run left behind."""

from pathlib import Path
from typing import Any

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


def model_card(run: dict[str, Any], metrics: Path | None, architecture: str, num_parameters: int) -> str:
    """Returns a stub to be completed by hand. `run`: as the checkpoint has it; `metrics`: the run's metrics.jsonl."""
    header = ["---", "library_name: transformers", f"pipeline_tag: {PIPELINES[architecture]}", "tags:", "- bert", "---"]
    title = f"# {architecture}, {num_parameters:,} parameters"
    lines = [*header, "", title, "", "To be completed: purpose, data, limits.", "", "## Training", "", *_training(run)]
    records = [one for one in (read_metrics(metrics) if metrics is not None else ()) if one["step"] <= run["step"]]
    lines += [f"| {name} | {text} |" for name, text in described(energy_of(records)).items()]
    last: dict[str, Record] = {}  # of each held-out split, the newest metrics up to the checkpoint
    for record in records:
        if record["split"] not in ("train", LEDGER):
            last[record["split"]] = record
    for split, record in last.items():
        lines += ["", f"## {split}, step {record['step']:,}", "", "| measure | value |", "|---|---|"]
        numbers = {name: value for name, value in record.items() if isinstance(value, int | float)}
        lines += [f"| {name} | {value:.4g} |" for name, value in numbers.items() if name not in ("step", "time")]
    lines += ["", "## Use", "", "```python", f"from transformers import AutoTokenizer, {architecture}", ""]
    for name, kind in (("model", architecture), ("tokenizer", "AutoTokenizer")):
        lines.append(f'{name} = {kind}.from_pretrained("path/to/this/folder")')
    return "\n".join([*lines, "```", ""])


def _training(run: dict[str, Any]) -> list[str]:
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
