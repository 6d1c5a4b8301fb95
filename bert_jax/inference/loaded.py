"""A model in memory, as a notebook or a program uses it: what `bert_jax.load` returns."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from ml_collections import FrozenConfigDict

from bert_jax.config import UserError
from bert_jax.data.labelled.tables import Row
from bert_jax.data.tokenizers.tokenizer import Tokenizer
from bert_jax.inference.embeddings import Embedder
from bert_jax.inference.encode import Encoded, InputError, TextEncoder, problem
from bert_jax.inference.fill_mask import FillMask
from bert_jax.inference.open import open_model
from bert_jax.inference.predictor import Predictor

Texts = str | Sequence[str]
Vector = Float32[np.ndarray, " D"]


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
    _encoder: TextEncoder = field(repr=False)
    _predictor: Predictor | UserError = field(repr=False)  # or why there is none
    _fill_mask: FillMask | UserError = field(repr=False)
    _new_embedder: Callable[..., Embedder] = field(repr=False)
    _embedders: dict[tuple, Embedder] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

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
        return self._encoder(texts, pairs, max_length=max_length, hidden_states=hidden_states, attentions=attentions)

    def fill_mask(self, texts: Texts, top_k: int = 5) -> Any:
        """Returns, for each [MASK] of a text, the likeliest tokens as [(token, probability), …]."""
        fill = _able(self._fill_mask)
        return _results(texts, lambda rows: [_caught(fill, text, top_k) for text in rows])

    def embed(self, texts: Texts, *, pooling: str = "mean", layer: int | str = -1, normalize: bool = False) -> Any:
        """Returns the vector of each text, float32[D]; the options are those of `Embedder`."""
        embedder = self._embedder(pooling, layer, normalize)
        return _results(texts, lambda rows: embedder.stream(_rows(rows, "text")))

    def predict(self, inputs: Texts | Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Any:
        """Returns the prediction of the fine-tuned task for each text, or each object with the task's columns."""
        predictor = _able(self._predictor)
        return _results(inputs, lambda rows: predictor.stream(_rows(rows, predictor.config.data.text)))

    def warm_up(self, lengths: Sequence[int]) -> None:
        """Compiles all that this model can do, with default options, for texts of up to these numbers of tokens.

        From then on these lengths are used, and the longest that the model takes for texts that exceed them: results
        no longer depend on what was run before, not even in the last bit.
        """
        for tool in (self._encoder, self._embedder("mean", -1, False), self._predictor, self._fill_mask):
            if not isinstance(tool, UserError):
                tool.warm_up(lengths)

    def _embedder(self, pooling: str, layer: int | str, normalize: bool) -> Embedder:
        options = pooling, str(layer), normalize
        with self._lock:
            if options not in self._embedders:
                self._embedders[options] = self._new_embedder(pooling=pooling, layer=layer, normalize=normalize)
            return self._embedders[options]


def load(
    path: str | Path, *, dtype: str | None, batch_size: int, checkpoint: str, task: str, overrides: Mapping[str, Any]
) -> LoadedModel:
    """Loads a model; `bert_jax.load` says how."""
    given = dict(overrides) | ({"model.dtype": dtype} if dtype else {})
    opened = open_model(path, overrides=given, which=checkpoint, users_task=task).without_parameters()

    def embedder(**options: Any) -> Embedder:
        return Embedder(opened, batch_size=batch_size, **options)

    return LoadedModel(
        opened.path,
        opened.step,
        FrozenConfigDict(opened.config),
        opened.tokenizer,
        TextEncoder(opened, batch_size),
        _tool(lambda: Predictor(opened, batch_size)),
        _tool(lambda: FillMask(opened)),
        embedder,
    )


def _tool(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except UserError as error:  # said when the tool is asked for: the others work
        return error


def _able(tool: Any) -> Any:
    if isinstance(tool, UserError):
        raise tool
    return tool


def _results(inputs: Any, run: Callable[[Sequence[Any]], Any]) -> Any:
    is_one = isinstance(inputs, str | Mapping)
    rows = [inputs] if is_one else list(inputs)
    results = [
        InputError(number, str(result)) if isinstance(result, UserError) else result
        for number, result in enumerate(run(rows))
    ]
    if not is_one:
        return results
    if isinstance(results[0], InputError):
        raise results[0]
    return results[0]


def _rows(inputs: Sequence[Any], column: str) -> Iterator[Row | UserError]:
    for number, one in enumerate(inputs):
        values = dict(one) if isinstance(one, Mapping) else {column: one}
        wrong = next(filter(None, (problem(number, x) for x in values.values() if isinstance(x, str))), None)
        yield wrong or Row(f"input {number}", values)


def _caught(fill: FillMask, text: Any, top_k: int) -> Any:
    try:
        return problem(0, text) or fill(text, top_k)
    except UserError as error:
        return error
