"""How the items of a run become batches: in rows that are shared or padded, in which order, of which shapes.

It depends on the items and the config alone, not on the seed: all seeds of a run share their programs.
"""

from collections.abc import Sequence
from functools import cached_property, partial

from bert_jax.data.batching.batch_order import EpochOrder, Numbers, SortedOrder, steps_per_epoch
from bert_jax.data.batching.items import Item
from bert_jax.data.batching.shapes import (
    Shape,
    epoch_cost,
    mean_shape,
    packed_shapes,
    padded_shapes,
    shapes_worth_their_programs,
)

_TRIED = 64  # batches that packing is tried on at least, of several epochs if one has fewer


class BatchPlan:
    """`items` by split, "train" among them.

    `is_packed`: whether items share rows; None = as takes less. `devices` divide the rows of a batch, those of training
    together with `accumulation`. `reach` is that of `Shape.cost`. `worth` is the number of tokens of an epoch that take
    as long as one more program; `worth_on_cpu`, on a CPU, decides where `is_packed` is None, whatever the device: a run
    that goes on on another one must not get other batches.
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
        reach: float,
        worth: float,
        worth_on_cpu: float,
    ):
        self.items, self.batch_size, self.eval_batch_size = items, batch_size, eval_batch_size
        self._limits, self._reach, self._worth = (max_shapes, max_length), reach, worth
        self._devices, self._accumulation = devices, accumulation
        self.steps_per_epoch = steps_per_epoch(len(items["train"]), batch_size)
        self.is_packed = self._takes_less_packed(worth_on_cpu) if is_packed is None else is_packed

    def order(self, seed: int) -> EpochOrder:
        return EpochOrder(self.items["train"], self.batch_size, seed, dealt=self.is_packed)

    def eval_order(self, split: str) -> SortedOrder:
        return SortedOrder(self.items[split], self.eval_batch_size, dealt=self.is_packed)

    @cached_property
    def shapes(self) -> list[Shape]:
        if self.is_packed:
            epochs = max(1, _TRIED // self.steps_per_epoch)
            batches = [batch for epoch in range(epochs) for batch in self.order(0).epoch(epoch)]
            multiple = self._devices * self._accumulation
            return self._packed_shapes(self.items["train"], batches, self.batch_size, multiple, epochs)
        everything = [item for items in self.items.values() for item in items]
        batches = EpochOrder(everything, self.batch_size, 0, dealt=False).epoch(0)
        return padded_shapes(everything, batches, self.batch_size, *self._limits, worth=self._worth)

    @cached_property
    def eval_shapes(self) -> dict[str, list[Shape]]:
        """By split."""
        found = {}
        for split, items in self.items.items():
            order = self.eval_order(split)
            batches = [order(number) for number in range(order.batches)]
            if self.is_packed:
                found[split] = self._packed_shapes(items, batches, self.eval_batch_size, self._devices, epochs=1)
            else:
                shapes = [shape._replace(rows=self.eval_batch_size) for shape in self.shapes]
                found[split] = shapes_worth_their_programs(shapes, items, batches, worth=self._worth)
        return found

    def mean_shape(self) -> tuple[float, float]:
        """Rows of a training batch and tokens of a row, in the mean."""
        return mean_shape(self.items["train"], self.order(0).epoch(0), self.shapes)

    def _packed_shapes(
        self, items: Sequence[Item], batches: Sequence[Numbers], size: int, multiple: int, epochs: int
    ) -> list[Shape]:
        choose = partial(packed_shapes, reach=self._reach, worth=self._worth)
        return choose(items, batches, size, *self._limits, epochs=epochs, multiple=multiple)

    def _takes_less_packed(self, worth: float) -> bool:
        items, size, reach = self.items["train"], self.batch_size, self._reach
        dealt, alike = (EpochOrder(items, size, 0, dealt=dealt).epoch(0) for dealt in (True, False))
        packed = packed_shapes(items, dealt, size, *self._limits, reach=reach, worth=worth)
        padded = padded_shapes(items, alike, size, *self._limits, worth=worth)
        cost = partial(epoch_cost, items, reach=reach, worth=worth)
        return cost(dealt, packed) < cost(alike, padded)
