"""A model that is served: the checkpoint of the moment, its tasks and routes, its queue, and newer checkpoints."""

import gc
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jax.errors import JaxRuntimeError

from bert_jax.config import Json, UserError
from bert_jax.heap import release_free_memory
from bert_jax.inference.loaded import LoadedModel
from bert_jax.serve.bodies import Call, Refused, texts_of
from bert_jax.serve.routes import ROUTES, Route, Setup, longest_of, routes_of
from bert_jax.serve.worker import Worker
from bert_jax.training.checkpoint import choose_checkpoint

_SPECIAL = 2  # [CLS] and [SEP]


@dataclass(frozen=True, eq=False)
class Served:
    """A checkpoint, or one of its several tasks, with the routes that it has; `models` has it on each device. Requests
    keep the one with which they began. Routes in `without` are left to the checkpoint as a whole."""

    models: tuple[LoadedModel, ...]
    setup: Setup
    without: frozenset[str] = frozenset()

    @property
    def model(self) -> LoadedModel:
        return self.models[0]

    @cached_property
    def routes(self) -> dict[str, Route]:
        found = routes_of(self.model, self.setup)
        return {name: route for name, route in found.items() if name not in self.without}

    def run(self, route: str, inputs: list[object], thread: int = 0) -> list[object]:
        return self.routes[route].run(self.models[thread % len(self.models)], self.setup, inputs)

    def warm_up(self, lengths: Sequence[int]) -> None:
        """Compiles all that the routes run, for texts of up to these numbers of tokens and for the longest."""
        for route in self.routes.values():
            if route.tool is not None:
                start, longest = time.perf_counter(), longest_of(self.model, route)
                for model in self.models:
                    route.tool(model, self.setup).warm_up([*(x for x in lengths if x < longest), longest])
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


Checkpoint = dict[str, Served]  # what is served of a checkpoint: the whole as "", each of several tasks by its name


class Slot:
    """A name under which a model is served. `load(path, device)` opens the checkpoint that a path means at the moment,
    as `load_members` does."""

    def __init__(
        self,
        name: str,
        path: str,
        which: str,
        load: Callable[[str | Path, int], dict[str, LoadedModel]],
        setup: Setup,
        lengths: list[int],
        devices: int = 1,
    ):
        self.name, self.path = name, path
        self._which, self._load, self._setup, self._lengths = which, load, setup, lengths
        self._devices = devices
        self._seen = self._signature()
        self.served = self._opened()
        self.worker: Worker | None = None

    def start(self, observe: Callable[[str, int, int, float], None], *, threads: int, **options: Any) -> None:
        """Compiles, and begins to take requests: jobs whose kind is (`Served`, route). Each device has so many
        threads."""
        self._warm_up(self.served)
        self.worker = Worker(
            lambda kind, inputs, thread: kind[0].run(kind[1], inputs, thread),
            observe=lambda kind, *numbers: observe(kind[1], *numbers),
            threads=threads * self._devices,
            **options,
        )

    def route(self, name: str, task: str = "") -> tuple[Served, Route]:
        """Returns what has a route at the moment, and the route. A task that lacks one has the checkpoint's, which does
        not depend on the task. Raises Refused naming what there is."""
        served = self.served
        tasks = ", ".join(filter(None, served))
        if task not in served:
            shown = task[:60].encode(errors="backslashreplace").decode()
            has = f"it has {tasks}" if tasks else "it has one task, which needs no name"
            raise Refused(404, f"the model '{self.name}' has no task '{shown}'; {has}")
        for own in (served[task], served[""]):
            if name in own.routes:
                return own, own.routes[name]
        if not task and any(name in own.routes for own in served.values()):
            able = ", ".join(key for key, own in served.items() if name in own.routes)
            raise Refused(422, f'"task_name" is missing; for /{name} it can be {able}')
        has = ", ".join(f"/{route}" for route in served[""].routes | served[task].routes)
        whose = f"the task '{task}' of the model '{self.name}'" if task else f"the model '{self.name}'"
        raise Refused(404, f"{whose} has no /{name}; it has {has}")

    def reload(self, *, anyway: bool = False) -> bool:
        """Changes to the checkpoint that the path means now, if that is another one; returns whether it has. Whatever
        is wrong with it is logged, and the present one stays."""
        seen = self._signature()
        if seen == self._seen and not anyway:
            return False
        self._seen = seen
        try:
            if choose_checkpoint(self.path, self._which) == self.served[""].model.path:
                return False
            newer = self._opened()
            if lost := ", /".join(sorted(_routes(self.served) - _routes(newer))):
                raise UserError(f"it has no /{lost}")
            self._warm_up(newer)
        except (UserError, OSError, MemoryError, JaxRuntimeError) as problem:
            if not isinstance(problem, UserError):  # it may pass: try again at the next look
                self._seen = ()
            logging.warning("%s: step %d stays, as the newer is not used: %s", self.name, self.step, problem)
            return False
        logging.info("%s: step %d replaces step %d", self.name, newer[""].model.step, self.step)
        self.served = newer
        gc.collect()  # models and their programs refer to each other, and the collector's own turn would come too late
        release_free_memory()  # what loading and compiling leave behind
        return True

    @property
    def step(self) -> int:
        return self.served[""].model.step

    def _opened(self) -> Checkpoint:
        """Returns the checkpoint that the path means now, on every device."""
        first = self._load(self.path, 0)
        copies = [first, *(self._load(first[""].path, device) for device in range(1, self._devices))]
        whole = Served(tuple(one[""] for one in copies), self._setup)
        without = frozenset(whole.routes)
        tasks = {name: Served(tuple(one[name] for one in copies), self._setup, without) for name in first if name}
        return {"": whole} | tasks

    def _warm_up(self, checkpoint: Checkpoint) -> None:
        for served in checkpoint.values():
            served.warm_up(self._lengths)

    def _signature(self) -> tuple[object, ...]:
        """Returns what changes when a run saves or deletes a checkpoint; () for what is no workdir or is gone."""
        folder = Path(self.path) / "checkpoints"
        try:
            return tuple(sorted((entry.name, entry.stat().st_mtime_ns) for entry in os.scandir(folder)))
        except OSError:
            return ()


def described(slot: Slot) -> Json:
    """Returns what a client may know about a model: never a path."""
    checkpoint = slot.served
    whole = {"name": slot.name, "step": checkpoint[""].model.step} | _of_task(checkpoint, "")
    tasks = {name: _of_task(checkpoint, name) for name in checkpoint if name}
    return whole | {"tasks": tasks} if tasks else whole


def _of_task(checkpoint: Checkpoint, name: str) -> Json:
    own, whole = checkpoint[name], checkpoint[""]
    longest = {route.name: longest_of(one.model, route) for one in (own, whole) for route in one.routes.values()}
    model, routes = own.model, [route.name for route in ROUTES if route.name in longest]
    return {
        "task": model.config.task,
        "routes": routes,
        "input_columns": list(model.input_columns),
        "longest": {route: longest[route] for route in routes},
    }


def _routes(checkpoint: Checkpoint) -> set[str]:
    """Returns all routes, those of tasks as route?task_name=NAME."""
    return {f"{route}?task_name={name}" if name else route for name, own in checkpoint.items() for route in own.routes}
