"""Trackers of experiments beside TensorBoard: Weights & Biases, MLflow and trackio, as `train.trackers` says.

Where their data goes is said by their own environment variables (WANDB_MODE, MLFLOW_TRACKING_URI, TRACKIO_DIR …). Each
has a thread of its own: one that fails or hangs is a warning, and the run does not wait for it. A run that continues
continues the same runs of its trackers, whose ids are in `trackers.json`.
"""

import importlib.util
import json
import logging
import os
import queue
import secrets
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from ml_collections import ConfigDict

from bert_jax.config import UserError, flatten
from bert_jax.extras import install
from bert_jax.files import write_atomically
from bert_jax.option import can_be

IDS = "trackers.json"
PROJECT = "bert_jax"  # the name of the project or experiment, unless the tracker's own variable says another
_PATIENCE = 60.0  # seconds that the end of a run waits for a tracker
_MOST_WAITING = 10_000  # lines; a tracker that does not answer must not fill the memory


class Tracker(ABC):
    """One run of one tracker. All methods are called in one thread; any of them may fail."""

    package: ClassVar[str]

    @classmethod  # noqa: B027 — most trackers need nothing
    def check(cls) -> None:
        """Raises UserError if the tracker cannot work, e.g. because nobody is logged in."""

    @abstractmethod
    def open(self, name: str, config: Mapping[str, object], tags: Mapping[str, str], workdir: Path) -> None:
        """Begins a run; continues the one of this `name` if there is one. `config` is flat."""

    @abstractmethod
    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Records metrics of a step."""

    @abstractmethod
    def close(self) -> None:
        """Ends the run."""


class WandB(Tracker):
    """Weights & Biases. With WANDB_MODE=offline each start writes a folder `wandb/offline-run-*` in the workdir."""

    package = "wandb"

    @classmethod
    def check(cls) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False, verify=False):
            remedy = "run 'wandb login', or set WANDB_MODE=offline"
            raise UserError(f"train.trackers has wandb, which has no API key; {remedy}")

    def open(self, name: str, config: Mapping[str, object], tags: Mapping[str, str], workdir: Path) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        settings = wandb.Settings(silent=True, console="off", save_code=False)
        is_online = wandb.setup().settings.mode == "online"
        self.run = wandb.init(
            **{"project": os.environ.get("WANDB_PROJECT", PROJECT), "id": name, "name": workdir.name, "dir": workdir},
            **{"config": dict(config), "tags": [text[:64] for text in tags.values()], "settings": settings},
            resume="allow" if is_online else None,  # a folder that is offline has nothing to resume
        )
        self.run.define_metric("*", step_metric="step")  # its own steps may not be taken again by a resumed run

    def add(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log({"step": step} | dict(values))

    def close(self) -> None:
        self.run.finish()


class MLflow(Tracker):
    """MLflow. MLFLOW_TRACKING_URI may be a server, sqlite:///FILE.db or a folder; without it, MLflow decides."""

    package = "mlflow"

    def open(self, name: str, config: Mapping[str, object], tags: Mapping[str, str], workdir: Path) -> None:
        import mlflow  # pyright: ignore[reportMissingImports]
        from mlflow.entities import Param  # pyright: ignore[reportMissingImports]

        self.client = mlflow.MlflowClient()
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self.client.get_experiment_by_name(title)
        number = self.client.create_experiment(title) if experiment is None else experiment.experiment_id
        found = self.client.search_runs([number], f"tags.bert_jax_id = '{name}'", max_results=1)
        if found:
            self.id = found[0].info.run_id
            self.client.update_run(self.id, status="RUNNING")
            return
        labels = dict(tags) | {"bert_jax_id": name}
        self.id = self.client.create_run(number, run_name=workdir.name, tags=labels).info.run_id
        # Parameters of a run cannot be changed later. A request may hold 100 of them, of 6,000 characters each.
        parameters = [Param(key, str(value)[:6000]) for key, value in config.items()]
        for first in range(0, len(parameters), 100):
            self.client.log_batch(self.id, params=parameters[first : first + 100])

    def add(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]

        now = int(1000 * time.time())
        self.client.log_batch(self.id, [Metric(name, value, now, step) for name, value in values.items()])

    def close(self) -> None:
        self.client.set_terminated(self.id)


class Trackio(Tracker):
    """trackio, whose data is local unless TRACKIO_SPACE_ID or TRACKIO_SERVER_URL is set."""

    package = "trackio"

    def open(self, name: str, config: Mapping[str, object], tags: Mapping[str, str], workdir: Path) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        about = dict(config) | {f"tag.{key}": value for key, value in tags.items()}
        title = f"{workdir.name}-{name}"  # a run of trackio is resumed by its title
        self.run = trackio.init(
            PROJECT, title, config=about, resume="allow", embed=False, auto_log_gpu=False, auto_log_cpu=False
        )

    def add(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()


TRACKERS: dict[str, type[Tracker]] = {"wandb": WandB, "mlflow": MLflow, "trackio": Trackio}


def check_trackers(names: str) -> None:
    """Raises UserError if `train.trackers` names what is no tracker, is not installed, or cannot work."""
    for name in _split(names):
        if name not in TRACKERS:
            raise UserError(f"train.trackers has {name!r}; {can_be(name, TRACKERS)}, or several, with commas between")
        if importlib.util.find_spec(TRACKERS[name].package) is None:
            raise UserError(f"train.trackers has {name}, which needs the extra trackers: {install('trackers')}")
        try:
            TRACKERS[name].check()
        except ImportError as problem:
            raise UserError(f"train.trackers has {name}, which cannot be imported ({problem}); reinstall it") from None


class Trackers:
    """The trackers of a run, each in a thread of its own."""

    def __init__(self, config: ConfigDict, workdir: Path):
        names = list(_split(config.train.trackers))
        ids = _ids(workdir / IDS, names) if names else {}
        tags = {"task": config.task, "model": config.model.size or "base", "experiment": workdir.parent.name}
        about = flatten(config.to_dict())
        self.threads = [_Thread(name, TRACKERS[name](), (ids[name], about, tags, workdir)) for name in names]

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Hands one line of metrics to every tracker."""
        for thread in self.threads:
            thread.add(step, values)

    def close(self) -> None:
        """Lets the trackers end, and waits for them, though not for long."""
        for thread in self.threads:
            thread.add(0, None)
        end = time.monotonic() + _PATIENCE
        for thread in self.threads:
            thread.join(max(0.0, end - time.monotonic()))
            if thread.is_alive():
                logging.warning("%s: did not end in %g s; metrics.jsonl has it all", thread.name, _PATIENCE)


class _Thread(threading.Thread):
    """Feeds one tracker. The first failure is a warning, and ends the feeding."""

    def __init__(self, name: str, tracker: Tracker, arguments: tuple[str, Mapping, Mapping, Path]):
        super().__init__(name=f"train.trackers={name}", daemon=True)
        self.tracker, self.arguments = tracker, arguments
        self.lines: queue.Queue[tuple[int, Mapping[str, float] | None]] = queue.Queue(_MOST_WAITING)
        self.has_failed = False
        self.start()

    def add(self, step: int, values: Mapping[str, float] | None) -> None:
        if self.has_failed:
            return
        try:
            self.lines.put_nowait((step, values))
        except queue.Full:
            self._give_up(f"it does not answer, and {_MOST_WAITING} lines wait")

    def run(self) -> None:
        try:
            self.tracker.open(*self.arguments)
            while not self.has_failed:
                step, values = self.lines.get()
                if values is None:
                    return self.tracker.close()
                self.tracker.add(step, values)
        except (Exception, SystemExit) as problem:  # whatever a library of somebody else's raises
            self._give_up(f"{type(problem).__name__}: {' '.join(str(problem).split())[:200]}")

    def _give_up(self, reason: str) -> None:
        self.has_failed = True
        logging.warning("%s: nothing more is sent (%s); metrics.jsonl has it all", self.name, reason)


def _split(names: str) -> Iterator[str]:
    return (name.strip() for name in names.split(",") if name.strip())


def _ids(path: Path, names: list[str]) -> dict[str, str]:
    """Returns the id of each tracker's run, those of earlier starts as they were."""
    known: dict[str, str] = {}
    try:
        content = json.loads(path.read_bytes()) if path.is_file() else {}
        known = {name: text for name, text in content.items() if isinstance(text, str) and text.isalnum()}
    except (OSError, ValueError, AttributeError, RecursionError):
        logging.warning("%s cannot be read: the trackers begin runs of their own", path)
    ids = known | {name: secrets.token_hex(6) for name in names if name not in known}
    if ids != known:
        try:
            write_atomically(path, json.dumps(ids) + "\n")
        except OSError as problem:
            logging.warning("%s cannot be written (%s): a later start begins new runs", path, problem.strerror)
    return ids
