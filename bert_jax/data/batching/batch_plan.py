"""How the items of a run become batches: in rows that are shared or padded, in which order, of which shapes.

A plan depends on the items and the config alone, not on the seed: all seeds of a run share their programs. Training
depends on the training items alone: validation and test files may change between two starts of a run.
"""

import logging
from functools import cached_property

import numpy as np

from bert_jax.data.batching.batch_order import EpochOrder, Numbers, sorted_batches, steps_per_epoch
from bert_jax.data.batching.items import Item
from bert_jax.data.batching.shapes import Limits, Shape, packed_shapes, padded_shapes, used_shapes

# Batches that packing is tried on at least. A small set gives so many only in several epochs, and a shape that just
# fits the batches of one epoch would leave those of the next to the padded shape.
_TRIED = 64


class BatchPlan:
    """Orders and shapes of the batches of a run.

    `items` by split, "train" among them. `is_packed`: whether items of training share rows; None chooses the cheaper of
    the two, by `break_even_tokens_on_cpu` whatever the device: a run that is resumed on another device must not get
    other batches. An evaluation does as training does, unless an item of its split has several parts. `devices` divide
    the rows of a batch, and in training also `accumulation`.
    """

    def __init__(
        self,
        items: dict[str, list[Item]],
        batch_size: int,
        eval_batch_size: int,
        limits: Limits,
        *,
        is_packed: bool | None,
        devices: int,
        accumulation: int,
        break_even_tokens_on_cpu: float,
    ):
        self.items, self.batch_size, self.eval_batch_size = items, batch_size, eval_batch_size
        self._limits, self._devices, self._accumulation = limits, devices, accumulation
        self.steps_per_epoch = steps_per_epoch(len(items["train"]), batch_size)
        self.is_packed = self._is_cheaper_packed(break_even_tokens_on_cpu) if is_packed is None else is_packed

    def order(self, seed: int) -> EpochOrder:
        return EpochOrder(self.items["train"], self.batch_size, seed, mixed=self.is_packed)

    def eval_order(self, split: str) -> list[Numbers]:
        return sorted_batches(self.items[split], self.eval_batch_size, mixed=self._shares_rows(split))

    @cached_property
    def shapes(self) -> list[Shape]:
        """The shapes of training batches."""
        items, epoch, size = self.items["train"], self.order(0).epoch, self.batch_size
        if not self.is_packed:
            return padded_shapes(items, epoch(0), size, self._limits)
        epochs = max(1, _TRIED // self.steps_per_epoch)
        batches = [batch for number in range(epochs) for batch in epoch(number)]
        multiple = self._devices * self._accumulation
        return packed_shapes(items, batches, size, self._limits, epochs=epochs, multiple=multiple)

    @cached_property
    def eval_shapes(self) -> dict[str, list[Shape]]:
        """The shapes of the batches of each split, by split."""
        found = {}
        for split, items in self.items.items():
            args = items, self.eval_order(split), self.eval_batch_size, self._limits
            shares = self._shares_rows(split)
            found[split] = packed_shapes(*args, multiple=self._devices) if shares else padded_shapes(*args)
        return found

    def mean_shape(self) -> tuple[float, float, float]:
        """Returns the means over training batches of their rows, and of the tokens of a row and of its target, padding
        included."""
        used = used_shapes(self.items["train"], self.order(0).epoch(0), self.shapes)
        rows = float(np.mean([shape.rows * shape.parts for shape in used]))
        targets = float(np.mean([shape.rows * shape.targets for shape in used])) / rows
        return rows, float(np.mean([shape.cost() for shape in used])) / rows - targets, targets

    def log(self, tokens_per_step: float) -> None:
        """Logs the batches of training, which have so many positions on average."""
        train = self.items["train"]
        tokens = sum(len(part.ids) for item in train for part in item.parts)
        tokens += sum(item.target_length for item in train)
        logging.info(
            "%d steps per epoch of %d examples; batches of %s tokens%s, %.0f %% of them real",
            *(self.steps_per_epoch, len(train), " or ".join(map(str, self.shapes))),
            " in rows that are shared" if self.is_packed else "",
            100 * tokens / (self.steps_per_epoch * tokens_per_step),
        )

    def _shares_rows(self, split: str) -> bool:
        return self.is_packed and all(len(item.parts) == 1 for item in self.items[split])

    def _is_cheaper_packed(self, break_even_tokens: float) -> bool:
        items, limits = self.items["train"], self._limits._replace(break_even_tokens=break_even_tokens)

        def cost(*, mixed: bool) -> float:
            batches = EpochOrder(items, self.batch_size, 0, mixed=mixed).epoch(0)
            shapes = (packed_shapes if mixed else padded_shapes)(items, batches, self.batch_size, limits)
            used = used_shapes(items, batches, shapes)
            of_batches = float(np.mean([shape.cost(limits.crossover_length) for shape in used])) * len(batches)
            return of_batches + break_even_tokens * len({*used})

        return cost(mixed=True) < cost(mixed=False)
