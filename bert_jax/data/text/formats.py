"""What a file is, where it is not what data.corpus says: its first bytes tell, before hours of training on markup."""

import json
import re
from itertools import islice
from pathlib import Path

from bert_jax.config import UserError
from bert_jax.data.text.text_files import OPENERS, check_regular, read_blocks

_LINES = 3  # that must all be JSON objects: a text may quote one in its first line
_MAGIC = {  # first bytes → what the file is, and what to do
    b"\x1f\x8b": ("a gzip archive", "name it *.gz"),
    b"\xfd7zXZ\0": ("an xz archive", "name it *.xz"),
    b"\x28\xb5\x2f\xfd": ("a zstd archive", "name it *.zst"),
    b"BZh91AY&SY": ("a bzip2 archive", "decompress it"),
    b"PK\x03\x04": ("a ZIP archive or an office document", "extract its text"),
    b"%PDF-": ("a PDF document", "extract its text"),
    b"PAR1": ("a Parquet file", "write its text column as JSONL and set --config.data.corpus=jsonl"),
    b"SQLite format 3": ("an SQLite database", "write its text as JSONL and set --config.data.corpus=jsonl"),
    b"\xff\xfe": ("UTF-16 text", "convert it, e.g. with iconv -f UTF-16 -t UTF-8"),
    b"\xfe\xff": ("UTF-16 text", "convert it, e.g. with iconv -f UTF-16 -t UTF-8"),
}
_MARKUP = {  # how a text begins → what it is, and what to do
    r'\[\s*\{\s*"|\{\s*\n\s*"(?:[^"\\]|\\.)*"\s*:': (
        "JSON",
        "write one object per line and set --config.data.corpus=jsonl",
    ),
    r"<mediawiki\b": ("a MediaWiki dump", "extract its articles with WikiExtractor"),
    r"<!doctype\b|<html\b|<\?xml\b": ("HTML or XML", "extract its text"),
}


def check_format(path: Path, kind: str) -> None:
    """Raises UserError if a file is certainly not of the kind text, jsonl or wikiextractor: an archive, a database,
    UTF-16, and for "text" also JSON, HTML, XML and tables."""
    check_regular(path)
    start = next(read_blocks(path), b"")
    for magic, (what, remedy) in _MAGIC.items():
        if start.startswith(magic):
            raise UserError(f"{path}: is {what}, not plain text: {remedy}")
    if kind != "text":
        return
    suffix = Path(path.stem if path.suffix in OPENERS else path.name).suffix.lower()
    if suffix in (".csv", ".tsv"):
        remedy = "write its text column as JSONL and set --config.data.corpus=jsonl, or name it *.txt if it is prose"
        raise UserError(f"{path}: is a table, not plain text: {remedy}")
    text = start.decode("utf-8-sig", "ignore").lstrip()
    lines = list(islice((line for line in text.split("\n") if line.strip()), _LINES))
    if lines and all(map(_is_object, lines)):
        remedy = "set --config.data.corpus=jsonl, and data.text_field to the field with the text"
        raise UserError(f"{path}: is JSONL, which data.corpus=text would learn as prose: {remedy}")
    for pattern, (what, remedy) in _MARKUP.items():
        if re.match(pattern, text, re.IGNORECASE):
            raise UserError(f"{path}: is {what}, not plain text: {remedy}")


def _is_object(line: str) -> bool:
    try:
        return line.lstrip().startswith("{") and isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
