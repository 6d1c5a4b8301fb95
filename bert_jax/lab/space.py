"""What a search, or a sample at random, draws from: distributions of options, and the search itself."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from bert_jax.config import UserError
from bert_jax.option import Value, can_be

SAMPLERS, PRUNERS, DIRECTIONS = ("tpe", "random"), ("median", "asha", "none"), ("min", "max")
SPLITS = ("eval", "last", "test")  # of a metric: the best checkpoint on validation, the last one there, test


@dataclass(frozen=True)
class Distribution:
    """Values that a search or a random sample draws from: an interval, or a list of choices."""

    low: float = 0.0
    high: float = 1.0
    log: bool = False
    whole: bool = False
    choices: tuple[Value, ...] = ()

    def draw(self, random: Random) -> Value:
        """Returns a value at random."""
        if self.choices:
            return random.choice(self.choices)
        if self.log:
            value = math.exp(random.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = random.uniform(self.low, self.high)
        return min(max(round(value), int(self.low)), int(self.high)) if self.whole else short(value)

    def ends(self) -> list[Value]:
        """Returns the choices, or the lowest and the highest value."""
        kind = int if self.whole else float
        return list(self.choices) or [kind(self.low), kind(self.high)]


@dataclass(frozen=True)
class Search:
    """A search for hyper-parameters by Optuna; its trials are the runs of the study's only stage."""

    space: Mapping[str, Distribution]
    trials: int
    sampler: str = "tpe"  # or "random"
    pruner: str = "median"  # or "asha" or "none"
    seed: int = 0
    metric: str = "eval.loss"
    direction: str = "min"  # or "max"

    def check(self) -> None:
        """Raises UserError for a search that cannot be made."""
        if not self.space or self.trials < 1:
            raise UserError(f"the search has {len(self.space)} options and {self.trials} trials; it needs one or more")
        check_metric(self.metric, "the metric of the search")
        if self.metric.startswith("test."):
            raise UserError(f"the search's metric is {self.metric}; a test must not choose anything: take eval")
        for name, choices in (("sampler", SAMPLERS), ("pruner", PRUNERS), ("direction", DIRECTIONS)):
            if (value := getattr(self, name)) not in choices:
                raise UserError(f"the search's {name} is {value!r}; {can_be(str(value), choices)}")

    def ends(self) -> list[dict[str, Value]]:
        """Returns overrides at the ends of the space, which together have every choice."""
        ends = {name: one.ends() for name, one in self.space.items()}
        numbers = range(max(map(len, ends.values())))
        return [{name: values[min(n, len(values) - 1)] for name, values in ends.items()} for n in numbers]


def uniform(low: float, high: float) -> Distribution:
    """Returns the uniform distribution of numbers from `low` to `high`."""
    return _interval(Distribution(low, high))


def log_uniform(low: float, high: float) -> Distribution:
    """Returns the distribution of numbers whose logarithm is uniform, as for learning rates."""
    return _interval(Distribution(low, high, log=True))


def integers(low: int, high: int, *, log: bool = False) -> Distribution:
    """Returns the distribution of whole numbers from `low` to `high`, both included."""
    return _interval(Distribution(low, high, log=log, whole=True))


def one_of(*choices: Value) -> Distribution:
    """Returns the distribution of values that are equally likely."""
    if not choices:
        raise UserError("one_of() has no choices; give at least one")
    return Distribution(choices=choices)


def label(value: Value) -> str:
    """Returns the label of a value: short, and different for different values."""
    if isinstance(value, float):
        text = f"{value:g}"
        return text if float(text) == value else repr(value)
    return str(value)


def short(value: Value) -> Value:
    """Returns a drawn number with four significant digits, as its run gets it and its name says it."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def named_metrics(text: str) -> list[str]:
    """Returns the metrics that a text names, comma-separated."""
    return [name.strip() for name in text.split(",") if name.strip()]


def check_metric(text: str, where: str) -> None:
    """Raises UserError unless a text is SPLIT.METRIC."""
    split, _, metric = text.partition(".")
    if split not in SPLITS or not metric:
        raise UserError(f"{where} is {text!r}; it must be SPLIT.METRIC, where the split is eval, last or test")


def _interval(distribution: Distribution) -> Distribution:
    low, high = distribution.low, distribution.high
    if not (math.isfinite(low) and math.isfinite(high) and low < high) or (distribution.log and low <= 0):
        remedy = "both must be finite, the first one lower" + (" and positive" if distribution.log else "")
        raise UserError(f"a distribution from {low} to {high} is empty or endless; {remedy}")
    return distribution
