"""Vectors of texts, or of their tokens, from any checkpoint: pretrained, fine-tuned or converted."""

import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from bert_jax.config import Json, UserError
from bert_jax.data.batching.items import Item
from bert_jax.data.labelled.columns import text_in
from bert_jax.data.labelled.tables import InputRow, Row
from bert_jax.data.tokenizers.encoding import Encoding
from bert_jax.inference.batching import Batching
from bert_jax.inference.open import Opened, opened_of
from bert_jax.inference.output import identity, results, whole_file
from bert_jax.inference.predictor import all_good, each_good, in_place_of_good, windows
from bert_jax.models.bert import Model, TrunkInputs
from bert_jax.models.config import check_length
from bert_jax.models.heads import pool_tokens

POOLINGS = ("cls", "mean", "max")
_ROW_GROUP = 4096  # rows of a Parquet file that are held in memory


class TokenVectors(NamedTuple):
    """The tokens of one text without [CLS] and [SEP]. Offsets count characters of the text."""

    tokens: list[str]
    starts: list[int]
    ends: list[int]
    vectors: Float32[np.ndarray, "L D"]


class Embedder:
    """Vectors of texts or tokens. `checkpoint` is one that is opened, or what `open_model` takes with its `options`.

    `layer` is −1 for the last one, or another from −N to −1 or 1 to N; or "last4_sum", "last4_concat". `pooling` is the
    vector of [CLS], or the mean or largest of all tokens, [CLS] and [SEP] included (as sentence-transformers does).
    `max_length` in tokens, by default all that the model takes; `long_texts` is "head" or "error".
    """

    def __init__(
        self,
        checkpoint: str | Path | Opened,
        *,
        pooling: str = "mean",
        layer: int | str = -1,
        normalize: bool = False,
        max_length: int | None = None,
        long_texts: str = "head",
        batch_size: int = 32,
        **options: object,
    ):
        opened = opened_of(checkpoint, **options)
        self.tokenizer, self.run_config, config = opened.tokenizer, opened.config, opened.bert_config
        self.max_length = max_length or config.max_position_embeddings
        check_length(config, self.max_length)
        if pooling not in POOLINGS:
            raise UserError(f"pooling is '{pooling}'; it can be {', '.join(POOLINGS)}")
        if long_texts not in ("head", "error"):
            raise UserError(f"data.long_texts is '{long_texts}'; for vectors it can be head or error")
        self._layers = _layers(layer, config.num_hidden_layers)
        self._concatenates = layer == "last4_concat"
        self._pooling, self._normalize, self._long_texts = pooling, normalize, long_texts
        self._hidden_size = config.hidden_size
        prepared = opened.at_work
        self._batching = Batching(self.max_length, batch_size, any_shape=prepared.takes_any_shape)
        self._sentences, self._tokens = prepared.program(self._of_sentences), prepared.program(self._of_tokens)

    def warm_up(self, lengths: Sequence[int]) -> None:
        """Compiles the vectors of texts for these lengths, as `Batching.warm_up` does."""
        self._batching.warm_up(self._sentences, lengths)

    def __call__(self, texts: Sequence[str]) -> Float32[np.ndarray, "N D"]:
        """Raises UserError for the first text that is too long, if `long_texts` is "error"."""
        rows = (Row(f"input {number}", {"text": text}) for number, text in enumerate(texts, 1))
        found = all_good(self.stream(rows))
        return np.stack(found) if found else np.zeros((0, self.size), np.float32)

    @property
    def size(self) -> int:
        """The number of values in a vector."""
        return self._hidden_size * (len(self._layers) if self._concatenates else 1)

    def stream(
        self, rows: Iterable[Row | UserError], column: str = "text"
    ) -> Iterator[Float32[np.ndarray, " D"] | UserError]:
        """Yields for each row, in order, the vector of its text or the UserError that says what is wrong with it."""
        for window in windows(rows):
            yield from in_place_of_good(self._encoded(window, column), lambda texts: self._run(self._sentences, texts))

    def stream_tokens(
        self, rows: Iterable[Row | UserError], column: str = "text"
    ) -> Iterator[TokenVectors | UserError]:
        """Yields `TokenVectors`, otherwise as `stream`."""

        def vectors(texts: Sequence[Encoding]) -> Iterator[TokenVectors]:
            return map(self._token_vectors, texts, self._run(self._tokens, texts))

        for window in windows(rows):
            yield from in_place_of_good(self._encoded(window, column), vectors)

    def _encoded(self, rows: Sequence[Row | UserError], column: str) -> list[Encoding | UserError]:
        texts = each_good(rows, lambda row: text_in(row, column))
        found, cut = in_place_of_good(texts, self.tokenizer.encode), 0
        for i, (row, text) in enumerate(zip(rows, found, strict=True)):
            if isinstance(row, UserError) or isinstance(text, UserError) or len(text.ids) <= self.max_length:
                continue
            if self._long_texts == "error":
                found[i] = UserError(f"{row.origin}: {len(text.ids)} tokens, over {self.max_length}; shorten it")
            else:
                cut += 1
                found[i] = Encoding._make([*values[: self.max_length - 1], values[-1]] for values in text)
        if cut:
            logging.warning("%d of %d texts are cut to %d tokens", cut, len(rows), self.max_length)
        return found

    def _run(self, step: Any, texts: Sequence[Encoding]) -> list[Float32[np.ndarray, "*N D"]]:
        return self._batching.run(step, [Item((text.part,)) for text in texts])["vectors"]

    def _token_vectors(self, text: Encoding, vectors: Float32[np.ndarray, "L D"]) -> TokenVectors:
        inside = slice(1, len(text.ids) - 1)
        starts, ends = zip(*text.offsets[inside], strict=True) if len(text.ids) > 2 else ((), ())
        tokens = [self.tokenizer.token(i) for i in text.ids[inside]]
        return TokenVectors(tokens, list(starts), list(ends), vectors[inside])

    def _of_sentences(self, model: Model, batch: dict[str, Array]) -> dict[str, Float[Array, "B D"]]:
        hidden = self._hidden(model, batch)
        vectors = hidden[:, 0] if self._pooling == "cls" else pool_tokens(hidden, batch["sequence_ids"], self._pooling)
        return {"vectors": self._normalized(vectors)}

    def _of_tokens(self, model: Model, batch: dict[str, Array]) -> dict[str, Float[Array, "B L D"]]:
        return {"vectors": self._normalized(self._hidden(model, batch))}

    def _hidden(self, model: Model, batch: dict[str, Array]) -> Float[Array, "B L D"]:
        encoded = model.trunk.encode(TrunkInputs.from_batch(batch), all_layers=True)
        assert encoded.layers is not None
        outputs = [*encoded.layers[:-1], encoded.hidden]  # the last one as the heads see it, also of a pre-norm model
        chosen = [outputs[i].astype(jnp.float32) for i in self._layers]
        return jnp.concatenate(chosen, axis=-1) if self._concatenates else sum(chosen[1:], chosen[0])

    def _normalized(self, vectors: Float[Array, "*N D"]) -> Float[Array, "*N D"]:
        if not self._normalize:
            return vectors
        return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def write_npy(rows: Iterable[InputRow], embedder: Embedder, column: str, output: Path, *, skip_bad: bool) -> None:
    """Writes float32[rows, size]; a bad row that is skipped is a row of nan, so that the others stay in their rows."""
    nothing = np.full(embedder.size, np.nan, np.float32)
    count = 0
    with whole_file(output) as file:
        _write_header(file, 0, embedder.size)
        for _, vector in results(rows, lambda rows: embedder.stream(rows, column), skip_bad=skip_bad):
            file.write((nothing if isinstance(vector, UserError) else vector).astype("<f4").tobytes())
            count += 1
        file.seek(0)
        _write_header(file, count, embedder.size)  # the number of rows is known only now


def write_parquet(
    rows: Iterable[InputRow], embedder: Embedder, column: str, output: Path, *, skip_bad: bool, tokens: bool
) -> None:
    """Writes columns `line`, `id` (text, or null), `vector`, `error` (null if there is none); with `tokens`, columns
    `tokens`, `starts`, `ends` and `vectors` in place of `vector`."""
    import pyarrow as pa
    from pyarrow import parquet

    vector = pa.list_(pa.float32())
    numbers = pa.list_(pa.int32())
    of_tokens = {"tokens": pa.list_(pa.string()), "starts": numbers, "ends": numbers, "vectors": pa.list_(vector)}
    names = of_tokens if tokens else {"vector": vector}
    schema = pa.schema({"line": pa.int64(), "id": pa.string()} | names | {"error": pa.string()})
    stream = embedder.stream_tokens if tokens else embedder.stream
    found = results(rows, lambda rows: stream(rows, column), skip_bad=skip_bad)
    with whole_file(output) as file, parquet.ParquetWriter(file, schema) as writer:
        while group := [_record(row, result, tokens) for row, result in itertools.islice(found, _ROW_GROUP)]:
            writer.write_table(pa.Table.from_pylist(group, schema))


def _record(row: InputRow, result: Any, tokens: bool) -> Json:
    name = identity(row).get("id")
    # Parquet holds UTF-8 only, and an id from JSON may hold half of a surrogate pair.
    given = None if name is None else str(name).encode(errors="replace").decode()
    record: Json = {"line": row.line, "id": given}
    if isinstance(result, UserError):
        return record | {"error": str(result)}
    return record | (result._asdict() | {"vectors": list(result.vectors)} if tokens else {"vector": result})


def _write_header(file: IO[bytes], count: int, size: int) -> None:
    """Writes a header that is equally long whatever the count: NumPy leaves room for the first axis to grow."""
    header = {"descr": "<f4", "fortran_order": False, "shape": (count, size)}
    np.lib.format.write_array_header_1_0(file, header)


def _layers(layer: int | str, num_layers: int) -> list[int]:
    """Returns the indices of the layers. Raises UserError for a layer that the model does not have."""
    if layer in ("last4_sum", "last4_concat"):
        if num_layers < 4:
            raise UserError(f"layer is '{layer}'; this model has {num_layers} layers")
        return list(range(num_layers - 4, num_layers))
    try:
        number = int(layer)
    except ValueError:
        number = 0
    if not 1 <= abs(number) <= num_layers:
        raise UserError(
            f"layer is '{layer}'; it can be 1 to {num_layers}, -1 (the last) to -{num_layers}, last4_sum, last4_concat"
        )
    return [number - 1 if number > 0 else num_layers + number]
