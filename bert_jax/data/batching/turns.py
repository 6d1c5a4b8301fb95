"""Which of several tasks a training batch is of: a pure function of (seed, number of the batch), and of their sizes."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Self

import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from bert_jax.config import Json, UserError
from bert_jax.data.batching.reader import TrainBatches

BLOCK = 64  # batches that are drawn together


class Turns:
    """A function from the number of a batch, counted from 0, to the number of the task that it is of.

    The share of a task is its size to the power of an exponent, divided by the sum over all tasks. The exponent goes
    from `first` to `last` along a line over `steps` batches and stays there: 1 is proportional sampling, 1 / T sampling
    by temperature T, 1 to 0.2 the annealed sampling of Stickland and Murray (2019). A task of size 0 has no turn.

    The draw is stratified: of every 64 batches each has a different 64th of the unit interval, in random order. So a
    batch is of a task with exactly the task's probability, 64 batches in a row have its expected number to within 2,
    and no task has to wait longer than two blocks if its share is over 1 / 32.
    """

    def __init__(
        self, sizes: Sequence[float], seed: int, *, first: float = 1.0, last: float | None = None, steps: int = 1
    ):
        self._sizes, self._seed = np.asarray(sizes, np.float64), seed
        self._first, self._last, self._steps = first, first if last is None else last, steps
        self._block = lru_cache(maxsize=4)(self._drawn)

    @classmethod
    def from_options(
        cls,
        options: ConfigDict,
        sizes: Mapping[str, float],
        shares: Mapping[str, float | None],
        seed: int,
        steps: int,
    ) -> Self:
        """Returns the turns that the options `multitask.*` and `tasks.*.share` ask for, in the order of `sizes`, which
        are batches per epoch. Raises UserError for shares where the sampling has no use for them, or lacks them."""
        check_shares(options.sampling, shares)
        if options.sampling == "explicit":
            return cls([float(shares[name] or 0) for name in sizes], seed)
        first = 1 / options.temperature if options.sampling == "temperature" else 1.0
        last = options.last_exponent if options.sampling == "annealed" else first
        return cls(list(sizes.values()), seed, first=first, last=last, steps=steps)

    def __call__(self, number: int) -> int:
        block, place = divmod(number, BLOCK)
        return int(self._block(block)[place])

    def counts(self, number: int) -> list[int]:
        """Returns how many of the batches before `number` are of each task."""
        counts, (blocks, rest) = np.zeros(len(self._sizes), np.int64), divmod(number, BLOCK)
        for block in range(blocks + (rest > 0)):
            drawn = self._drawn(block)
            counts += np.bincount(drawn if block < blocks else drawn[:rest], minlength=len(counts))
        return counts.tolist()

    def shares(self, numbers: Int[np.ndarray, " N"]) -> Float[np.ndarray, "N T"]:
        """Returns the probability of each task for batches of these numbers."""
        progress = np.minimum(numbers / max(self._steps - 1, 1), 1.0)
        exponents = self._first + (self._last - self._first) * progress
        weights = np.where(self._sizes > 0, self._sizes, 1.0) ** exponents[:, None] * (self._sizes > 0)
        return weights / weights.sum(axis=1, keepdims=True)

    def _drawn(self, block: int) -> Int[np.ndarray, " N"]:
        random = np.random.default_rng((self._seed, block))
        points = (random.permutation(BLOCK) + random.random(BLOCK)) / BLOCK
        ends = np.cumsum(self.shares(np.arange(block * BLOCK, (block + 1) * BLOCK)), axis=1)
        # The last end may be a rounding below 1, and a point above it.
        return np.minimum((points[:, None] * ends[:, -1:] >= ends).sum(axis=1), np.flatnonzero(self._sizes)[-1])


class BatchesInTurn:
    """The batches of several tasks, each in its turn; `batches` of a task begin at the number of its turns before
    `start_step`. `mark` makes a batch say which task it is of."""

    def __init__(
        self,
        batches: Mapping[str, TrainBatches],
        turns: Turns,
        start_step: int,
        mark: Callable[[str, dict[str, np.ndarray]], dict[str, np.ndarray]],
    ):
        self._names, self._batches, self._turns = list(batches), batches, turns
        self._step, self._mark = start_step, mark

    def __next__(self) -> dict[str, np.ndarray]:
        name = self._names[self._turns(self._step)]
        batch = next(self._batches[name])
        self._step += 1
        return self._mark(name, batch)

    def state(self) -> Json:
        """Returns where the next batch of each task begins, and the number of batches before."""
        return {"step": self._step, "tasks": {name: batches.state() for name, batches in self._batches.items()}}

    def close(self) -> None:
        """Stops reading ahead."""
        for batches in self._batches.values():
            batches.close()


def check_shares(sampling: str, shares: Mapping[str, float | None]) -> None:
    """Raises UserError unless the shares tasks.*.share are given just where the sampling needs them."""
    for name, share in shares.items():
        if sampling == "explicit" and share is None:
            raise UserError(f"tasks.{name}.share is missing: multitask.sampling=explicit needs that of every task")
        if sampling != "explicit" and share is not None:
            raise UserError(
                f"tasks.{name}.share is {share:g}, but multitask.sampling={sampling} follows the sizes: leave it out, "
                "or set multitask.sampling=explicit"
            )
    if sampling == "explicit" and not any(shares.values()):
        raise UserError(f"tasks.*.share is 0 for every task ({', '.join(shares)}): set one of them above 0")
