"""Folders of Sentence Transformers: a BERT with modules behind it that make one vector of a text."""

from pathlib import Path
from typing import Any

from bert_jax.config import UserError
from bert_jax.convert.foreign_json import field, read_json

POOLING = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_max_tokens": "max"}
LEFT_OUT = {
    "Normalize": "Normalize is left out: divide the vectors by their length where cosines are wanted",
    "Dense": "Dense is left out: the vectors are those before it, of model.hidden_size",
}


def left_out_of(folder: Path) -> tuple[Path, str, list[str]]:
    """The folder of the BERT itself, the `model.pooling` to match, and what of the rest is left out, one line each.

    Of a folder without modules.json: itself, "cls", nothing. Raises UserError if there is no BERT among the modules.
    """
    listing = folder / "modules.json"
    if not listing.is_file():
        return folder, "cls", []
    kinds = [_module(module, listing) for module in read_json(listing, list)]
    transformer = next((path for kind, path in kinds if kind == "Transformer"), None)
    if transformer is None:
        raise UserError(f"{listing} lists no Transformer, only {', '.join(kind for kind, _ in kinds)}")
    pooling, notes = "cls", []
    for kind, path in kinds:
        if kind == "Pooling":
            pooling, note = _pooling(path / "config.json")
            notes.append(f"sentence encoder: {note}")
        elif kind != "Transformer":
            notes.append(f"sentence encoder: {LEFT_OUT.get(kind, f'{kind} is left out')}")
    return transformer, pooling, notes


def _pooling(path: Path) -> tuple[str, str]:
    settings = read_json(path)
    on = [name for name, value in settings.items() if name.startswith("pooling_mode_") and value is True]
    if len(on) == 1 and on[0] in POOLING:
        kept = POOLING[on[0]]
        # Theirs is the first token's vector as it is; ours goes through the pooler, where there is one.
        how = "; theirs takes the first token's vector without the pooler" if kept == "cls" else ""
        return kept, f"Pooling is kept as model.pooling={kept}{how}"
    return "cls", f"Pooling by {' + '.join(on) or 'an unknown mode'} is left out; model.pooling is cls"


def _module(module: Any, listing: Path) -> tuple[str, Path]:
    """Returns the kind of a module and its folder, which must lie inside that of modules.json."""
    if not isinstance(module, dict):
        raise UserError(f"{listing}: a module is {module!r}; it must be a JSON object")
    kind, path = field(module, "type", str, listing, ""), field(module, "path", str, listing, "")
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise UserError(f"{listing}: the path of a module is {path!r}, outside this folder; fetch the checkpoint again")
    return kind.rsplit(".", 1)[-1], listing.parent / path
