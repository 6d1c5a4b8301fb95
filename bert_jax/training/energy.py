"""What a run costs its machine: energy, greenhouse gases and device hours, as `energy.meter` says.

The sums stand in the lines of the time ledger (`ledger.py`), so that a run that continues adds to them:

kwh           energy, by codecarbon or by `energy.watts` × time
measured_kwh  the part of it that a counter measured; the rest is an estimate
co2e_grams    grams of CO2 equivalents: kWh × those of a kWh of the country's electricity
device_hours  hours × devices of the mesh

Time is that of the process from its first state to its end: compiling, evaluating and saving count.
"""

import importlib.util
import logging
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
from ml_collections import ConfigDict

from bert_jax.config import UserError, check_option
from bert_jax.extras import install
from bert_jax.option import most_like
from bert_jax.sharding import Mesh
from bert_jax.tasks.task import Task
from bert_jax.training.metrics_log import Record, read_metrics
from bert_jax.training.observer import LEDGER, Observer
from bert_jax.training.step import TrainState

SUMS = ("kwh", "measured_kwh", "co2e_grams", "device_hours")
# Grams of CO2 equivalents of a kWh, world average of 2024 (Ember, Global Electricity Review 2025).
WORLD_GRAMS = 473.0
_SECONDS = 15  # between two measurements
_COUNTED = ("intel_rapl", "intel_power_gadget", "windows_emi")  # what codecarbon calls reading a counter of a CPU


class Meter(Protocol):
    """Returns the kWh since it was made, and the part of them that a counter measured."""

    def __call__(self) -> tuple[float, float]: ...


class Energy(Observer):
    """Adds up what the run costs over all its starts. Process 0 measures its machine; further processes are taken to
    need as much each, unless `energy.watts` says what all of them need."""

    def __init__(self, workdir: Path, options: ConfigDict):
        self.options, self.workdir = options, workdir
        self.grams = grams_per_kwh(options)
        self.meter: Meter | None = None

    def begin(self, task: Task, state: TrainState, mesh: Mesh) -> None:
        if self.meter is not None:  # the run goes back to a checkpoint, which costs what it costs
            return
        self.before = energy_of(read_metrics(self.workdir / "metrics.jsonl"))
        self.devices, self.started = mesh.size, time.perf_counter()
        self.meter = _declared(self.options.watts) if self.options.meter == "watts" else _codecarbon()

    def account(self) -> dict[str, float]:
        if self.meter is None:
            return {}
        kwh, measured = self.meter()
        if self.options.meter != "watts":
            kwh, measured = kwh * jax.process_count(), measured * jax.process_count()
        hours = (time.perf_counter() - self.started) / 3600
        now = (kwh, measured, kwh * self.grams, self.devices * hours)
        return {name: self.before.get(name, 0.0) + value for name, value in zip(SUMS, now, strict=True)}


def energy_of(records: Iterable[Record]) -> dict[str, float]:
    """Returns the newest sums in the metrics of a run; {} if it measured none."""
    found: dict[str, float] = {}
    for record in records:
        if record["split"] == LEDGER and "kwh" in record:
            found = {name: float(record[name]) for name in SUMS if isinstance(record.get(name), int | float)}
    return found


def described(energy: Mapping[str, float]) -> dict[str, str]:
    """Returns the sums for a reader, {name: text}; what no counter measured is called an estimate."""
    if not energy:
        return {}
    kwh, share = energy["kwh"], energy.get("measured_kwh", 0.0) / (energy["kwh"] or 1.0)
    kind = "estimate" if share < 0.005 else "measured" if share > 0.995 else f"{share:.0%} measured, the rest estimated"
    grams = energy.get("co2e_grams", 0.0)
    gases = f"{grams / 1000:.3g} kg" if grams >= 1000 else f"{grams:.3g} g"
    hours = f"{energy.get('device_hours', 0.0):.3g}"
    return {"energy": f"{kwh:.3g} kWh ({kind})", "CO2 equivalents": f"{gases} (estimate)", "device hours": hours}


def check_energy(options: ConfigDict) -> None:
    """Raises UserError if the meter is not installed, or lacks what it needs."""
    for name, value in options.items():
        check_option(f"energy.{name}", value)
    if options.meter == "watts" and not options.watts:
        raise UserError("energy.meter=watts needs the power of the run's machines: set energy.watts")
    if options.watts and options.meter != "watts":
        raise UserError(f"energy.watts is for energy.meter=watts, and energy.meter is {options.meter}: set it to watts")
    if (options.meter == "codecarbon" or options.country) and importlib.util.find_spec("codecarbon") is None:
        what = f"energy.country={options.country}" if options.country else "energy.meter=codecarbon"
        remedy = f"{install('energy')}, or energy.meter=watts with energy.watts and energy.grams_per_kwh"
        raise UserError(f"{what} needs the extra energy: {remedy}")
    grams_per_kwh(options)


def grams_per_kwh(options: ConfigDict) -> float:
    """Returns the grams of CO2 equivalents of a kWh: 1. `energy.grams_per_kwh`, 2. codecarbon's of `energy.country`,
    3. the world's average. Raises UserError for a country that is not known."""
    if options.grams_per_kwh is not None:
        return options.grams_per_kwh
    if not options.country or options.meter == "none":
        return WORLD_GRAMS
    _quiet()
    from codecarbon.core.emissions import Emissions  # pyright: ignore[reportMissingImports]
    from codecarbon.core.units import Energy as Amount  # pyright: ignore[reportMissingImports]
    from codecarbon.external.geography import GeoMetadata  # pyright: ignore[reportMissingImports]
    from codecarbon.input import DataSource  # pyright: ignore[reportMissingImports]

    data = DataSource()
    known = data.get_global_energy_mix_data()
    if options.country not in known:
        near = most_like(options.country, known)
        raise UserError(
            f"energy.country is {options.country!r}; it must be an ISO code of three capitals such as {near}, or leave "
            "it out and set energy.grams_per_kwh"
        )
    where = GeoMetadata(country_iso_code=options.country, country_name=known[options.country]["country_name"])
    return 1000 * float(Emissions(data).get_country_emissions(Amount.from_energy(kWh=1.0), where))


def _declared(watts: float) -> Meter:
    started = time.perf_counter()
    return lambda: (watts * (time.perf_counter() - started) / 3.6e6, 0.0)


def _codecarbon() -> Meter:
    """Returns a meter that asks counters of CPU and GPU where they can be read, and estimates the rest. It uses no
    network and writes no file."""
    _quiet()
    from codecarbon import OfflineEmissionsTracker  # pyright: ignore[reportMissingImports]

    options: dict[str, Any] = {"output_methods": [], "allow_multiple_runs": True, "measure_power_secs": _SECONDS}
    tracker = OfflineEmissionsTracker(country_iso_code="USA", log_level="error", **options)  # its grams are not used
    tracker.start()
    if not hasattr(tracker, "_hardware"):  # codecarbon logs what goes wrong, and continues without measuring
        raise UserError("energy.meter=codecarbon could not start; use energy.meter=watts, or leave it out")
    is_counted = any(getattr(part, "_mode", "") in _COUNTED for part in tracker._hardware)

    def read() -> tuple[float, float]:
        tracker.flush()
        found = tracker._prepare_emissions_data()
        return found.energy_consumed, found.gpu_energy + (found.cpu_energy if is_counted else 0.0)

    return read


def _quiet() -> None:
    logging.getLogger("codecarbon").setLevel(logging.ERROR)
