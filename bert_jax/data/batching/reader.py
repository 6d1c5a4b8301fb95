"""Numbers of batches → batches, read ahead by Grain: the same arrays whatever the number of threads or workers.

Whoever makes the batches gives a function of the batch's number, counted from 0 through all epochs. So resuming is to
begin at another number, and every process makes its own rows of each batch.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any, Protocol, Self

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from bert_jax.config import Json, UserError

Batch = dict[str, np.ndarray]  # layout: see `batches.py`

_ENDLESS = 1 << 62  # steps


class TrainBatches(Protocol):
    """An endless iterator over a process's share of the training batches, which knows its position."""

    def __next__(self) -> Batch: ...

    def state(self) -> Json:
        """Returns JSON that says where the next batch starts and which data it comes from."""
        ...

    def close(self) -> None:
        """Stops reading ahead."""
        ...


class BatchReader:
    """The training batches from `start_step` on that `batches` makes of their numbers.

    `epoch_and_position` says for a step where in the data its batch begins; `dataset` names the data, so that a run
    that is resumed with other data is noticed.
    """

    def __init__(
        self,
        batches: Callable[[int], Batch],
        data: ConfigDict,
        epoch_and_position: Callable[[int], tuple[int, int]],
        *,
        dataset: str,
        start_step: int = 0,
    ):
        self._iterator, self._step = _read_ahead(batches, data, start_step, _ENDLESS), start_step
        self._epoch_and_position, self._dataset = epoch_and_position, dataset

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        batch = next(self._iterator)
        self._step += 1
        return batch

    def state(self) -> Json:
        """Returns where the next batch begins. `step` is all that resuming needs."""
        epoch, position = self._epoch_and_position(self._step)
        return {"dataset": self._dataset, "step": self._step, "epoch": epoch, "position": position}

    def close(self) -> None:
        """Stops reading ahead."""
        self._iterator.close()


def each_once(batches: Callable[[int], Batch], data: ConfigDict, count: int) -> Iterator[Batch]:
    """Yields batches 0 to `count`, end not included."""
    iterator = _read_ahead(batches, data, 0, count)
    try:
        yield from iterator
    finally:
        iterator.close()


class Share:
    """The rows of a global batch that one process makes. `origin` is the position of the first row of batch 0, which
    may be one that is never made. Raises UserError if the processes do not divide the batch."""

    def __init__(self, batch_size: int, process_index: int, process_count: int, key: str, origin: int = 0):
        if rest := batch_size % process_count:
            fitting = batch_size + process_count - rest
            raise UserError(f"{key} = {batch_size} is not a multiple of the {process_count} processes: use {fitting}")
        self._batch_size, self.size = batch_size, batch_size // process_count
        self._process_index, self._process_count, self._origin = process_index, process_count, origin

    def first(self, batch: int) -> int:
        """Returns the position of the first row of a batch, of all processes."""
        return self._origin + batch * self._batch_size

    def positions(self, batch: int) -> range:
        """Returns the positions of this process's rows in the endless sequence of rows."""
        start = self.first(batch) + self._process_index * self.size
        return range(start, start + self.size)

    def of(self, rows: int) -> slice:
        """Returns this process's share of a batch of another number of rows, which the processes divide."""
        size = rows // self._process_count
        return slice(self._process_index * size, (self._process_index + 1) * size)


def _read_ahead(batches: Callable[[int], Batch], data: ConfigDict, start: int, stop: int) -> Any:
    """Returns a Grain iterator over batches [start, stop), read ahead by threads or, if data.read_workers, by worker
    processes."""
    import grain

    dataset = grain.MapDataset.range(start, stop).map(batches)
    threads = min(data.prefetch, os.cpu_count() or 1)
    reading = dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=data.prefetch))
    if data.read_workers > 0:
        if not flags.FLAGS.is_parsed():  # in a notebook: Grain's workers read absl flags
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(
            num_workers=data.read_workers, per_worker_buffer_size=max(1, data.prefetch // data.read_workers)
        )
        reading = reading.mp_prefetch(options)
    return iter(reading)
