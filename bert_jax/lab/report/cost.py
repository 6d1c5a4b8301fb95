"""What runs cost, from their workdirs: device hours, tokens, floating-point operations, an estimate of the energy."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bert_jax.config import Json, UserError, read_config
from bert_jax.lab.records import RunRecord
from bert_jax.models.config import BertConfig, bert_config
from bert_jax.models.cost import training_flops
from bert_jax.phases import phase_ends
from bert_jax.tasks import TASKS, task_class
from bert_jax.training.energy import energy_of
from bert_jax.training.metrics_log import Record, read_metrics

# Board power in watts by a part of the device's kind, from the makers' data sheets (TPU v2, v3 and v4: Jouppi et al.
# 2023, arXiv:2304.01433); the first match counts.
WATTS = {"B200": 1000, "H200": 700, "H100 PCIe": 350, "H100 NVL": 400, "H100": 700, "A100": 400, "L40": 300, "L4": 72}
WATTS |= {"A10G": 300, "V100": 300, "T4": 70, "TPU v4": 192, "TPU v3": 220, "TPU v2": 280}
OTHER_WATTS = 300  # of an accelerator that is not in the list
CORE_WATTS = 10  # of a core of a CPU, its share of memory and fans included
ASSUMPTION = (
    "Energy is that of a run's energy.meter, else an estimate: power × time, with the power of a board by its data "
    f"sheet ({OTHER_WATTS} W if it is not known) and {CORE_WATTS} W for each core of a CPU; hosts, cooling and "
    "attempts that left no time are not counted."
)


@dataclass(frozen=True)
class Cost:
    """A sum over runs. Tokens are positions in batches, padding included; operations are those of matrix products."""

    runs: int = 0
    device_hours: float = 0.0
    tokens: float = 0.0
    flops: float = 0.0
    watt_hours: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


def total(runs: Iterable[RunRecord], environments: Mapping[str, list[Json]]) -> Cost:
    """Returns the cost of runs; `environments` are the entries of each run's environment.json, by its key."""
    return sum((cost_of(run, environments.get(run.key, [])) for run in runs), Cost())


def cost_of(run: RunRecord, starts: list[Json]) -> Cost:
    """Returns the cost of one run, failed attempts included; nothing for one that has not started."""
    lines = read_metrics(run.folder / "metrics.jsonl")
    tokens, flops = _work(run, lines)
    if not (run.seconds or tokens):
        return Cost()
    count, watts = _power(run, starts)
    hours = run.seconds / 3600
    known = energy_of(lines)  # of a run with energy.meter
    return Cost(1, count * hours, tokens, flops, 1000 * known["kwh"] if known else watts * hours)


def _work(run: RunRecord, records: list[Record]) -> tuple[float, float]:
    """Returns tokens and operations of a run's training steps, (0, 0) before its first report."""
    lines = [line for line in records if line["split"] == "train"]
    measured = {line["step"]: line["tokens_per_second"] * line["step_seconds"] for line in lines if _has_speed(line)}
    if not measured or not (run.folder / "config.json").is_file():
        return 0.0, 0.0
    steps = max(line["step"] for line in lines)
    try:
        config = read_config(run.folder / "config.json")
        model = bert_config(config.model, config.model.vocab_size or config.data.vocab_size)
        phases = phase_ends(config)
    except UserError:  # of another version; the tokens are known all the same
        return steps * measured[max(measured)], 0.0
    tokens = flops = 0.0
    start = 0
    for end, one in phases:  # whose steps have as many tokens each
        inside = [step for step in measured if start < step <= end]
        if inside:
            per_step = measured[max(inside)]
            taken = min(end, steps) - start
            tokens, flops = tokens + taken * per_step, flops + taken * _flops(model, one, per_step)
        start = end
    return tokens, flops


def _has_speed(line: Record) -> bool:
    return all(isinstance(line.get(name), int | float) for name in ("tokens_per_second", "step_seconds"))


def _flops(model: BertConfig, config: Any, tokens: float) -> float:
    """Returns the operations of a step, with rows of the mean length. Pretraining predicts tokens besides."""
    rows = config.train.batch_size
    # A class of the user's own is not imported for a folder that is only read.
    predictions = task_class(config.task).predicted_tokens(config) if config.task in TASKS else 0
    return training_flops(model, rows, tokens / rows, predictions)


def _power(run: RunRecord, starts: list[Json]) -> tuple[int, float]:
    """Returns the number of devices, and the watts of all of them."""
    found = re.match(r"(\d+)\s*[×x]?\s*(.*)", run.devices)
    count, kind = (int(found[1]), found[2]) if found else (1, run.devices)
    devices, machine = (_group(starts[-1], name) if starts else {} for name in ("devices", "machine"))
    kind = str(devices.get("kind", kind))
    count, cores = _whole(devices.get("count"), count), _whole(machine.get("cores"), 1)
    if not kind or "cpu" in kind.lower():
        return 1, CORE_WATTS * cores  # devices that share a processor are one
    watts = next((watts for name, watts in WATTS.items() if name.lower() in kind.lower()), OTHER_WATTS)
    return max(count, 1), watts * max(count, 1)


def _group(entry: Mapping[str, object], name: str) -> Mapping[str, Any]:
    found = entry.get(name)
    return found if isinstance(found, dict) else {}


def _whole(value: object, otherwise: int) -> int:
    return value if isinstance(value, int) and value > 0 else otherwise
