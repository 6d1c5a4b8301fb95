"""Statistics of a prepared corpus: counts, histograms, and warnings when something looks wrong.

Memory is bounded: lengths go into power-of-two bins, and repeated lines are counted on a sample of the sentences chosen
by their hash, so that repetitions are seen however far apart. The sample halves whenever it holds more than
`_SAMPLE_LINES` different sentences.
"""

import zlib
from collections import Counter
from collections.abc import Iterable, Sequence

from bert_jax.config import Json
from bert_jax.data.pretraining.cleaning import shares

_SAMPLE_LINES = 1 << 17
_UNKNOWN_LIMIT = 0.01  # share of tokens
_REPEATED_LIMIT = 0.05  # share of sentences


class Statistics:
    """Counts of one split or block; `a.merge(b)` adds b to a. Independent of how documents are cut into blocks."""

    def __init__(self) -> None:
        self.counts = Counter(documents=0, sentences=0, tokens=0, unknown_tokens=0, chunks=0)
        # Bit lengths of the numbers of tokens, of tokens and of chunks, and how often each occurs.
        self.sentence_lengths, self.chunk_lengths, self.document_chunks = Counter[int](), Counter[int](), Counter[int]()
        self.removed = Counter[str]()  # what `cleaning.py` has left out
        self._lines: dict[int, int] = {}
        self._line_mask = 0  # a sentence is in the sample if its hash has none of these bits

    def add_document(self, sentence_lengths: Sequence[int], chunk_lengths: Sequence[int], unknown_tokens: int) -> None:
        """Lengths in tokens; static preparation has no chunks."""
        sentences, tokens, chunks = len(sentence_lengths), sum(sentence_lengths), len(chunk_lengths)
        self.counts.update(documents=1, sentences=sentences, tokens=tokens, chunks=chunks)
        self.counts["unknown_tokens"] += unknown_tokens
        self.sentence_lengths.update(map(int.bit_length, sentence_lengths))
        self.chunk_lengths.update(map(int.bit_length, chunk_lengths))
        self.document_chunks[chunks.bit_length()] += 1

    def add_lines(self, sentences: Sequence[str]) -> None:
        self._count((zlib.crc32(sentence.encode("utf-8", "surrogatepass")), 1) for sentence in sentences)

    def merge(self, other: "Statistics") -> None:
        self.counts.update(other.counts)
        self.removed.update(other.removed)
        self.sentence_lengths.update(other.sentence_lengths)
        self.chunk_lengths.update(other.chunk_lengths)
        self.document_chunks.update(other.document_chunks)
        if other._line_mask & ~self._line_mask:
            self._narrow(self._line_mask | other._line_mask)
        self._count(other._lines.items())

    def to_json(self) -> Json:
        """Returns everything as JSON, for `from_json`."""
        bins = [self.sentence_lengths, self.chunk_lengths, self.document_chunks]
        counts = {"counts": dict(self.counts), "removed": dict(self.removed)}
        content: Json = counts | {"bins": [list(found.items()) for found in bins]}
        return content | {"lines": list(self._lines.items()), "line_mask": self._line_mask}

    @classmethod
    def from_json(cls, content: Json) -> "Statistics":
        made = cls()
        made.counts.update(content["counts"])
        made.removed.update(content["removed"])
        bins = [made.sentence_lengths, made.chunk_lengths, made.document_chunks]
        for found, items in zip(bins, content["bins"], strict=True):
            found.update(dict(items))
        made._lines, made._line_mask = dict(content["lines"]), content["line_mask"]
        return made

    def repeated_share(self) -> float:
        """Returns the share of the sentences that occurred before."""
        sampled = sum(self._lines.values())
        return 1 - len(self._lines) / sampled if sampled else 0.0

    def _count(self, found: Iterable[tuple[int, int]]) -> None:
        lines, mask = self._lines, self._line_mask
        for line, count in found:
            if not line & mask:
                lines[line] = lines.get(line, 0) + count
        while len(self._lines) > _SAMPLE_LINES:
            self._narrow(self._line_mask << 1 | 1)

    def _narrow(self, mask: int) -> None:
        self._line_mask = mask
        self._lines = {line: count for line, count in self._lines.items() if not line & mask}


def make_report(splits: dict[str, Statistics]) -> Json:
    """Returns the report as JSON: counts per split, shares and histograms over all splits, warnings as sentences."""
    total = Statistics()
    for statistics in splits.values():
        total.merge(statistics)
    report: Json = {
        "splits": {name: dict(statistics.counts) for name, statistics in splits.items()},
        "unknown_share": round(total.counts["unknown_tokens"] / max(1, total.counts["tokens"]), 6),
        "repeated_line_share": round(total.repeated_share(), 6),
        "tokens_per_sentence": _histogram(total.sentence_lengths),
        "tokens_per_chunk": _histogram(total.chunk_lengths),
        "chunks_per_document": _histogram(total.document_chunks),
    }
    if total.removed:
        report["removed"] = shares(total.removed)
    report["warnings"] = _warnings(report, total.counts["documents"])
    return report


def report_text(report: Json) -> str:
    """Returns the report as text: a table of counts, bars, warnings."""
    columns = ("documents", "sentences", "tokens", "chunks")
    lines = [f"{'split':<12}" + "".join(f"{column:>14}" for column in columns)]
    for name, counts in report["splits"].items():
        lines.append(f"{name:<12}" + "".join(f"{counts[column]:>14,}" for column in columns))
    unknown, repeated = report["unknown_share"], report["repeated_line_share"]
    lines.append(f"[UNK] {unknown:.3%} of tokens, repeated {repeated:.2%} of lines")
    if "removed" in report:
        lines.append(f"{'left out':<24}{'lines':>12}{'of lines':>12}{'of characters':>16}")
        for rule, taken in report["removed"].items():
            parts = f"{taken['line_share']:>12.2%}{taken['character_share']:>16.2%}"
            lines.append(f"  {rule:<22}{taken['lines']:>12,}{parts}")
    for title in ("tokens_per_sentence", "tokens_per_chunk", "chunks_per_document"):
        if histogram := report[title]:
            largest = max(histogram.values())
            bars = (f"  {name:>15} {n:>12,} {'#' * round(40 * n / largest)}" for name, n in histogram.items())
            lines += [title.replace("_", " "), *bars]
    lines += [f"warning: {warning}" for warning in report["warnings"]]
    return "\n".join(lines) + "\n"


def _histogram(bins: Counter[int]) -> dict[str, int]:
    """Returns the counts by ranges "low-high" instead of bit lengths, without the empty bin of static preparation."""
    names = {bits: f"{1 << bits - 1}-{(1 << bits) - 1}" if bits > 1 else "1" for bits in bins if bits}
    return {names[bits]: bins[bits] for bits in sorted(names)}


def _warnings(report: Json, documents: int) -> list[str]:
    found, unknown, repeated = [], report["unknown_share"], report["repeated_line_share"]
    if unknown > _UNKNOWN_LIMIT:
        remedy = "train one on it (data.vocab_file='') or check data.lowercase"
        wrong = f"{unknown:.1%} of the tokens are [UNK] (normal: under {_UNKNOWN_LIMIT:.0%})"
        found.append(f"{wrong}: the vocabulary does not fit the text; {remedy}")
    if repeated > _REPEATED_LIMIT:
        wrong = f"{repeated:.1%} of the lines occurred before (normal: under {_REPEATED_LIMIT:.0%})"
        found.append(f"{wrong}: look for boilerplate or duplicated documents")
    if documents == 1:
        found.append("the corpus is one document: there is no other to draw random next sentences from")
    return found
