"""Encoded examples of any length → batches of few shapes, in an order that is a function of (seed, epoch).

A batch has one of at most `data.buckets` shapes, known before the first step. Of N rows of S parts of L tokens with
places for K items each, it has

    input_ids, token_type_ids, position_ids   int32[N, S, L]
    sequence_ids                              int32[N, S, L]   from 1, in the order of the row's items; 0 = padding
    part_weights                              float32[N, S]    0 = no part
    first_tokens                              int32[N, K]      where each item begins in its row
    item_ids                                  int32[N, K]      numbers of the items; -1 = a place left empty
    item_weights                              float32[N, K]    0 = a place left empty
    what the task adds to its items: per item [N, K, …], per token [N, S, L]

Either S is 1 and short items share rows (packed), or K is 1 and a row is padded to its batch's longest.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from bert_jax.data.batching.batch_order import EpochOrder, Order
from bert_jax.data.batching.items import Item
from bert_jax.data.batching.shapes import Shape, fit
from bert_jax.data.pretraining.pipeline import ENDLESS, Batch, Share, Steps, read_ahead


class TrainBatches(Steps):
    """Endless: every epoch takes each item once, in an order of its own; places that are left over stay empty."""

    def __init__(
        self,
        items: Sequence[Item],
        shapes: Sequence[Shape],
        order: EpochOrder,
        config: ConfigDict,
        *,
        fingerprint: str,
        start_step: int = 0,
        process_index: int = 0,
        process_count: int = 1,
    ):
        share = Share(config.train.batch_size, process_index, process_count, "train.batch_size")
        self._steps_per_epoch, self._fingerprint = order.batches_per_epoch, fingerprint
        batches = read_ahead(_Collate(items, shapes, share, order), config.data, start_step, ENDLESS)
        super().__init__(batches, start_step)

    def state(self) -> dict[str, Any]:
        epoch, position = divmod(self._step, self._steps_per_epoch)
        return {"dataset": self._fingerprint, "step": self._step, "epoch": epoch, "position": position}


def ordered_batches(
    items: Sequence[Item],
    shapes: Sequence[Shape],
    order: Order,
    batch_size: int,
    data: ConfigDict,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Every item once."""
    share = Share(batch_size, process_index, process_count, "eval.batch_size")
    iterator = read_ahead(_Collate(items, shapes, share, order), data, 0, order.batches)
    try:
        yield from iterator
    finally:
        iterator.close()


class _Collate:
    """Number of a batch → this process's rows of it."""

    def __init__(self, items: Sequence[Item], shapes: Sequence[Shape], share: Share, order: Any):
        self._items, self._shapes, self._share, self._order = items, shapes, share, order

    def __call__(self, batch: int) -> Batch:
        numbers = self._order(batch)
        shape, arranged = fit([self._items[i] for i in numbers], self._shapes)
        rows = [[int(numbers[place]) for place in row] for row in arranged]
        return collate(self._items, rows[self._share.of(shape.rows)], shape)


def collate(items: Sequence[Item], rows: Sequence[Sequence[int]], shape: Shape) -> Batch:
    """Rows of the items of these numbers; keys as at the top of this file."""
    count = len(rows)
    token_names = ("input_ids", "token_type_ids", "position_ids", "sequence_ids")
    batch: Batch = {name: np.zeros((count, shape.parts, shape.tokens), np.int32) for name in token_names}
    batch["part_weights"] = np.zeros((count, shape.parts), np.float32)
    batch["first_tokens"] = np.zeros((count, shape.items), np.int32)
    batch["item_ids"] = np.full((count, shape.items), -1, np.int32)
    batch["item_weights"] = np.zeros((count, shape.items), np.float32)
    first = items[0]
    batch |= {name: np.zeros((count, shape.items, *x.shape), x.dtype) for name, x in first.values.items()}
    batch |= {name: np.zeros((count, shape.parts, shape.tokens), x.dtype) for name, x in first.token_values.items()}
    for row, numbers in enumerate(rows):
        start = 0
        for place, number in enumerate(numbers):
            item = items[number]
            for i, part in enumerate(item.parts):
                here = row, i, slice(start, start + len(part.ids))
                batch["input_ids"][here] = part.ids
                batch["token_type_ids"][here] = part.type_ids
                batch["position_ids"][here] = np.arange(len(part.ids))
                batch["sequence_ids"][here] = place + 1
                batch["part_weights"][row, i] = 1
            for name, value in item.token_values.items():
                batch[name][row, 0, start : start + len(value)] = value
            for name, value in item.values.items():
                batch[name][row, place] = value
            batch["first_tokens"][row, place] = start
            batch["item_ids"][row, place], batch["item_weights"][row, place] = number, 1
            start += item.length
    return batch
