"""A model in memory, as a notebook or a program uses it: what `bert_jax.load` returns."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from ml_collections import FrozenConfigDict

from bert_jax.config import Json, UserError
from bert_jax.data.labelled.tables import Row
from bert_jax.data.tokenizers.tokenizer import Tokenizer
from bert_jax.inference.embeddings import Embedder
from bert_jax.inference.encode import Encoded, InputError, TextEncoder, problem
from bert_jax.inference.fill_mask import FillMask
from bert_jax.inference.gaps import Infilling
from bert_jax.inference.generate import Generator
from bert_jax.inference.infill import Infiller
from bert_jax.inference.open import Opened, open_model
from bert_jax.inference.predictor import Predictor
from bert_jax.inference.score import Scorer
from bert_jax.tasks import may_import
from bert_jax.tasks.likelihood import METHODS
from bert_jax.training.checkpoint import on_one_device

Texts = str | Sequence[str]


@dataclass(frozen=True)
class LoadedModel:
    """A model with its tokenizer. It does not change, and any number of threads may use it at the same time.

    A method that is given a list returns a list of the same length. What is wrong with one input is an `InputError` in
    the place of its result, and the other inputs have theirs. A method that is given one input returns its result, or
    raises the error.

    The first call for a new length of texts compiles a program, which takes seconds; `warm_up` does that beforehand.
    """

    path: Path
    step: int
    config: FrozenConfigDict
    tokenizer: Tokenizer
    _opened: Opened = field(repr=False)
    _batch_size: int = field(repr=False)
    _tools: dict[tuple, Any] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def max_length(self) -> int:
        """The most tokens of a row that the model takes; its task may take fewer (data.sequence_length)."""
        return self._opened.bert_config.max_position_embeddings

    @property
    def input_columns(self) -> tuple[str, ...]:
        """The columns of an object that `predict` or `generate` takes, the first that of a text alone; () if the model
        does neither."""
        has_one = not self.config.tasks and may_import(self.config, self._opened.users_task)
        task = self._opened.task if has_one else None
        return tuple(task.input_example) if task and (task.makes_predictions or task.makes_texts) else ()

    def encode(
        self,
        texts: Texts,
        pairs: Texts | None = None,
        *,
        max_length: int | None = None,
        hidden_states: bool = False,
        attentions: bool = False,
    ) -> Encoded:
        """Returns what the model computes for texts or pairs of texts, as padded arrays, also for one text.

        A text over `max_length` tokens, by default all that the model takes, is cut. Hidden states of all layers and
        attention weights are large: ask for them.
        """
        texts = [texts] if isinstance(texts, str) else texts
        pairs = [pairs] if isinstance(pairs, str) else pairs
        run = self.tool(TextEncoder)
        return run(texts, pairs, max_length=max_length, hidden_states=hidden_states, attentions=attentions)

    def fill_mask(self, texts: Texts, top_k: int = 5) -> Any:
        """Returns, for each [MASK] of a text, the likeliest tokens as [(token, probability), …]."""
        fill = self.tool(FillMask)
        return _results(texts, lambda rows: fill.stream(_rows(rows, "text"), "text", top_k))

    def embed(self, texts: Texts, *, pooling: str = "mean", layer: int | str = -1, normalize: bool = False) -> Any:
        """Returns the vector of each text, float32[D]; the options are those of `Embedder`."""
        embedder = self.tool(Embedder, pooling=pooling, layer=str(layer), normalize=normalize)
        return _results(texts, lambda rows: embedder.stream(_rows(rows, "text")))

    def infill(self, texts: Texts, strategy: str = "confidence", **options: object) -> Any:
        """Returns for each text with [MASK] or [GAP] in it a record with the filled `text` (`Infiller.stream`). The
        options are those of `Infilling`: gap, iterations, beams, temperature, seed, whole_words, contains, allowed."""
        try:
            how = Infilling(strategy, **{name: _as_tuples(value) for name, value in options.items()})
        except TypeError:
            known = ", ".join(option.name for option in fields(Infilling)[1:])
            raise UserError(f"infill takes the options {known}; correct {', '.join(options)}") from None
        infiller = self.tool(Infiller)
        return _results(texts, lambda rows: infiller.stream(_rows(rows, "text"), "text", how))

    def score(self, texts: Texts, *, method: str = "within_word", by_token: bool = False) -> Any:
        """Returns the log-likelihood of each text as a float, in nats: the sum of log p(token | all others), or in a
        left-to-right model of log p(token | those before it). `tasks/likelihood.py` explains the methods. With
        `by_token` a record that also has a table of the tokens (`Scorer.stream`). Raises UserError for a model without
        an MLM head."""
        scorer = self.tool(Scorer, method=method)
        records = _results(texts, lambda rows: scorer.stream(_rows(rows, "text"), by_token=by_token))
        if by_token or isinstance(records, dict):
            return records if by_token else records["score"]
        return [record["score"] if isinstance(record, dict) else record for record in records]

    def rank(self, candidates: Sequence[str], *, per_token: bool = False, method: str = "within_word") -> Any:
        """Returns the candidates as [(text, score), …], the most probable one first: by `score`, or by its mean over
        the tokens, which is fairer to texts of unequal length. Raises `InputError` for a candidate that has no score.
        """
        if isinstance(candidates, str):
            raise UserError("rank compares texts: give a list of them")
        scorer = self.tool(Scorer, method=method)
        records = _results(list(candidates), lambda rows: scorer.stream(_rows(rows, "text")))
        for wrong in (record for record in records if isinstance(record, InputError)):
            raise wrong
        sizes = [record["tokens"] if per_token else 1 for record in records]
        scores = [record["score"] / size for record, size in zip(records, sizes, strict=True)]
        return sorted(zip(candidates, scores, strict=True), key=lambda pair: -pair[1])

    def predict(self, inputs: Texts | Mapping[str, object] | Sequence[Mapping[str, object]]) -> Any:
        """Returns the prediction of the fine-tuned task for each text, or each object with the task's columns."""
        predictor = self.tool(Predictor)
        return _results(inputs, lambda rows: predictor.stream(_rows(rows, self.config.data.text)))

    def generate(self, inputs: Texts | Mapping[str, object] | Sequence[Mapping[str, object]], **options: object) -> Any:
        """Returns what a model of a sequence-to-sequence task writes for each text, or each object with the task's
        column: {"text", "score", "log_probability"}, and with n_best over 1 also `n_best`, so many of these.

        The options are those of the group `generate` (docs/options.md), such as beams=5, of which the config of the run
        has the rest. Raises UserError for a model that cannot write.
        """
        seed = options.pop("seed", None)
        generator = self.tool(Generator, given=tuple(sorted(options.items())))
        return _results(inputs, lambda rows: generator.stream(_rows(rows, self.config.data.text), seed))

    def warm_up(self, lengths: Sequence[int]) -> None:
        """Compiles all that this model can do, with default options, for texts of up to these numbers of tokens.

        From then on these lengths are used, and the longest that the model takes for texts that exceed them: results
        no longer depend on what was run before, not even in the last bit.
        """
        tools = [self.tool(TextEncoder), self.tool(Embedder, pooling="mean", layer="-1", normalize=False)]
        defaults: dict[type, Json] = {
            Predictor: {},
            FillMask: {},
            Scorer: {"method": METHODS[0]},
            Infiller: {},
            Generator: {"given": ()},
        }
        for kind, options in defaults.items():
            with contextlib.suppress(UserError):  # a model need not have all heads
                tools.append(self.tool(kind, **options))
        for tool in tools:
            tool.warm_up(lengths)

    def tool(self, kind: type, **options: object) -> Any:
        """Returns the one tool of this kind with these options, made by `kind(opened, batch_size=…, **options)` when it
        is asked for first. Raises UserError if the model lacks what it needs."""
        key = kind, *map(repr, options.values())  # also of what has no hash, and apart for 1 and True
        with self._lock:
            if key not in self._tools:
                self._tools[key] = kind(self._opened, batch_size=self._batch_size, **options)
            return self._tools[key]


def load(path: str | Path, *, batch_size: int, **options: Any) -> LoadedModel:
    """Loads a model; `bert_jax.load` says how."""
    return _loaded(_opened(path, **options), batch_size)


def load_members(path: str | Path, *, batch_size: int, **options: Any) -> dict[str, LoadedModel]:
    """Loads a model under the name "" and, of a model of several tasks, that of each task under its name; they share
    their trunk in memory. The options are those of `load`, and `device`, the number of one of the process's devices."""
    opened = _opened(path, **options)
    return {name: _loaded(one, batch_size) for name, one in {"": opened, **opened.members()}.items()}


def _opened(
    path: str | Path,
    *,
    dtype: str | None,
    checkpoint: str,
    task: str,
    overrides: Mapping[str, object],
    task_name: str = "",
    device: int = 0,
) -> Opened:
    given = dict(overrides) | ({"model.dtype": dtype} if dtype else {})
    shardings = partial(on_one_device, number=device)
    return open_model(
        path, overrides=given, which=checkpoint, users_task=task, task_name=task_name, shardings=shardings
    )


def _loaded(opened: Opened, batch_size: int) -> LoadedModel:
    light = opened.without_parameters()
    return LoadedModel(light.path, light.step, FrozenConfigDict(light.config), light.tokenizer, light, batch_size)


def _results(inputs: Any, run: Callable[[Sequence[Any]], Any]) -> Any:
    is_one = isinstance(inputs, str | Mapping)
    found = enumerate(run([inputs] if is_one else list(inputs)))
    results = [InputError(number, str(x)) if isinstance(x, UserError) else x for number, x in found]
    if is_one and isinstance(results[0], InputError):
        raise results[0]
    return results[0] if is_one else results


def _as_tuples(value: object) -> Any:
    """Returns lists of words, which a caller may change, as tuples."""
    return tuple(map(_as_tuples, value)) if isinstance(value, list | tuple) else value


def _rows(inputs: Sequence[object], column: str) -> Iterator[Row | UserError]:
    for number, one in enumerate(inputs):
        values = dict(one) if isinstance(one, Mapping) else {column: one}
        texts = [x for value in values.values() for x in (value if isinstance(value, list) else [value])]
        wrong = next(filter(None, (problem(number, x) for x in texts if isinstance(x, str))), None)
        yield wrong or Row(f"input {number}", values)
