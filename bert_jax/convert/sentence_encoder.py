"""Folders of Sentence Transformers: a BERT, and modules behind it that make one vector of a text (modules.json)."""

from pathlib import Path

from bert_jax.config import UserError
from bert_jax.convert.mapping import FETCH_AGAIN
from bert_jax.data.text.json_files import JsonObject, parse_value, read_object
from bert_jax.data.text.text_files import read_bytes

_POOLING = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_max_tokens": "max"}
_LEFT_OUT = {
    "Normalize": "Normalize is left out: divide the vectors by their length where cosines are wanted",
    "Dense": "Dense is left out: the vectors are those before it, of model.hidden_size",
}


def find_bert(folder: Path) -> tuple[Path, str, list[str]]:
    """Returns the folder of the BERT itself, the `model.pooling` to match, and what of the rest is left out, one line
    each: of a folder without modules.json itself, "cls" and nothing. Raises UserError if no module is a BERT."""
    listing = folder / "modules.json"
    if not listing.is_file():
        return folder, "cls", []
    modules = parse_value(read_bytes(listing, FETCH_AGAIN), listing, FETCH_AGAIN, list)
    kinds = [_module(module, listing) for module in modules]
    transformer = next((path for kind, path in kinds if kind == "Transformer"), None)
    if transformer is None:
        raise UserError(f"{listing} lists no Transformer, only {', '.join(kind for kind, _ in kinds)}")
    pooling, notes = "cls", []
    for kind, path in kinds:
        note = _LEFT_OUT.get(kind, f"{kind} is left out")
        if kind == "Pooling":
            pooling, note = _pooling(path / "config.json")
        notes += [f"sentence encoder: {note}"] if kind != "Transformer" else []
    return transformer, pooling, notes


def _module(module: object, listing: Path) -> tuple[str, Path]:
    """Returns the kind of a module and its folder, which must lie inside that of modules.json."""
    if not isinstance(module, dict):
        JsonObject({}, listing, FETCH_AGAIN).refuse("a module", module, "an object")
    found = JsonObject(module, listing, FETCH_AGAIN)
    kind, path = found.get("type", str, default=""), found.get("path", str, default="")
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise UserError(f"{listing}: the path of a module is {path!r}, outside this folder; fetch the checkpoint again")
    return kind.rsplit(".", 1)[-1], listing.parent / path


def _pooling(path: Path) -> tuple[str, str]:
    """Returns the `model.pooling` that matches the config of a Pooling module, and what to say of it."""
    settings = read_object(path, FETCH_AGAIN).content
    on = [name for name, value in settings.items() if name.startswith("pooling_mode_") and value is True]
    if len(on) != 1 or on[0] not in _POOLING:
        return "cls", f"Pooling by {' + '.join(on) or 'an unknown mode'} is left out; model.pooling is cls"
    kept = _POOLING[on[0]]
    # Theirs is the first token's vector as it is; ours goes through the pooler, where there is one.
    how = "; theirs takes the first token's vector without the pooler" if kept == "cls" else ""
    return kept, f"Pooling is kept as model.pooling={kept}{how}"
