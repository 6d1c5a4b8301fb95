"""Labelled data by language: `en=a.tsv,de=b.tsv`, or one table with a column that says the language of each row."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

from ml_collections import ConfigDict

from bert_jax.config import UserError
from bert_jax.data.labelled.columns import has_header, text_in
from bert_jax.data.labelled.tables import read_rows

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_NAMED = re.compile(rf"\s*({_NAME.pattern})=(.*)", re.DOTALL)
_MOST = 500  # languages in one table
MEAN = "mean"  # stands in the place of a language for the mean over all

Scores = Mapping[str, float]


class FromFile(Protocol):
    """What a task reads of a row, whatever else it holds."""

    @property
    def origin(self) -> str:
        """File and line, for messages."""
        ...


Example = TypeVar("Example", bound=FromFile)
Prediction = TypeVar("Prediction")


def named_parts(spec: str, option: str) -> dict[str, str]:
    """Returns the files of each language that a spec names, {} for one without names. What follows a comma without a
    name belongs to the language before it; the name of a file that is there may hold an equals sign.

    Raises UserError for a language that is named twice, or without files.
    """
    found: dict[str, list[str]] = {}
    name = ""
    for part in spec.split(","):
        named = None if os.path.lexists(part.strip()) else _NAMED.fullmatch(part)
        if named is None and not found:
            return {}
        if named:
            name = named[1]
            if name in found or name == MEAN:
                wrong = "which is what the mean over all is called" if name == MEAN else "twice"
                raise UserError(f"{option} names {name!r}, {wrong}: call it something else, or join files by commas")
            part = named[2]
        found.setdefault(name, []).append(part.strip())
    files = {name: ",".join(filter(None, parts)) for name, parts in found.items()}
    if empty := [name for name, one in files.items() if not one]:
        raise UserError(f"{option} names no file for {empty[0]!r}: write {empty[0]}=FILE")
    return files


def files_of(spec: str, option: str) -> list[str]:
    """Returns the specs of files in a spec, with or without names of languages."""
    return list(named_parts(spec, option).values()) or [spec]


class ByLanguage:
    """Which examples of each split are of which language, and their scores one language at a time."""

    def __init__(self, data: ConfigDict):
        self._data = data
        self._languages: dict[str, dict[str, str]] = {}  # by split: origin of an example → its language

    def read(
        self, split: str, read: Callable[[str], Iterable[Example]], name: Callable[[Example, str], Example]
    ) -> list[Example]:
        """Returns the examples of a split. `read` gives those of files, and `name` the example as one of a language.

        A column data.language says the language of every row. Where the split names languages, it chooses the rows of
        each; a file without this column is of one language then.
        Raises UserError for a language without rows, and for a row of two languages.
        """
        spec, column = self._data[split], self._data.language
        own = self._languages[split] = {}
        if not (parts := named_parts(spec, f"data.{split}")):
            examples = list(read(spec))
            if column and split != "train":
                own |= self._column(spec)
                examples = [name(example, own[example.origin]) for example in examples]
            return examples
        found = list[Example]()
        for language, files in parts.items():
            examples = list(read(files))
            if column:
                known = self._column(files, may_lack=True)
                examples = [example for example in examples if known.get(example.origin, language) == language]
                if not examples:
                    shown = ", ".join(sorted(set(known.values())))
                    raise UserError(f"data.{split}: {files} has no row of {language!r} in column {column!r} ({shown})")
            if twice := next((example.origin for example in examples if example.origin in own), None):
                wrong = f"is named for {own[twice]!r} and for {language!r}"
                raise UserError(f"{twice}: {wrong} in data.{split}: name a file once, or set data.language to a column")
            own |= dict.fromkeys((example.origin for example in examples), language)
            found += [name(example, language) for example in examples]
        return found

    def names(self, split: str, scores: Iterable[str]) -> list[str]:
        """Returns the names of what `scores` returns besides the scores of all examples."""
        scores = list(scores)
        return [f"{language}/{name}" for language in self.counts(split) for name in scores]

    def counts(self, split: str) -> dict[str, int]:
        """Returns the number of examples of each language of a split, and under MEAN that of all if there are several;
        {} if the split names none."""
        found = dict(Counter(self._languages.get(split, {}).values()))
        return found | {MEAN: sum(found.values())} if len(found) > 1 else found

    def scores(
        self,
        split: str,
        examples: Sequence[Example],
        predictions: Sequence[Prediction],
        score: Callable[[Sequence[Example], Sequence[Prediction]], Scores],
    ) -> dict[str, float]:
        """Returns what `score` gives for all examples, and for those of each language as <language>/<name>, with the
        mean over the languages."""
        of_all = dict(score(examples, predictions))
        if not (own := self._languages.get(split)):
            return of_all
        groups: dict[str, tuple[list[Example], list[Prediction]]] = {language: ([], []) for language in own.values()}
        for example, prediction in zip(examples, predictions, strict=True):
            both = groups[own[example.origin]]
            both[0].append(example)
            both[1].append(prediction)
        found = {language: score(*group) for language, group in groups.items() if group[0]}
        if len(found) > 1:
            shared = set.intersection(*(set(scores) for scores in found.values()))
            first = next(iter(found.values()))
            means = {key: sum(one[key] for one in found.values()) / len(found) for key in first if key in shared}
            found[MEAN] = means
        return of_all | {
            f"{language}/{key}": value for language, scores in found.items() for key, value in scores.items()
        }

    def _column(self, spec: str, *, may_lack: bool = False) -> dict[str, str]:
        """Returns the language of each row of a table by the row's origin; of rows that have the column, if other ones
        may lack it."""
        data = self._data
        try:
            rows = read_rows(spec, has_header([data.language, data.text, data.label]))
            rows = (row for row in rows if not may_lack or data.language in row.values)
            found = {row.origin: text_in(row, data.language) for row in rows}
        except UserError as error:
            instead = "where files have no such column leave it out, and name the files of each language, as de=FILE"
            raise UserError(f"{error} (data.language={data.language}; {instead})") from error
        if wrong := next((origin for origin, name in found.items() if not _NAME.fullmatch(name) or name == MEAN), None):
            raise UserError(
                f"{wrong}: {found[wrong]!r} in column {data.language!r} is no name of a language, such as de"
            )
        if (count := len(set(found.values()))) > _MOST:
            raise UserError(f"{spec}: column {data.language!r} has {count} values: is it that of the languages?")
        return found
