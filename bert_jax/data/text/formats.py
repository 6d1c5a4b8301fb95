"""What a file is, where it is not what data.corpus says: its first bytes tell, before hours of training on markup."""

import re
from itertools import islice
from pathlib import Path

from bert_jax.config import UserError
from bert_jax.data.text.text_files import OPENERS, check_regular, json_value, read_blocks

_LINES = 3  # that must all be JSON objects: a text may quote one in its first line
_AS_JSONL = "as JSONL and set --config.data.corpus=jsonl"
_UTF16 = ("UTF-16 text", "convert it, e.g. with iconv -f UTF-16 -t UTF-8")
_MAGIC = {  # first bytes → what the file is, and what to do
    b"\x1f\x8b": ("a gzip archive", "name it *.gz"),
    b"\xfd7zXZ\0": ("an xz archive", "name it *.xz"),
    b"\x28\xb5\x2f\xfd": ("a zstd archive", "name it *.zst"),
    b"BZh91AY&SY": ("a bzip2 archive", "decompress it"),
    b"PK\x03\x04": ("a ZIP archive or an office document", "extract its text"),
    b"%PDF-": ("a PDF document", "extract its text"),
    b"PAR1": ("a Parquet file", f"write its text column {_AS_JSONL}"),
    b"SQLite format 3": ("an SQLite database", f"write its text {_AS_JSONL}"),
    b"\xff\xfe": _UTF16,
    b"\xfe\xff": _UTF16,
}
_MARKUP = {  # how a text begins → what it is, and what to do
    r'\[\s*\{\s*"|\{\s*\n\s*"(?:[^"\\]|\\.)*"\s*:': ("JSON", f"write one object per line {_AS_JSONL}"),
    r"<mediawiki\b": ("a MediaWiki dump", "extract its articles with WikiExtractor"),
    r"<!doctype\b|<html\b|<\?xml\b": ("HTML or XML", "extract its text"),
}


def check_format(path: Path, kind: str) -> None:
    """Raises UserError if a file is certainly not of the kind text, jsonl or wikiextractor: an archive, a database,
    UTF-16, and for "text" also JSON, HTML, XML and tables."""
    check_regular(path)
    start = next(read_blocks(path), b"")
    found = [what for magic, what in _MAGIC.items() if start.startswith(magic)]
    if kind == "text" and not found:
        text = start.decode("utf-8-sig", "ignore").lstrip()
        lines = list(islice((line for line in text.split("\n") if line.strip()), _LINES))
        suffix = Path(path.stem if path.suffix in OPENERS else path.name).suffix.lower()
        if suffix in (".csv", ".tsv"):
            found = [("a table", f"write its text column {_AS_JSONL}, or name it *.txt if it is prose")]
        elif lines and all(map(_is_object, lines)):
            remedy = "set --config.data.corpus=jsonl, and data.text_field to the field with the text"
            found = [("JSONL, which data.corpus=text would learn as prose", remedy)]
        else:
            found = [what for pattern, what in _MARKUP.items() if re.match(pattern, text, re.IGNORECASE)]
    if found:
        what, remedy = found[0]
        raise UserError(f"{path}: is {what}, not plain text: {remedy}")


def _is_object(line: str) -> bool:
    try:
        return line.lstrip().startswith("{") and isinstance(json_value(line), dict)
    except ValueError:
        return False
