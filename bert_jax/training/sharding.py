"""What all processes of a run do together, and what the first does alone."""

import contextlib
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from bert_jax.config import UserError


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Guards what every process does: if it fails on one, it fails on all, which would wait for ever for the one that
    has ended. Raises UserError where only another process failed."""
    succeeded = False
    try:
        yield
        succeeded = True
    finally:
        if jax.process_count() > 1:
            others = multihost_utils.process_allgather(np.int32(succeeded))
            if succeeded and not others.all():
                raise UserError(f"process {int(others.argmin())} failed; its output says why")


def on_first_process(action: Callable[[], object]) -> None:
    """Runs `action` on process 0, while the others wait. If it fails, every process does."""
    with together():
        if jax.process_index() == 0:
            action()
