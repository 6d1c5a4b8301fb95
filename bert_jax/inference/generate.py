"""Texts that a fine-tuned model writes for other texts: translations, summaries, replies."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from bert_jax.config import Json, UserError, check_option
from bert_jax.data.batching.items import Item, Part
from bert_jax.data.labelled.tables import Row
from bert_jax.inference.batching import Batching
from bert_jax.inference.open import Opened, opened_of
from bert_jax.inference.predictor import encoded, in_place_of_good, windows
from bert_jax.models.bert import TrunkInputs
from bert_jax.models.decoding.write import write


class Generator:
    """Writes a text for each source. `checkpoint` is one that is opened, or what `open_model` takes with its `options`.

    How it writes is what the options `generate.*` of the config say, but for those that are `given` by their names
    without the group. `batch_size` is the most rows of a batch, in which each target that is written side by side has
    one. Threads may share a Generator. Raises UserError for a checkpoint that cannot write, and for options that do not
    go together.
    """

    def __init__(
        self,
        checkpoint: str | Path | Opened,
        batch_size: int = 32,
        given: Mapping[str, object] | Iterable[tuple[str, Any]] = (),
        **options: object,
    ):
        opened = opened_of(checkpoint, **options)
        opened.check_single()
        self.config, self.task, self.tokenizer = opened.config, opened.task, opened.tokenizer
        if not self.task.makes_texts:
            raise UserError(
                f"{opened.path} was trained for task={opened.config.task} and cannot write; train one for task=seq2seq"
            )
        if opened.config.predict.backend != "jax":
            raise UserError(f"predict.backend={opened.config.predict.backend} cannot write; leave it out")
        opened.fit(self.task.init)  # raises if a parameter of the task is missing
        self.decoding = decoding = self.task.decoding(**dict(given))
        rows = max(decoding.beams, decoding.n_best)
        self._written = opened.at_work.program(self._write)
        self._batching = Batching(self.config.data.sequence_length, max(1, batch_size // rows))

    def stream(self, rows: Iterable[Row | UserError], seed: int | None = None) -> Iterator[Json | UserError]:
        """Yields for each row, in order, {"text", "score", "log_probability"} of what is written for it, or the
        UserError that says what is wrong with it. With generate.n_best over 1, `n_best` has the same of so many texts,
        the best first, or in the order in which they were drawn; the first of them is the text itself.

        Reads at most predictor.WINDOW rows ahead. What is drawn for a row depends on the seed (None: generate.seed), on
        the row and on its number. All seeds share a program.
        """
        drawn_by: int = self.config.generate.seed if seed is None else seed
        check_option("generate.seed", drawn_by)
        first = 0
        for window in windows(rows):
            yield from self._generate(window, first, drawn_by)
            first += len(window)

    def warm_up(self, lengths: Sequence[int]) -> None:
        """Compiles for sources of up to these numbers of tokens, which are declared as in `Batching.warm_up`."""
        nothing = np.zeros(1, np.int32)
        self._batching.warm_up(self._written, lengths, _numbered(Item((Part(nothing, nothing),)), 0, 0))

    def _generate(self, rows: Sequence[Row | UserError], first: int, seed: int) -> list[Json | UserError]:
        found, items = encoded(self.task, rows)
        numbers = (number for number, row in enumerate(found, first) if not isinstance(row, UserError))
        items = [_numbered(item, number, seed) for item, number in zip(items, numbers, strict=True)]
        outputs = self._batching.run(self._written, items)
        texts = [self._texts({name: x[i] for name, x in outputs.items()}) for i in range(len(items))]
        return in_place_of_good(found, lambda _: texts)

    def _write(self, model: object, batch: dict[str, Array]) -> dict[str, Array]:
        keys = None
        if self.decoding.temperature:
            draw = jax.vmap(lambda seed, number: jax.random.fold_in(jax.random.key(seed), number))
            keys = draw(batch["seed"][:, 0], batch["number"][:, 0])
        return write(self.task.writer(model), TrunkInputs.from_batch(batch), self.decoding, keys)._asdict()

    def _texts(self, written: dict[str, np.ndarray]) -> Json:
        """Returns the result of a row from its K targets."""
        texts = [
            {
                "text": self.tokenizer.decode(written["tokens"][i, :length].tolist()),
                "score": float(written["scores"][i]),
                "log_probability": float(written["log_probabilities"][i]),
            }
            for i, length in enumerate(written["lengths"])
            if length
        ]
        return texts[0] | ({"n_best": texts} if self.decoding.n_best > 1 else {})


def _numbered(item: Item, number: int, seed: int) -> Item:
    values = {"number": number & 0xFFFFFFFF, "seed": seed}
    return replace(item, values={name: np.asarray(value, np.uint32) for name, value in values.items()})
