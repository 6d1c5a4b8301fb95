"""Raw text in, documents out: text files, JSONL, WikiExtractor dumps, TFDS data sets, the built-in sample.

Everything is streamed: memory does not grow with the corpus.
"""

import html
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from bert_jax.config import UserError
from bert_jax.data.text.formats import check_format
from bert_jax.data.text.sample import read_sample, sample_sources
from bert_jax.data.text.sentences import split_text
from bert_jax.data.text.text_files import OPENERS, digest_of, find_files, fingerprint_of, json_value, read_lines
from bert_jax.data.text.tfds_names import download, find_builder

_READING_RULES = "1"  # raise it when a reader gives other documents than before: prepared data is then rebuilt
_HEAD = 1 << 18  # characters that the layout of a text file is read from
_MAX_DOCUMENT = 1_000_000  # characters; a book is 0.2 to 1 million
_SAMPLE_BYTES = 7_000_000  # about
_TFDS_BYTES = 1 << 24  # of the examples that are one source
ENDS_SENTENCE = re.compile(r"[.!?…。！？｡؟۔।][\"'”’»)\]」』）】》〉\s]*$")
_TITLE = re.compile(r' title="(.*?)">')


@dataclass(frozen=True)
class Document:
    source: str  # where it came from: "path:line", module, topic or example name, for messages
    text: str  # sentences on lines if one_sentence_per_line, else paragraphs on lines
    one_sentence_per_line: bool
    duplicates: tuple[int, ...] = ()  # numbers of its lines that occurred before in the corpus, if looked for


@dataclass(frozen=True)
class Source:
    """A piece of a corpus that is read from its beginning: a file, or a range of TFDS examples. Can be pickled."""

    num_bytes: int  # as stored, about
    documents: Callable[[], Iterator[Document]]  # a fresh stream each call


@dataclass(frozen=True)
class Corpus:
    name: str  # short and fit for a file name
    num_bytes: int | None  # of the raw text; None if only known compressed
    fingerprint: str  # changes when the content does
    sources: Sequence[Source]  # in order

    def documents(self) -> Iterator[Document]:
        """Returns a fresh stream of all documents."""
        return (document for source in self.sources for document in source.documents())


def open_corpus(data: ConfigDict) -> Corpus:
    """Reads data.corpus, data.files and data.text_field; every file is opened and hashed before it returns.

    Files that are named are never left unread: with them "sample", the default, means "text". Raises UserError at once
    for files that cannot be what they should be, and while streaming for what is wrong inside them.
    """
    kind = "text" if data.corpus == "sample" and data.files else data.corpus
    if kind == "sample":
        digest = digest_of([_READING_RULES, kind], sample_sources())
        return Corpus("sample", _SAMPLE_BYTES, digest, [Source(_SAMPLE_BYTES, _read_sample)])
    if kind.startswith("tfds:"):
        return _open_tfds(kind.removeprefix("tfds:"), data.text_field)
    field = data.text_field
    readers = {"text": _read_text, "wikiextractor": _read_wikiextractor, "jsonl": partial(_read_jsonl, field=field)}
    if kind not in readers:
        raise UserError(f"data.corpus={kind!r}: choose sample, text, jsonl, wikiextractor or tfds:NAME")
    paths = find_files(data.files)
    for path in paths:
        check_format(path, kind)
    fingerprint = fingerprint_of(paths, [_READING_RULES, kind, field if kind == "jsonl" else ""])
    compressed = any(path.suffix in OPENERS for path in paths)
    sources = [Source(path.stat().st_size, partial(readers[kind], path)) for path in paths]
    size = None if compressed else sum(source.num_bytes for source in sources)
    return Corpus(kind, size, fingerprint, sources)


def split_sentences(document: Document) -> list[str]:
    """Returns the non-empty sentences in order; see `sentences.split_text` for where one ends."""
    if document.one_sentence_per_line:
        return [line for line in map(str.strip, document.text.split("\n")) if line]
    return split_text(document.text)


def _read_sample() -> Iterator[Document]:
    return (Document(name, text, False) for name, text in read_sample())


def _read_text(path: Path) -> Iterator[Document]:
    """Yields the documents of a text file, which end where its layout says so, or after a million characters. A file
    that begins with <doc is a WikiExtractor dump."""
    head = _head(path)
    if head.lstrip().startswith("<doc "):
        yield from _read_wikiextractor(path)
        return
    kind, blank_ends_document = _layout(head)
    texts: list[str] = []
    paragraph: list[str] = []
    first = size = 0
    for number, line in enumerate(chain(read_lines(path), [""]), 1):
        line = line.strip()
        if line:
            first = first or number
            size += len(line)
            paragraph.append(line)
        full = size > _MAX_DOCUMENT
        if paragraph and (full or not line or kind != "wrapped"):
            texts.append(" ".join(paragraph))
            paragraph = []
        if texts and (full or (not line and blank_ends_document)):
            yield Document(f"{path}:{first}", "\n".join(texts), kind == "sentences")
            texts, first, size = [], 0, 0
    if texts:
        yield Document(f"{path}:{first}", "\n".join(texts), kind == "sentences")


def _head(path: Path) -> str:
    lines, size = [], 0
    for line in read_lines(path):
        lines.append(line)
        size += len(line) + 1
        if size > _HEAD:
            break
    return "\n".join(lines)


def _layout(head: str) -> tuple[str, bool]:
    """Returns how the lines of a plain text file are meant (sentences, paragraphs, wrapped), and whether a blank one
    ends a document or only a paragraph, from the first 256 K characters:

    1. 60 % of the lines end a sentence and few continue the line before in lower case: a line is a whole. It is a
       sentence if lines hold at most 1.5 sentences on average, else a paragraph. Where 90 % of the lines end a sentence,
       or hardly any has a capital letter (a lower-cased corpus), the case of the next line says nothing.
    2. A tenth of the lines is over 120 characters long: a line is a paragraph.
    3. Lines hardly ever end a sentence and are not filled up to a margin (headlines, queries): a line is a sentence.
    4. Else the text is hard-wrapped (books): lines are joined up to the next blank line, and the file is one document.

    In 1 to 3 a blank line ends a document, unless nearly every line has a blank one after it. With none the file is one
    document.
    """
    blocks = [[line for line in map(str.strip, block.split("\n")) if line] for block in re.split(r"\n\s*\n", head)]
    blocks = [block for block in blocks if block]
    lines = [line for block in blocks for line in block]
    if not lines:
        return "paragraphs", False
    pairs = [pair for block in blocks for pair in pairwise(block)]
    lengths = sorted(map(len, lines))
    ninetieth, margin = (lengths[int(share * (len(lines) - 1))] for share in (0.9, 0.99))
    ends = sum(bool(ENDS_SENTENCE.search(line)) for line in lines) / len(lines)
    continued = sum(line[0].islower() for _, line in pairs) / max(1, len(pairs))
    filled = sum(len(a) + 1 + len(b.split(maxsplit=1)[0]) > margin for a, b in pairs) / max(1, len(pairs))
    blank_ends_document = len(lines) >= 1.5 * len(blocks)
    caseless = sum(line != line.lower() for line in lines) < 0.05 * len(lines)
    if ends >= (0.6 if continued <= 0.2 or caseless else 0.9):
        per_line = sum(len(split_text(line)) for line in lines) / len(lines)
        return ("sentences" if per_line <= 1.5 else "paragraphs"), blank_ends_document
    if ninetieth > 120:
        return "paragraphs", blank_ends_document
    if ends < 0.05 and filled < 0.5:
        return "sentences", blank_ends_document
    return "wrapped", False


def _read_wikiextractor(path: Path) -> Iterator[Document]:
    """<doc id= url= title=> … </doc>, each tag on a line; the title is dropped where the text repeats it."""
    opened = 0
    title, lines = "", []
    for number, line in enumerate(read_lines(path), 1):
        line = line.strip()
        if line.startswith("<doc "):
            if opened:
                raise UserError(f"{path}:{number}: <doc> before the one of line {opened} is closed: fix this file")
            found = _TITLE.search(line)
            opened, title, lines = number, html.unescape(found[1]) if found else "", []
        elif line == "</doc>" and opened:
            if lines and lines[0] == title:
                del lines[0]
            if lines:
                yield Document(f"{path}:{opened}", "\n".join(lines), False)
            opened = 0
        elif line and not opened:
            raise UserError(f"{path}:{number}: text outside of <doc> … </doc>: is this a WikiExtractor file?")
        elif line:
            lines.append(line)
    if opened:
        raise UserError(f"{path}:{opened}: <doc> is never closed: the file seems cut, get it again")


def _read_jsonl(path: Path, field: str) -> Iterator[Document]:
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            record = json_value(line)
        except ValueError as error:
            raise UserError(f"{path}:{number}: not a whole JSON object ({error}): fix this line") from error
        text = record.get(field) if isinstance(record, dict) else None
        if not isinstance(text, str):
            has = ", ".join(sorted(record)) if isinstance(record, dict) else type(record).__name__
            raise UserError(f"{path}:{number}: no text in field {field!r} (found: {has}): set data.text_field")
        if text.strip():
            yield Document(f"{path}:{number}", text, False)


def _open_tfds(name: str, field: str) -> Corpus:
    """The train split, or every split if none has that name; downloaded and prepared as ArrayRecord if need be."""
    import tensorflow_datasets as tfds  # takes seconds, and only this corpus needs it

    where = f"data.corpus=tfds:{name}"
    builder = find_builder(name, where)
    features: Any = builder.info.features
    if field not in features or not isinstance(features[field], tfds.features.Text):
        texts = ", ".join(key for key, value in features.items() if isinstance(value, tfds.features.Text))
        raise UserError(f"{where}: no text feature {field!r}: set data.text_field to one of: {texts or 'none'}")
    download(builder, where)
    splits = ["train"] if "train" in builder.info.splits else sorted(builder.info.splits)
    infos = [builder.info.splits[split] for split in splits]
    sizes = [f"{info.name} {info.num_examples} {info.num_bytes}" for info in infos]
    sources = []
    for info in infos:
        step = max(1, _TFDS_BYTES * info.num_examples // max(1, info.num_bytes))
        for start in range(0, info.num_examples, step):
            stop = min(start + step, info.num_examples)
            read = partial(_read_tfds, name, field, info.name, start, stop)
            sources.append(Source(info.num_bytes * (stop - start) // info.num_examples, read))
    fingerprint = digest_of([_READING_RULES, builder.info.full_name, field, *sizes], [])
    short = "tfds_" + re.sub(r"[^\w.-]+", "_", name)
    return Corpus(short, sum(info.num_bytes for info in infos), fingerprint, sources)


def _read_tfds(name: str, field: str, split: str, start: int, stop: int) -> Iterator[Document]:
    builder = find_builder(name, f"data.corpus=tfds:{name}")
    examples = builder.as_data_source(split)
    for index in range(start, stop):
        text = examples[index][field].decode("utf-8", "replace")
        if text.strip():
            yield Document(f"{builder.info.full_name}:{split}:{index}", text, False)
