"""README.md of an exported model: what it is and how it was trained, from what the run left behind."""

import json
from pathlib import Path
from typing import Any

PIPELINES = {
    "BertForPreTraining": "fill-mask",
    "BertForMaskedLM": "fill-mask",
    "BertModel": "feature-extraction",
    "BertForSequenceClassification": "text-classification",
    "BertForTokenClassification": "token-classification",
    "BertForQuestionAnswering": "question-answering",
    "BertForMultipleChoice": "multiple-choice",
}
NOT_MEASURES = ("step", "split", "time")


def model_card(run: dict[str, Any], metrics: Path | None, architecture: str, num_parameters: int) -> str:
    """A stub to be completed by hand. `run`: as the checkpoint has it; `metrics`: the run's metrics.jsonl."""
    header = ["---", "library_name: transformers", f"pipeline_tag: {PIPELINES[architecture]}", "tags:", "- bert", "---"]
    title = f"# {architecture}, {num_parameters:,} parameters"
    lines = [*header, "", title, "", "To be completed: purpose, data, limits.", ""]
    lines += _training(run)
    last = _last_evaluation(metrics, run["step"]) if metrics is not None else {}
    for split, figures in last.items():
        lines += ["", f"## {split}, step {figures['step']:,}", "", "| measure | value |", "|---|---|"]
        lines += [f"| {name} | {value:.4g} |" for name, value in figures.items() if name not in NOT_MEASURES]
    lines += ["", "## Use", "", "```python", f"from transformers import AutoTokenizer, {architecture}", ""]
    for name, kind in (("model", architecture), ("tokenizer", "AutoTokenizer")):
        lines.append(f'{name} = {kind}.from_pretrained("path/to/this/folder")')
    return "\n".join([*lines, "```", ""])


def _training(run: dict[str, Any]) -> list[str]:
    config = run["config"]
    if "converted_from" in run:
        return ["## Training", "", f"Converted from `{run['converted_from']}` by bert_jax, which has not trained it."]
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
    }
    if config["init_from"]:
        rows["started from"] = config["init_from"]
    if run["task"].get("labels"):
        rows["labels"] = ", ".join(run["task"]["labels"])
    table = [f"| {name} | {value} |" for name, value in rows.items()]
    return ["## Training", "", "Trained with bert_jax.", "", "| | |", "|---|---|", *table]


def _last_evaluation(path: Path, step: int) -> dict[str, dict[str, Any]]:
    """Of each split but train, the newest figures up to `step`."""
    found = {}
    for line in path.read_text("utf-8").splitlines() if path.is_file() else []:
        try:
            figures = json.loads(line)
        except ValueError:  # a killed run can leave half a line
            continue
        if not isinstance(figures, dict) or not figures.keys() >= {"split", "step"}:
            continue
        if figures["split"] != "train" and figures["step"] <= step:
            found[figures["split"]] = figures
    return found
