"""The routes: which tool of a model answers, which parameters there are, and how a result looks in JSON.

No parameter asks for another program: what is compiled is decided when the server starts. Vectors are normalized and
lists of tokens are cut after the model has run, so that requests with other parameters share a batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bert_jax.config import Json, UserError, result_or_error
from bert_jax.inference.embeddings import Embedder
from bert_jax.inference.fill_mask import FillMask
from bert_jax.inference.generate import Generator
from bert_jax.inference.loaded import LoadedModel
from bert_jax.inference.predictor import Predictor
from bert_jax.inference.score import Scorer
from bert_jax.lab.inspect import page
from bert_jax.lab.inspect.heads import attention
from bert_jax.lab.inspect.reading import insides
from bert_jax.lab.report import html
from bert_jax.option import Option
from bert_jax.tasks.likelihood import METHODS

MOST_TOKENS = 50  # of a list for one [MASK]
_FRAME = "<style>body { padding: .2rem 1rem } h1 { display: none } h2 { border: 0; margin: 0 }</style>"
_DRAWN = (16, 32, 48, 64)  # lengths of texts whose attention is drawn

Inputs = list[Any]  # texts, or objects with columns, as JSON has them
Results = list[object]
Schema = Json

_TEXT: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "number"}


def _list(of: Schema) -> Schema:
    return {"type": "array", "items": of}


def _record(more: Schema | None = None, **properties: Schema) -> Schema:
    """Returns the schema of an object that has these, and may have `more`."""
    return {"type": "object", "required": list(properties), "properties": properties | (more or {})}


_WRITTEN = {"text": _TEXT, "score": _NUMBER, "log_probability": _NUMBER}
_SCORED_TOKEN = _record(token=_TEXT, log_probability=_NUMBER)
_PLACE = {"type": ["integer", "null"]}


@dataclass(frozen=True)
class Setup:
    """What is decided when the server starts, as each choice is a program of its own."""

    pooling: str = "mean"  # of the vectors of texts
    layer: str = "-1"
    attention: bool = True


@dataclass(frozen=True)
class Route:
    """`POST /name`. `run` answers inputs; `shown` makes of a result what the parameters ask for."""

    name: str
    meaning: str
    answer: str  # one sentence on each element of the list that is returned
    example: Json
    schema: Json  # of such an element
    run: Callable[[LoadedModel, Setup, Inputs], Results]
    shown: Callable[[Any, Json], Any] = lambda result, parameters: result
    parameters: tuple[Option, ...] = ()
    tool: Callable[[LoadedModel, Setup], Any] | None = None  # raises UserError if the model lacks what it needs
    takes_objects: bool = False
    cost: Callable[[LoadedModel, int], int] = lambda model, tokens: tokens  # of an input, in tokens that are computed


def _predict(model: LoadedModel, setup: Setup, inputs: Inputs) -> Results:
    return list(map(_with_its_id, inputs, model.predict(inputs)))


def _with_its_id(one: object, result: object) -> Any:
    """Returns the result with the "id" that the input has, as files of predictions do. An answer to a question without
    one is named after its place in the batch, which is nobody's business."""
    if not isinstance(result, dict):
        return result
    name = one.get("id") if isinstance(one, dict) else None
    own = {"id": name} if isinstance(name, str | int) else {}
    return own | {key: value for key, value in result.items() if key != "id"}


def _embed(model: LoadedModel, setup: Setup, inputs: Inputs) -> Results:
    return model.embed(inputs, pooling=setup.pooling, layer=setup.layer)


def _fill_mask(model: LoadedModel, setup: Setup, inputs: Inputs) -> Results:
    return model.fill_mask(inputs, MOST_TOKENS)


def _generate(model: LoadedModel, setup: Setup, inputs: Inputs) -> Results:
    return list(map(_with_its_id, inputs, model.generate(inputs)))


def _score(model: LoadedModel, setup: Setup, inputs: Inputs) -> Results:
    return model.score(inputs, by_token=True)


def _tokenize(model: LoadedModel, setup: Setup, inputs: Inputs) -> Results:
    tokenizer, found = model.tokenizer, []
    for row in tokenizer.encode(inputs):
        special = map(bool, row.special_tokens_mask)
        found.append(
            [
                {"id": i, "text": tokenizer.token(i), "special": s}
                | dict(zip(("start", "stop"), (None, None) if s else span, strict=True))
                for i, span, s in zip(row.ids, row.offsets, special, strict=True)
            ]
        )
    return found


class _AttentionPages:
    """Draws the attention of texts, for one row of any of `_DRAWN` lengths."""

    def __init__(self, model: LoadedModel, setup: Setup):
        if not setup.attention or model.config.predict.backend != "jax":
            raise UserError("attention is not served")
        insides(model)  # raises if there is no BERT inside
        self._model = model

    def warm_up(self, lengths: Sequence[int]) -> None:
        for length in _DRAWN:
            if length <= self._model.max_length:
                self.drawn("[MASK]" * length, length)

    def drawn(self, text: str, most: int = _DRAWN[-1]) -> str:
        found = attention(self._model, text, max_length=min(most, self._model.max_length))
        return html.page("Attention", [page.STYLE, _FRAME, page.attention_section(found)])


def _attention(model: LoadedModel, setup: Setup, inputs: Inputs) -> Results:
    return list(result_or_error(_AttentionPages(model, setup).drawn, inputs))


def unit(vector: np.ndarray) -> np.ndarray:
    """Returns a vector with length 1; zeros as they are."""
    length = np.sqrt(np.sum(np.square(vector, dtype=np.float64)))
    return (vector / max(length, 1e-12)).astype(np.float32)


def _vector(result: np.ndarray, parameters: dict[str, Any]) -> list[float]:
    return (unit(result) if parameters["normalize"] else result).tolist()


def _masks(result: list[list[tuple[str, float]]], parameters: dict[str, Any]) -> dict[str, Any]:
    most = parameters["top_k"]
    return {"masks": [[{"token": t, "probability": p} for t, p in one[:most]] for one in result]}


def _scores(result: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
    return result if parameters["by_token"] else {name: x for name, x in result.items() if name != "table"}


def _tokens(result: list[dict[str, Any]], parameters: dict[str, Any]) -> list[dict[str, Any]]:
    return result if parameters["add_special_tokens"] else [token for token in result if not token["special"]]


def _cost_of_vector(model: LoadedModel, tokens: int) -> int:
    return min(tokens, model.max_length)


def _cost_of_text(model: LoadedModel, tokens: int) -> int:
    how = model.tool(Generator, given=()).decoding
    return tokens + how.max_length * max(how.beams, how.n_best)


ROUTES = (
    Route(
        "predict",
        "Predictions of a fine-tuned model: classes, numbers, entities, answers, choices.",
        "the prediction, with the fields that docs/predicting.md lists for each task",
        {"inputs": ["a fine film", "a dull one"]},
        {"type": "object"},
        _predict,
        tool=lambda model, _: model.tool(Predictor),
        takes_objects=True,
    ),
    Route(
        "embed",
        "Vectors of texts, in the form of text-embeddings-inference.",
        "the vector, a list of numbers",
        {"inputs": ["a fine film", "a dull one"], "parameters": {"normalize": True}},
        _list(_NUMBER),
        _embed,
        _vector,
        (
            Option("normalize", bool, True, "vectors have length 1"),
            Option("truncate", bool, True, "a text over what the model takes is cut; false makes it an error"),
        ),
        tool=lambda model, how: model.tool(Embedder, pooling=how.pooling, layer=how.layer, normalize=False),
        cost=_cost_of_vector,
    ),
    Route(
        "fill_mask",
        "The likeliest tokens for every [MASK] of a text, each mask by itself.",
        'an object: "masks" has a list of {"token", "probability"} for each [MASK]',
        {"inputs": ["The [MASK] barks."], "parameters": {"top_k": 5}},
        _record(masks=_list(_list(_record(token=_TEXT, probability=_NUMBER)))),
        _fill_mask,
        _masks,
        (Option("top_k", int, 5, "tokens for each mask", range=f"[1, {MOST_TOKENS}]"),),
        tool=lambda model, _: model.tool(FillMask),
    ),
    Route(
        "generate",
        "What a model of task=seq2seq writes; how is decided by the options generate.* when the server starts.",
        'an object: "text", "score", "log_probability"; with generate.n_best over 1 also "n_best"',
        {"inputs": ["A man is playing a guitar."]},
        _record({"n_best": _list(_record(**_WRITTEN))}, **_WRITTEN),
        _generate,
        tool=lambda model, _: model.tool(Generator, given=()),
        takes_objects=True,
        cost=_cost_of_text,
    ),
    Route(
        "score",
        "Log-likelihoods of texts in nats. A text costs its tokens squared, as each is hidden in turn.",
        'an object: "score", "tokens", "perplexity"; with by_token a "table" of the tokens',
        {"inputs": ["He runs every day.", "He run every day."]},
        _record({"table": _list(_SCORED_TOKEN)}, score=_NUMBER, tokens={"type": "integer"}, perplexity=_NUMBER),
        _score,
        _scores,
        (Option("by_token", bool, False, "adds the log-probability of each token"),),
        tool=lambda model, _: model.tool(Scorer, method=METHODS[0]),
        cost=lambda model, tokens: tokens * tokens,
    ),
    Route(
        "attention",
        f"The attention of every head, of texts cut to {_DRAWN[-1]} tokens, as a page: it is for the page at /.",
        "an HTML document, which loads nothing",
        {"inputs": ["The bank of the river"]},
        _TEXT,
        _attention,
        tool=_AttentionPages,
        cost=lambda model, tokens: min(tokens, _DRAWN[-1]) ** 2,
    ),
    Route(
        "tokenize",
        "The tokens of texts, in the form of text-embeddings-inference.",
        'a list of {"id", "text", "special", "start", "stop"}; start and stop count characters',
        {"inputs": ["a fine film"]},
        _list(_record(id={"type": "integer"}, text=_TEXT, special={"type": "boolean"}, start=_PLACE, stop=_PLACE)),
        _tokenize,
        _tokens,
        (Option("add_special_tokens", bool, True, "with [CLS] and [SEP]"),),
    ),
)


def routes_of(model: LoadedModel, setup: Setup) -> dict[str, Route]:
    """Returns the routes that a model has, by name."""
    return {route.name: route for route in ROUTES if _has(model, setup, route)}


def longest_of(model: LoadedModel, route: Route) -> int:
    """Returns the most tokens of a row that a route's tool runs."""
    return model.config.data.sequence_length if route.takes_objects else model.max_length


def _has(model: LoadedModel, setup: Setup, route: Route) -> bool:
    try:
        if route.tool is not None:
            route.tool(model, setup)
    except UserError:
        return False
    return True
