"""A prepared dataset on disk: its manifest, which is checked field by field, its tokenizer and its records.

The folder may come from somebody else, so nothing in it is executed, no name in it leads out of it, and the metadata
that TFDS reads are written for other programs only.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_jax.config import Json, UserError
from bert_jax.data.pretraining.records import Records, record_fields, shard_name
from bert_jax.data.pretraining.splits import SPLITS
from bert_jax.data.text.json_files import JsonObject, read_object
from bert_jax.data.tokenizers.tokenizer import Tokenizer, load_tokenizer

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_REMEDY = "prepare it again (--mode=prepare)"


@dataclass(frozen=True)
class PreparedCorpus:
    """A complete prepared dataset."""

    directory: Path
    manifest: Json
    tokenizer: Tokenizer

    @property
    def name(self) -> str:
        return self.directory.name

    @property
    def shards(self) -> list[Json]:
        return self.manifest["shards"]

    def source(self, split: str) -> Records:
        """Returns the records of "train", "validation" or "test". Raises UserError for an empty split."""
        counts = self._counts(split)
        if not counts:
            remedy = f"raise data.{split}_share or add documents"
            raise UserError(f"the {split} split of {self.directory} is empty: {remedy}")
        fields = record_fields(self.manifest["masking"], self.tokenizer.vocab_size)
        return Records(self.directory, split, fields, counts)

    def num_records(self, split: str) -> int:
        return sum(self._counts(split))

    def _counts(self, split: str) -> list[int]:
        return [shard["records"] for shard in self.manifest["shards"] if shard["split"] == split]


class Incomplete(UserError):
    """A folder that a new preparation may replace."""


def open_prepared(directory: Path) -> PreparedCorpus:
    """Opens a prepared dataset without its corpus. Raises Incomplete if it is not whole and unchanged."""
    directory = Path(directory)
    try:
        manifest = _checked_manifest(directory / MANIFEST)
        tokenizer = load_tokenizer(directory / "tokenizer")
    except UserError as error:
        # What is wrong with the tokenizer has a remedy of its own, which does not say how to repair the dataset.
        message = str(error)
        raise Incomplete(message if message.endswith(_REMEDY) else f"{message}; or {_REMEDY}") from error
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


def _checked_manifest(path: Path) -> Json:
    """Returns the manifest, whose fields have the types and ranges that the rest of the program relies on."""
    manifest = read_object(path, _REMEDY)
    if (version := manifest.get("format", int)) != FORMAT_VERSION:
        manifest.refuse("format", version, f"{FORMAT_VERSION}, which this program reads")
    for content, prefix in ((manifest, ""), (manifest.object("settings"), "settings.")):
        masking = content.get("masking", str)
        if masking not in ("dynamic", "static"):
            content.refuse(prefix + "masking", masking, "dynamic or static")
        content.get("sequence_length", int, least=1)
        if masking == "static" and prefix:
            content.get("max_predictions_per_sequence", int, least=1)
    manifest.get("tokenizer_hash", str)
    splits = manifest.object("splits")
    for split in SPLITS:
        for name in ("documents", "sentences", "tokens"):
            splits.object(split).get(name, int, least=0)
    _check_shards(manifest)
    return manifest.content


def _check_shards(manifest: JsonObject) -> None:
    """Shards have the names that preparation gives them, in order: a name from a file opens nothing else."""
    names: dict[str, list[str]] = {split: [] for split in SPLITS}
    shards: list[Any] = manifest.get("shards", list)
    for number, content in enumerate(shards):
        if not isinstance(content, dict) or content.get("split") not in SPLITS:
            wanted = f"an object with one of the splits {', '.join(SPLITS)}"
            manifest.refuse(f"shards[{number}]", content, wanted)
        shard = JsonObject(content, manifest.origin, manifest.remedy)
        names[content["split"]].append(shard.get("file", str))
        shard.get("records", int, least=1)
        shard.get("bytes", int, least=0)
    for split, found in names.items():
        for index, name in enumerate(found):
            if name != (expected := shard_name(split, index, len(found))):
                manifest.refuse("shards: file", name, expected)
