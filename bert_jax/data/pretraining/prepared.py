"""A prepared dataset on disk: its manifest, which is checked field by field, its tokenizer and its records.

The folder may come from somebody else, so nothing in it is executed, no name in it leads out of it, and the metadata
that TFDS reads are written for other programs only.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_jax.config import UserError
from bert_jax.data.pretraining.records import Records, record_fields, shard_name
from bert_jax.data.pretraining.splits import SPLITS
from bert_jax.data.text.json_files import field, read_object, refuse
from bert_jax.data.tokenizers.tokenizer import Tokenizer, load_tokenizer

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_REMEDY = "prepare it again (--mode=prepare)"


@dataclass(frozen=True)
class PreparedCorpus:
    """A complete prepared dataset."""

    directory: Path
    manifest: dict[str, Any]
    tokenizer: Tokenizer

    def source(self, split: str) -> Records:
        """Returns the records of "train", "validation" or "test". Raises UserError for an empty split."""
        if self.num_records(split) == 0:
            raise UserError(
                f"the {split} split of {self.directory} is empty: raise data.{split}_share or add documents"
            )
        fields = record_fields(self.manifest["masking"], self.tokenizer.vocab_size)
        return Records(self.directory, split, fields, [shard["records"] for shard in self._shards(split)])

    def num_records(self, split: str) -> int:
        return sum(shard["records"] for shard in self._shards(split))

    def _shards(self, split: str) -> list[dict[str, Any]]:
        return [shard for shard in self.manifest["shards"] if shard["split"] == split]


class Incomplete(UserError):
    """A folder that a new preparation may replace."""


def open_prepared(directory: Path) -> PreparedCorpus:
    """Opens a prepared dataset without its corpus. Raises Incomplete if it is not whole and unchanged."""
    directory = Path(directory)
    try:
        manifest = _checked_manifest(directory / MANIFEST)
    except UserError as error:
        raise Incomplete(str(error)) from error
    try:
        tokenizer = load_tokenizer(directory / "tokenizer")
    except UserError as error:
        raise Incomplete(f"{error}; or {_REMEDY}") from error
    for shard in manifest["shards"]:
        file = directory / shard["file"]
        size = file.stat().st_size if file.is_file() else None
        if size != shard["bytes"]:
            found = "is missing" if size is None else f"has {size} bytes"
            raise Incomplete(f"{file}: {found}, the manifest says {shard['bytes']}: {_REMEDY}")
    if tokenizer.content_hash != manifest["tokenizer_hash"]:
        raise Incomplete(
            f"{directory / 'tokenizer'}: has hash {tokenizer.content_hash}, the dataset was prepared with "
            f"{manifest['tokenizer_hash']}: its token ids mean something else: {_REMEDY}"
        )
    return PreparedCorpus(directory, manifest, tokenizer)


def _checked_manifest(path: Path) -> dict[str, Any]:
    """Returns the manifest, whose fields have the types and ranges that the rest of the program relies on."""
    manifest = read_object(path, _REMEDY)
    if (version := field(manifest, "format", int, path, _REMEDY)) != FORMAT_VERSION:
        refuse(path, "format", version, f"{FORMAT_VERSION}, which this program reads", _REMEDY)
    for content, prefix in ((manifest, ""), (field(manifest, "settings", dict, path, _REMEDY), "settings.")):
        masking = field(content, "masking", str, path, _REMEDY)
        if masking not in ("dynamic", "static"):
            refuse(path, prefix + "masking", masking, "dynamic or static", _REMEDY)
        field(content, "sequence_length", int, path, _REMEDY, least=1)
        if masking == "static" and prefix:
            field(content, "max_predictions_per_sequence", int, path, _REMEDY, least=1)
    field(manifest, "tokenizer_hash", str, path, _REMEDY)
    splits: dict[str, Any] = field(manifest, "splits", dict, path, _REMEDY)
    for split in SPLITS:
        counts: dict[str, Any] = field(splits, split, dict, path, _REMEDY)
        for name in ("documents", "sentences", "tokens"):
            field(counts, name, int, path, _REMEDY, least=0)
    _check_shards(manifest, path)
    return manifest


def _check_shards(manifest: dict[str, Any], path: Path) -> None:
    """Shards have the names that preparation gives them, in order: a name from a file opens nothing else."""
    names: dict[str, list[str]] = {split: [] for split in SPLITS}
    shards: list[Any] = field(manifest, "shards", list, path, _REMEDY)
    for number, shard in enumerate(shards):
        if not isinstance(shard, dict) or shard.get("split") not in SPLITS:
            refuse(path, f"shards[{number}]", shard, f"an object with one of the splits {', '.join(SPLITS)}", _REMEDY)
        names[shard["split"]].append(field(shard, "file", str, path, _REMEDY))
        field(shard, "records", int, path, _REMEDY, least=1)
        field(shard, "bytes", int, path, _REMEDY, least=0)
    for split, found in names.items():
        for index, name in enumerate(found):
            if name != (expected := shard_name(split, index, len(found))):
                refuse(path, "shards: file", name, expected, _REMEDY)
