"""A model that is served: the checkpoint of the moment, its routes, its queue, and the change to a newer checkpoint."""

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bert_jax.config import UserError
from bert_jax.heap import release_free_memory
from bert_jax.inference.loaded import LoadedModel
from bert_jax.serve.bodies import Call, Refused, texts_of
from bert_jax.serve.routes import Route, Setup, longest_of, routes_of
from bert_jax.serve.worker import Worker
from bert_jax.training.checkpoint import choose_checkpoint

_SPECIAL = 2  # [CLS] and [SEP]


@dataclass(frozen=True, eq=False)
class Served:
    """A checkpoint with the routes that it has. Requests keep the one with which they began."""

    model: LoadedModel
    setup: Setup

    @cached_property
    def routes(self) -> dict[str, Route]:
        return routes_of(self.model, self.setup)

    def run(self, route: str, inputs: list[Any]) -> list[Any]:
        return self.routes[route].run(self.model, self.setup, inputs)

    def warm_up(self, lengths: Sequence[int]) -> None:
        """Compiles all that the routes run, for texts of up to these numbers of tokens and for the longest."""
        for route in self.routes.values():
            if route.tool is not None:
                start, longest = time.perf_counter(), longest_of(self.model, route)
                route.tool(self.model, self.setup).warm_up([*(x for x in lengths if x < longest), longest])
                logging.info("/%s is compiled, %.1f s", route.name, time.perf_counter() - start)

    def tokens(self, call: Call) -> list[int]:
        """Returns the number of tokens of each input, special ones included; 0 for those that cannot be read."""
        texts = [[] if i in call.problems else texts_of(one) for i, one in enumerate(call.inputs)]
        _, counts = self.model.tokenizer.encode_flat([text for own in texts for text in own])
        found, start = [], 0
        for own in texts:
            found.append(int(counts[start : start + len(own)].sum()) + _SPECIAL if own else 0)
            start += len(own)
        return found

    def costs(self, route: Route, tokens: Sequence[int]) -> list[int]:
        return [route.cost(self.model, count) if count else 0 for count in tokens]


class Slot:
    """A name under which a model is served. `load` opens the checkpoint that `path` means at the moment."""

    def __init__(
        self, name: str, path: str, which: str, load: Callable[[], LoadedModel], setup: Setup, lengths: list[int]
    ):
        self.name, self.path = name, path
        self._which, self._load, self._setup, self._lengths = which, load, setup, lengths
        self._seen = self._signature()
        self.served = Served(load(), setup)
        self.worker: Worker | None = None

    def start(self, observe: Callable[[str, int, int, float], None], **options: Any) -> None:
        """Compiles, and begins to take requests: jobs whose kind is (checkpoint, route)."""
        self.served.warm_up(self._lengths)
        self.worker = Worker(
            lambda kind, inputs: kind[0].run(kind[1], inputs),
            observe=lambda kind, *numbers: observe(kind[1], *numbers),
            **options,
        )

    def route(self, name: str) -> tuple[Served, Route]:
        """Returns the checkpoint of the moment and a route of it. Raises Refused naming those that it has."""
        served = self.served
        if name not in served.routes:
            has = ", ".join(f"/{route}" for route in served.routes)
            raise Refused(404, f"the model '{self.name}' has no /{name}; it has {has}")
        return served, served.routes[name]

    def reload(self, *, anyway: bool = False) -> bool:
        """Changes to the checkpoint that the path means now, if that is another one; returns whether it has. Whatever
        is wrong with it is logged, and the present one stays."""
        seen = self._signature()
        if seen == self._seen and not anyway:
            return False
        self._seen = seen
        try:
            if choose_checkpoint(self.path, self._which) == self.served.model.path:
                return False
            newer = Served(self._load(), self._setup)
            newer.warm_up(self._lengths)
        except (UserError, OSError, MemoryError) as problem:
            logging.warning("%s: step %d stays, as the newer is not used: %s", self.name, self.step, problem)
            return False
        if lost := self.served.routes.keys() - newer.routes.keys():
            logging.warning(
                "%s: step %d stays, as the newer has no /%s", self.name, self.step, ", /".join(sorted(lost))
            )
            return False
        logging.info("%s: step %d replaces step %d", self.name, newer.model.step, self.step)
        self.served = newer
        release_free_memory()  # what loading and compiling leave behind
        return True

    @property
    def step(self) -> int:
        return self.served.model.step

    def _signature(self) -> tuple[Any, ...]:
        """Returns what changes when a run saves or deletes a checkpoint; () for what is no workdir or is gone."""
        folder = Path(self.path) / "checkpoints"
        try:
            return tuple(sorted((entry.name, entry.stat().st_mtime_ns) for entry in os.scandir(folder)))
        except OSError:
            return ()


def described(slot: Slot) -> dict[str, Any]:
    """Returns what a client may know about a model: never a path."""
    model, routes = slot.served.model, slot.served.routes
    return {
        "name": slot.name,
        "step": model.step,
        "task": model.config.task,
        "routes": list(routes),
        "input_columns": list(model.input_columns),
        "longest": {name: longest_of(model, route) for name, route in routes.items()},
    }
