"""What several families share: long texts, labels, and what is logged about the data."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

from bert_jax.config import UserError
from bert_jax.data.batching.items import Part
from bert_jax.data.labelled.columns import text_in
from bert_jax.data.labelled.examples import (
    TaggedExample,
    TextExample,
    Vectors,
    WritingExample,
    format_summary,
    summarise,
    warnings,
)
from bert_jax.data.labelled.tables import Row
from bert_jax.data.labelled.windows import sliding
from bert_jax.data.media.source import VectorSource
from bert_jax.data.tokenizers.rows import row_length
from bert_jax.data.tokenizers.tokenizer import Tokenizer


def text_columns(data: ConfigDict) -> dict[str, str]:
    """Returns the columns of the texts that a model reads: none with data.modalities=vectors."""
    names = ("text", "text_pair")
    return {name: "" if data.modalities == "vectors" else data[name] for name in names}


def text_example(row: Row, data: ConfigDict, source: VectorSource | None) -> TextExample:
    """Returns the example of a row, without label. Raises UserError for what is wrong with the row."""
    text, pair = text_columns(data).values()
    texts = text_in(row, text) if text else "", text_in(row, pair) if pair else None
    return TextExample(row.origin, *texts, vectors=source and source.read(row))


def blank_example(text: str, data: ConfigDict, source: VectorSource | None) -> TextExample:
    """Returns an example of one text, beside which all vectors that a row can have are zero."""
    values = {name: text for name in text_columns(data).values() if name}
    return text_example(Row("stand-in", values | ({source.column: source.blank()} if source else {})), data, source)


def encode_texts(
    tokenizer: Tokenizer, examples: Sequence[TextExample], data: ConfigDict
) -> list[tuple[tuple[Part, ...], dict[str, np.ndarray]]]:
    """Returns the parts of each example, and what its tokens have besides: [CLS] text [SEP] (pair [SEP]), and after it
    the vectors of the example, if it has some."""
    firsts = tokenizer.encode_words([example.text for example in examples])
    seconds: Sequence[list[int] | None] = [None] * len(examples)
    if any(example.text_pair is not None for example in examples):
        seconds = tokenizer.encode_words([example.text_pair or "" for example in examples])
    found, cut = [], 0
    for example, first, second in zip(examples, firsts, seconds, strict=True):
        taken = 0 if example.vectors is None else len(example.vectors.values)
        parts, dropped = encode_long(tokenizer, first, second, data, example.origin, taken=taken)
        cut += dropped
        found.append((parts, {}) if example.vectors is None else with_vectors(parts, example.vectors, tokenizer))
    log_cut(cut, len(examples), data)
    return found


def with_vectors(
    parts: tuple[Part, ...], vectors: Vectors, tokenizer: Tokenizer
) -> tuple[tuple[Part, ...], dict[str, np.ndarray]]:
    """Returns the only part with positions for the vectors behind its tokens, and the arrays of these positions."""
    [part] = parts
    size, count = len(part.ids), len(vectors.values)
    ids = np.concatenate([part.ids, np.full(count, tokenizer.pad_id, np.int32)])
    # Vectors have a type of their own: this one is not looked up for them.
    row = Part(ids, np.concatenate([part.type_ids, np.zeros(count, np.int32)]))
    values = {"vectors": vectors.values, "vector_grid": vectors.grid}
    return (row,), {name: np.pad(x, ((size, 0), (0, 0))) for name, x in values.items()}


def encode_long(
    tokenizer: Tokenizer, a: list[int], b: list[int] | None, data: ConfigDict, origin: str, *, taken: int = 0
) -> tuple[tuple[Part, ...], bool]:
    """Returns [CLS] a [SEP] (b [SEP]) as one part or as windows over the longer text, and whether tokens were left out.
    `taken` positions of a row are for something else.

    Raises UserError, which names `origin`, for too many tokens with data.long_texts=error.
    """
    limit, length = data.sequence_length - taken, row_length(len(a), None if b is None else len(b))
    if taken and limit < row_length(1, None if b is None else 1):
        raise UserError(
            f"{origin}: its {taken} vectors leave no room for a text in data.sequence_length {data.sequence_length}: "
            "raise it, or choose larger patches"
        )
    if taken and data.long_texts == "windows":
        raise UserError("data.long_texts=windows is for text alone: choose head, tail, head+tail or error")
    if length <= limit:
        return (tokenizer.row(a, b),), False
    if data.long_texts == "error":
        raise UserError(
            f"{origin}: {length + taken} tokens, over data.sequence_length {limit + taken}; raise it, or choose "
            "another data.long_texts, such as head+tail"
        )
    if data.long_texts != "windows":
        return (tokenizer.row(a, b, max_length=limit, how=data.long_texts),), True
    room = limit - row_length(0, None if b is None else 0)
    # The shorter text accompanies every window, but never takes more than half of the room from the longer one.
    is_first_longer = b is None or len(a) >= len(b)
    long, short = (a, b or []) if is_first_longer else (b or [], a)
    kept = short[: room // 2]
    windows = sliding(len(long), room - len(kept), data.window_stride)
    parts = []
    for start, size in windows[: data.max_windows]:
        window = long[start : start + size]
        first, second = (window, kept) if is_first_longer else (kept, window)
        parts.append(tokenizer.row(first, None if b is None else second))
    return tuple(parts), len(windows) > data.max_windows or len(kept) < len(short)


def log_cut(cut: int, count: int, data: ConfigDict) -> None:
    """Warns if `cut` of `count` examples lost tokens."""
    if cut:
        message = "%d of %d examples (%.1f %%) lose tokens to data.long_texts=%s"
        logging.warning(message, cut, count, 100 * cut / count, data.long_texts)


def log_splits(splits: Mapping[str, Sequence[TextExample]]) -> None:
    """Logs sizes, labels and lengths of every split, and warns of what looks like a mistake in the data."""
    report = summarise(splits)
    logging.info("%s", format_summary(report))
    for warning in warnings(report):
        logging.warning("%s", warning)


def log_tags(splits: Mapping[str, Sequence[TaggedExample]], has_entities: bool) -> None:
    """Logs sizes and tags of every split, and warns of sentences that occur twice or with different tags."""
    seen: dict[tuple[str, ...], set[tuple[str, ...]]] = {}  # words → their tags in the examples so far
    for split, examples in splits.items():
        sizes = sorted(len(example.words) for example in examples)
        tags = (tag for example in examples for tag in (example.tags or ()))
        kinds = Counter(tag.removeprefix("B-") for tag in tags if tag.startswith("B-") or not has_entities)
        logging.info(
            "%s: %d sentences, %d words; of a sentence min %d, median %d, max %d; %s: %s",
            *(split, len(sizes), sum(sizes), sizes[0], sizes[len(sizes) // 2], sizes[-1]),
            "entities" if has_entities else "tags",
            ", ".join(f"{kind} {count}" for kind, count in kinds.most_common(30)),
        )
        repeated = []  # origin, and whether the tags are new
        for example in examples:
            tags, before = example.tags or (), seen.setdefault(example.words, set())
            if before:
                repeated.append((example.origin, bool(before - {tags})))
            before.add(tags)
        if repeated:
            earlier = "earlier ones" if split == "train" else "earlier ones or those of other splits"
            message = "%s: %d sentences repeat %s, %d with other tags (first: %s)"
            differing = sum(differs for _, differs in repeated)
            logging.warning(message, split, len(repeated), earlier, differing, repeated[0][0])


def log_pairs(splits: Mapping[str, Sequence[WritingExample]]) -> None:
    """Logs sizes and lengths of every split, and warns of sources that training has too and of targets that are copies
    of their sources."""
    known = {example.source for example in splits["train"]}
    for split, examples in splits.items():
        lengths = [sorted(len(" ".join(e.source)) for e in examples), sorted(len(e.target or "") for e in examples)]
        quantiles = [f"min {one[0]}, median {one[len(one) // 2]}, max {one[-1]}" for one in lengths]
        logging.info("%s: %d pairs; characters of sources %s; of targets %s", split, len(examples), *quantiles)
        found = {"have a source that training has too": [e for e in examples if split != "train" and e.source in known]}
        found["have a target that equals the source"] = [e for e in examples if e.source == (e.target,)]
        for what, odd in found.items():
            if odd:
                logging.warning("%s: %d pairs %s (first: %s)", split, len(odd), what, odd[0].origin)


def agreed_labels(known: list[str] | None, found: list[str], what: str) -> list[str]:
    """Returns the labels of the checkpoint if there is one, else those of the data. Raises UserError if they differ."""
    if known is not None and sorted(known) != sorted(found):
        raise UserError(
            f"the checkpoint of init_from knows the {what} {listed(known)}, the data has {listed(found)}; "
            "train a head of its own with --config.train.new_head=True"
        )
    return known or found


def listed(names: Sequence[str]) -> str:
    """Returns the first names as a part of a message."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
