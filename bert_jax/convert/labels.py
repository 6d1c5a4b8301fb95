"""What a task needs to know of its labels, as Hugging Face's config.json has it ↔ the description of ours."""

from bert_jax.config import Json, UserError
from bert_jax.data.text.json_files import JsonObject

_KINDS = {
    "regression": "regression",
    "single_label_classification": "single",
    "multi_label_classification": "multi",
}  # problem_type → data.label_kind
_MOST = 1_000_000


def read(task: str, settings: JsonObject) -> tuple[Json, int]:
    """Returns the description of a task, and the number of outputs of its classifier: {} and 1 of a task whose outputs
    have no names. Raises UserError, with the field, for what cannot be read."""
    return _READ[task](settings) if task in _READ else ({}, 1)


def written(task: str, description: Json) -> Json:
    """Returns the fields of config.json that say the same."""
    if "labels" not in description or task not in _READ:
        return {}
    labels = description["labels"] or ["LABEL_0"]  # of a regression
    fields: Json = {"id2label": {str(i): label for i, label in enumerate(labels)}}
    fields["label2id"] = {label: i for i, label in enumerate(labels)}
    if kind := description.get("label_kind"):
        fields["problem_type"] = next(theirs for theirs, ours in _KINDS.items() if ours == kind)
    return fields


def _read_classes(settings: JsonObject) -> tuple[Json, int]:
    labels = _names(settings)
    usual = "regression" if len(labels) == 1 else "single_label_classification"
    kind = settings.get("problem_type", str, default=usual)
    if kind not in _KINDS:
        raise UserError(f"{settings.origin}: problem_type is {kind!r}; it can be {', '.join(_KINDS)}")
    if kind == "regression" and len(labels) > 1:
        raise UserError(f"{settings.origin}: regression with {len(labels)} outputs; only one can be read")
    description = {"labels": [] if kind == "regression" else labels, "thresholds": [], "label_kind": _KINDS[kind]}
    if kind == "multi_label_classification":
        description["thresholds"] = [0.5] * len(labels)
    return description, len(labels)


def _read_tags(settings: JsonObject) -> tuple[Json, int]:
    labels = _names(settings)
    return {"labels": labels, "characters": False}, len(labels)


def _read_span(_: JsonObject) -> tuple[Json, int]:
    # Whether it was trained on questions without an answer is not recorded.
    return {"may_have_no_answer": False, "threshold": 0.0}, 1


_READ = {"classification": _read_classes, "tagging": _read_tags, "span_qa": _read_span}


def _names(settings: JsonObject) -> list[str]:
    """Returns the names of the labels in the order of their numbers."""
    labels = settings.get("id2label", dict, default={})
    if not labels:
        count = settings.get("num_labels", int, default=2, least=1)
        if count > _MOST:
            settings.refuse("num_labels", count, f"at most {_MOST}")
        return [f"LABEL_{i}" for i in range(count)]
    numbers = [str(i) for i in range(len(labels))]
    if labels.keys() != set(numbers):
        raise UserError(f"{settings.origin}: id2label must have the numbers 0 to {len(labels) - 1} as keys")
    names = [labels[number] for number in numbers]
    for name in names:
        if not isinstance(name, str):
            settings.refuse("a label of id2label", name, "a string")
    if len(set(names)) < len(names):
        raise UserError(f"{settings.origin}: id2label has the same label for two numbers; give each a name of its own")
    return names
