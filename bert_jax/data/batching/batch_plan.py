"""How the items of a run become batches: in rows that are shared or padded, in which order, of which shapes.

A plan depends on the items and the config alone, not on the seed: all seeds of a run share their programs. Training
depends on the training items alone: validation and test files may change between two starts of a run.
"""

from collections.abc import Sequence
from functools import cached_property, partial

from bert_jax.data.batching.batch_order import EpochOrder, Numbers, SortedOrder, steps_per_epoch
from bert_jax.data.batching.items import Item
from bert_jax.data.batching.shapes import Shape, epoch_cost, mean_shape, packed_shapes, padded_shapes

# Batches that packing is tried on at least. A small set gives so many only in several epochs, and a shape that just
# fits the batches of one epoch would leave those of the next to the padded shape.
_TRIED = 64


class BatchPlan:
    """Orders and shapes of the batches of a run.

    `items` by split, "train" among them. `is_packed`: whether items of training share rows; None chooses the cheaper of
    the two. An evaluation does as training does, unless an item of its split has several parts.
    `devices` divide the rows of a batch, and in training also `accumulation`. `crossover_length` is that of
    `Shape.cost`. `break_even_tokens` is the number of tokens of an epoch that take as long as to compile one more
    program; where `is_packed` is None, `break_even_tokens_on_cpu` decides, whatever the device: a run that is resumed
    on another device must not get other batches.
    """

    def __init__(
        self,
        items: dict[str, list[Item]],
        batch_size: int,
        eval_batch_size: int,
        *,
        max_shapes: int,
        max_length: int,
        is_packed: bool | None,
        devices: int,
        accumulation: int,
        crossover_length: float,
        break_even_tokens: float,
        break_even_tokens_on_cpu: float,
    ):
        self.items, self.batch_size, self.eval_batch_size = items, batch_size, eval_batch_size
        self._limits = max_shapes, max_length
        self._crossover_length, self._break_even_tokens = crossover_length, break_even_tokens
        self._devices, self._accumulation = devices, accumulation
        self.steps_per_epoch = steps_per_epoch(len(items["train"]), batch_size)
        self.is_packed = self._is_cheaper_packed(break_even_tokens_on_cpu) if is_packed is None else is_packed

    def order(self, seed: int) -> EpochOrder:
        return EpochOrder(self.items["train"], self.batch_size, seed, mixed=self.is_packed)

    def eval_order(self, split: str) -> SortedOrder:
        return SortedOrder(self.items[split], self.eval_batch_size, mixed=self._shares_rows(split))

    @cached_property
    def shapes(self) -> list[Shape]:
        """The shapes of training batches."""
        items = self.items["train"]
        if not self.is_packed:
            return self._padded_shapes(items, self.order(0).epoch(0), self.batch_size)
        epochs = max(1, _TRIED // self.steps_per_epoch)
        batches = [batch for epoch in range(epochs) for batch in self.order(0).epoch(epoch)]
        return self._packed_shapes(items, batches, self.batch_size, self._devices * self._accumulation, epochs)

    @cached_property
    def eval_shapes(self) -> dict[str, list[Shape]]:
        """The shapes of the batches of each split, by split."""
        found = {}
        for split, items in self.items.items():
            order = self.eval_order(split)
            batches = [order(number) for number in range(order.batches)]
            if self._shares_rows(split):
                found[split] = self._packed_shapes(items, batches, self.eval_batch_size, self._devices, epochs=1)
            else:
                found[split] = self._padded_shapes(items, batches, self.eval_batch_size)
        return found

    def mean_shape(self) -> tuple[float, float]:
        """Returns the means over training batches of their rows, and of the tokens of a row."""
        return mean_shape(self.items["train"], self.order(0).epoch(0), self.shapes)

    def _shares_rows(self, split: str) -> bool:
        return self.is_packed and all(len(item.parts) == 1 for item in self.items[split])

    def _padded_shapes(self, items: Sequence[Item], batches: Sequence[Numbers], size: int) -> list[Shape]:
        return padded_shapes(items, batches, size, *self._limits, break_even_tokens=self._break_even_tokens)

    def _packed_shapes(
        self, items: Sequence[Item], batches: Sequence[Numbers], size: int, multiple: int, epochs: int
    ) -> list[Shape]:
        return packed_shapes(
            items,
            batches,
            size,
            *self._limits,
            epochs=epochs,
            multiple=multiple,
            crossover_length=self._crossover_length,
            break_even_tokens=self._break_even_tokens,
        )

    def _is_cheaper_packed(self, break_even_tokens: float) -> bool:
        items, size = self.items["train"], self.batch_size
        crossover_length = self._crossover_length
        mixed, alike = (EpochOrder(items, size, 0, mixed=mixed).epoch(0) for mixed in (True, False))
        packed = packed_shapes(
            items,
            mixed,
            size,
            *self._limits,
            crossover_length=crossover_length,
            break_even_tokens=break_even_tokens,
        )
        padded = padded_shapes(items, alike, size, *self._limits, break_even_tokens=break_even_tokens)
        cost = partial(epoch_cost, items, crossover_length=crossover_length, break_even_tokens=break_even_tokens)
        return cost(mixed, packed) < cost(alike, padded)
