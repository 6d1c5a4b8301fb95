"""The one layout of batches, and encoded examples of any length → batches of it.

Pretraining and fine-tuning share this layout. A row holds one sequence or several that share it; sequences are items
(examples, windows of long texts, sentence pairs). Letters:

    B rows    L tokens of a row    S sequences that fit into a row    W rows of one item    G groups of rows: B = G · W

    input_ids, token_type_ids, position_ids   int32[B, L]
    sequence_ids                              int32[B, L]   0 = padding, k = the k-th sequence in the row
    first_tokens                              int32[G, S]   the position in its row at which each sequence begins

Attention stays inside a sequence, and `position_ids` begin at 0 in each. Fine-tuning adds

    part_weights                              float32[G, W]  0 = a row that the item does not need
    item_ids                                  int32[G, S]    numbers of the items; -1 = no item
    item_weights                              float32[G, S]  0 = no item
    what a task adds to its items: per item [G, S, …], per token [B, L, …]
    target_ids                                int32[B, T]    of items with a target, which have rows of their own
    target_weights                            float32[B, T]  0 = padding

An item may consist of several parts (the windows of a long text, the choices of a question). These are W consecutive
rows, W alike in the whole batch, so that a device or a micro-batch that has one part of an item has all. Either W or S
is 1: parts have rows of their own, and only items of one part share rows.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial

import numpy as np
from ml_collections import ConfigDict

from bert_jax.data.batching.batch_order import EpochOrder, Numbers
from bert_jax.data.batching.items import Item
from bert_jax.data.batching.reader import Batch, BatchReader, Share, TrainBatches, each_once
from bert_jax.data.batching.shapes import Shape, fit


def train_batches(
    items: Sequence[Item],
    shapes: Sequence[Shape],
    order: EpochOrder,
    config: ConfigDict,
    *,
    fingerprint: str,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> TrainBatches:
    """Returns batches without end: every epoch takes each item once, in an order of its own."""
    share = Share(config.train.batch_size, process_index, process_count, "train.batch_size")
    position = lambda step: divmod(step, order.batches_per_epoch)  # noqa: E731
    batch = partial(_batch, items, shapes, order, share)
    return BatchReader(batch, config.data, position, dataset=fingerprint, start_step=start_step)


def ordered_batches(
    items: Sequence[Item],
    shapes: Sequence[Shape],
    order: Sequence[Numbers],
    config: ConfigDict,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Yields the batches of an evaluation, which hold every item once."""
    share = Share(config.eval.batch_size, process_index, process_count, "eval.batch_size")
    return each_once(partial(_batch, items, shapes, order.__getitem__, share), config.data, len(order))


def _batch(
    items: Sequence[Item], shapes: Sequence[Shape], order: Callable[[int], Numbers], share: Share, number: int
) -> Batch:
    """Returns this process's rows of a batch."""
    numbers = order(number)
    shape, arranged = fit([items[i] for i in numbers], shapes)
    groups = [[int(numbers[place]) for place in group] for group in arranged]
    return collate(items, groups[share.of(shape.rows)], shape)


def collate(items: Sequence[Item], groups: Sequence[Sequence[int]], shape: Shape) -> Batch:
    """Returns a batch of one group of rows for each list of items' numbers; an empty list gives rows of padding."""
    per_token, per_item = (len(groups) * shape.parts, shape.tokens), (len(groups), shape.items)
    token_names = ("input_ids", "token_type_ids", "position_ids", "sequence_ids")
    batch: Batch = {name: np.zeros(per_token, np.int32) for name in token_names}
    batch["part_weights"] = np.zeros((len(groups), shape.parts), np.float32)
    batch["first_tokens"] = np.zeros(per_item, np.int32)
    batch["item_ids"] = np.full(per_item, -1, np.int32)
    batch["item_weights"] = np.zeros(per_item, np.float32)
    first = items[0]
    batch |= {name: np.zeros((*per_item, *x.shape), x.dtype) for name, x in first.values.items()}
    batch |= {name: np.zeros((*per_token, *x.shape[1:]), x.dtype) for name, x in first.token_values.items()}
    if first.target is not None:
        batch["target_ids"] = np.zeros((len(groups), shape.targets), np.int32)
        batch["target_weights"] = np.zeros((len(groups), shape.targets), np.float32)
    for group, numbers in enumerate(groups):
        row, start = group * shape.parts, 0
        for sequence, number in enumerate(numbers):
            item = items[number]
            for i, part in enumerate(item.parts):
                here = row + i, slice(start, start + len(part.ids))
                batch["input_ids"][here] = part.ids
                batch["token_type_ids"][here] = part.type_ids
                batch["position_ids"][here] = np.arange(len(part.ids))
                batch["sequence_ids"][here] = sequence + 1
                batch["part_weights"][group, i] = 1
            for name, value in item.token_values.items():
                batch[name][row, start : start + len(value)] = value
            for name, value in item.values.items():
                batch[name][group, sequence] = value
            if item.target is not None:
                batch["target_ids"][row, : len(item.target)] = item.target
                batch["target_weights"][row, : len(item.target)] = 1
            batch["first_tokens"][group, sequence] = start
            batch["item_ids"][group, sequence], batch["item_weights"][group, sequence] = number, 1
            start += item.length
    return batch


def by_item(
    rows: Sequence[dict[str, np.ndarray]], items: Sequence[Item], token_outputs: Collection[str] = ()
) -> dict[str, list[np.ndarray]]:
    """Returns for each output one array per item, in the items' order, from the rows of all batches, in which every
    item must occur exactly once."""
    found = {name: [np.empty(0)] * len(items) for name in rows[0].keys() - {"item_ids", "first_tokens"}}
    seen = np.zeros(len(items), np.int64)
    for batch in rows:
        for row, place in np.argwhere(batch["item_ids"] >= 0).tolist():
            number, start = (int(batch[name][row, place]) for name in ("item_ids", "first_tokens"))
            seen[number] += 1
            for name, values in found.items():
                own = slice(start, start + items[number].length)
                values[number] = batch[name][row, own] if name in token_outputs else batch[name][row, place]
    if np.any(seen != 1):
        raise AssertionError(f"{np.count_nonzero(seen != 1)} of {len(items)} items were not evaluated once")
    return found
