"""README.md of an exported program: what it computes, its labels, and by how much it differs from its model."""

from collections.abc import Mapping
from typing import Any

from bert_jax.convert import parity
from bert_jax.convert.model_card import limits, summary, training_lines, works

_SECTION = "## The program"


def program_card(run: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """Returns the card. `run`: as the checkpoint has it; `facts`: those of program.json."""
    kind = facts["format"].split()[1]
    lines = ["---", "tags:", "- bert", f"- {kind}", "---", f"# BERT, task {facts['task']}, as a program ({kind})", ""]
    lines += [summary(run), "", "## Training", "", *training_lines(dict(run)), ""]
    shapes = {name: f"[{', '.join(map(str, shape))}]" for name, shape in facts["outputs"].items()}
    learned = facts["learned"]
    rows = {
        "format": facts["format"] + (f", opset {facts['opset']}" if "opset" in facts else ""),
        "weights": f"{facts['dtype']}, {facts['bytes'] / 1e6:.1f} MB",
        "inputs": ", ".join(f"{name} [rows, length]" for name in facts["inputs"]) + ", int32",
        "outputs": ", ".join(f"{name} {shape}" for name, shape in shapes.items()) + ", float32",
        "longest row": f"{facts['longest']} tokens",
        "labels": ", ".join(learned.get("labels") or ()),
        "thresholds": ", ".join(f"{x:.4g}" for x in learned.get("thresholds") or ()),
    }
    lines += [_SECTION, "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items() if value)]
    lines += ["", "Compared with the model that it was made of:", "", *(f"- {one}" for one in parity.lines(facts)), ""]
    lines += ["`program.json` says the same to programs.", "", "## Limits", ""]
    lines += [*(f"- {limit}" for limit in limits(run["config"], run["task"])), "", "## How to cite", ""]
    return "\n".join([*lines, *(f"- {work}" for work in works(run["config"])), ""])


def kept(old: str, new: str) -> str | None:
    """Returns a card that was completed by hand, with what a new card says of the program, whose figures are new.

    None if the old card says nothing of what is new: there is no new one (""), or the old one alone is of a program."""
    if _SECTION not in new:
        return old if new and _SECTION not in old else None
    before, _, rest = old.partition(_SECTION)
    _, heading, after = rest.partition("\n## ")
    return before.rstrip("\n") + "\n\n" + new[new.index(_SECTION) :] + heading + after
