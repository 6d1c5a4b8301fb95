"""What runs with several seeds say about a difference: means with t intervals, tests, and a verdict.

Arrays in, numbers out. `levels.py` has `compare_levels`, which applies this to the runs of a study; `power.py` has what
a number of seeds can show, `resampling.py` the methods that resample. docs/statistics.md says which test is used when.

There is no bootstrap over a few seeds: its intervals are too narrow. Where there is no difference, those of two levels
find one in 20 % of cases with 3 seeds and in 13 % with 5 (26 and 17 % paired) instead of 5 %.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from bert_jax.lab.statistics.power import detectable_difference, seeds_needed

ALPHA = 0.05  # probability of a verdict where there is no difference
BETTER, WORSE, UNKNOWN = "better", "worse", "can't tell"
_MOST_MORE = 100  # seeds; more are not asked for, since the observed difference says too little about them
_ROUNDING = 1e-12  # a spread below this share of the values is the rounding of equal ones


@dataclass(frozen=True)
class Summary:
    """A metric over independent runs. Spread and interval are NaN for a single one."""

    values: tuple[float, ...]
    mean: float
    sd: float  # of the sample, n − 1
    low: float  # the t interval of the mean
    high: float

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def half(self) -> float:
        """Half the width of the interval: mean ± half."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Difference:
    """A level against the baseline. All but `mean` is NaN where the spread between seeds is unknown."""

    mean: float  # the level's minus the baseline's
    low: float  # its t interval
    high: float
    p: float  # two-sided
    effect: float  # mean / sd
    test: str  # "Welch" or "paired t"
    n: int  # of the level
    n_baseline: int
    sd: float = math.nan  # between seeds, pooled; of a paired test, that of the differences

    @property
    def half(self) -> float:
        """Half the width of the interval: mean ± half."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Verdict:
    """What may be said of a level.

    `more_seeds` per level would show a true difference as large as the observed one in four of five cases, the spread
    being as observed; `least_seeds` one as large as the far end of its interval. None: nothing to say, or over 100.
    Then `visible` is the smallest difference that the seeds at hand show, in the metric's unit.
    """

    word: str  # BETTER, WORSE or UNKNOWN
    reason: str
    more_seeds: int | None = None
    least_seeds: int | None = None
    visible: float | None = None

    def __str__(self) -> str:
        if self.word != UNKNOWN:
            return self.word
        visible = "" if self.visible is None else f"; those at hand show {self.visible:.2g} or more"
        return f"{self.word}, {self.reason}{visible}"


def summary(values: Sequence[float], confidence: float = 1 - ALPHA) -> Summary:
    """Returns mean, standard deviation and t interval. Raises ValueError for no values, or one that is not finite: such
    a run has failed, and is to be counted as such."""
    x = _finite(values)
    mean, n = float(x.mean()), len(x)
    if n == 1:
        return Summary((mean,), mean, math.nan, math.nan, math.nan)
    sd = _sd(x)
    half = float(stats.t.isf((1 - confidence) / 2, n - 1)) * sd / n**0.5
    return Summary(tuple(x.tolist()), mean, sd, mean - half, mean + half)


def welch(values: Sequence[float], baseline: Sequence[float], confidence: float = 1 - ALPHA) -> Difference:
    """Returns the difference of two means with Welch's test (1947), which allows the levels spreads of their own.

    p and interval are NaN with fewer than two values on a side, or if neither side has any spread.
    """
    x, y = _finite(values), _finite(baseline)
    mean, sizes = float(x.mean() - y.mean()), (len(x), len(y))
    if min(sizes) < 2 or not (pooled := math.hypot(_sd(x), _sd(y)) / 2**0.5):
        return Difference(mean, math.nan, math.nan, math.nan, math.nan, "Welch", *sizes)
    parts = [_sd(side) ** 2 / len(side) for side in (x, y)]
    freedom = sum(parts) ** 2 / sum(part**2 / (n - 1) for part, n in zip(parts, sizes, strict=True))  # Satterthwaite's
    tested = _t_test(mean, sum(parts) ** 0.5, freedom, confidence)
    return Difference(mean, *tested, mean / pooled, "Welch", *sizes, pooled)


def paired(values: Sequence[float], baseline: Sequence[float], confidence: float = 1 - ALPHA) -> Difference:
    """Returns the mean difference of runs that belong together, in the same order, with the paired t-test.

    p and interval are NaN with fewer than two pairs, or if all differences are the same.
    """
    x, y = _finite(values), _finite(baseline)
    if len(x) != len(y):
        raise ValueError(f"{len(x)} values and {len(y)} of the baseline are no pairs")
    mean, sizes, sd = float((x - y).mean()), (len(x), len(y)), math.nan
    if len(x) < 2 or not (sd := _sd(x - y, scale=max(abs(x).max(), abs(y).max()))):
        return Difference(mean, math.nan, math.nan, math.nan, math.nan, "paired t", *sizes)
    tested = _t_test(mean, sd / len(x) ** 0.5, len(x) - 1, confidence)
    return Difference(mean, *tested, mean / sd, "paired t", *sizes, sd)


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values corrected for the number of tests (Holm 1979): with all below alpha called differences, the
    probability of one that is not there stays below alpha. NaN stays NaN, and counts as a test."""
    order = sorted(range(len(p_values)), key=lambda i: math.inf if math.isnan(p_values[i]) else p_values[i])
    corrected, highest = [math.nan] * len(p_values), 0.0
    for rank, i in enumerate(order):
        if not math.isnan(p_values[i]):
            highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
            corrected[i] = highest
    return corrected


def verdict(difference: Difference, p: float, higher_is_better: bool, comparisons: int = 1) -> Verdict:
    """Returns what may be said, by a p-value that has been corrected for `comparisons`."""
    if math.isnan(p):
        return Verdict(UNKNOWN, _without_spread(difference))
    if p <= ALPHA:
        reason = f"p = {p:.2g}" + (f" after Holm's correction for {comparisons} comparisons" if comparisons > 1 else "")
        return Verdict(BETTER if (difference.mean > 0) == higher_is_better else WORSE, reason)
    is_paired, n = difference.test != "Welch", min(difference.n, difference.n_baseline)
    # Even with the observed effect as the true one fewer seeds than these may suffice: they were unlucky ones.
    farthest = max(abs(difference.low), abs(difference.high))
    more, least = (_more_seeds(x / difference.sd, n, comparisons, is_paired) for x in (abs(difference.mean), farthest))
    if more is None:
        visible = detectable_difference(n, comparisons=comparisons, paired=is_paired) * difference.sd
        return Verdict(UNKNOWN, f"over {_MOST_MORE} more seeds per level needed", None, least, visible)
    bound = f" (at least {least})" if least and least < more else ""
    return Verdict(
        UNKNOWN, f"about {more} more {'seed' if more == 1 else 'seeds'} per level needed{bound}", more, least
    )


def _t_test(mean: float, error: float, freedom: float, confidence: float) -> tuple[float, float, float]:
    """Returns the interval of a mean, low and high, and the two-sided p-value, by its standard error. SciPy's tests
    warn where one of two levels has no spread."""
    half = float(stats.t.isf((1 - confidence) / 2, freedom)) * error
    return mean - half, mean + half, 2 * float(stats.t.sf(abs(mean) / error, freedom))


def _more_seeds(effect: float, n: int, comparisons: int, is_paired: bool) -> int | None:
    """Returns how many seeds per level are missing to show an effect; None for over 100."""
    needed = seeds_needed(effect, comparisons=comparisons, paired=is_paired) if effect > 0.01 else None
    return None if needed is None or needed - n > _MOST_MORE else max(1, needed - n)


def _without_spread(difference: Difference) -> str:
    fewest = min(difference.n, difference.n_baseline)
    if fewest < 2:
        return "one run has no spread between seeds: at least 2 per level needed, better 5"
    if difference.test != "Welch":
        return "the difference is the same for every seed: check that seeds differ"
    if difference.mean:
        return "each level has the same value for every seed: check that seeds differ"
    return "all runs have the same value"


def _finite(values: Sequence[float]) -> np.ndarray:
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or not len(x):
        raise ValueError("there are no values")
    if not np.isfinite(x).all():
        raise ValueError(
            f"{int((~np.isfinite(x)).sum())} of {len(x)} values are not finite; count these runs as failed"
        )
    return x


def _sd(x: np.ndarray, scale: float | None = None) -> float:
    """Returns the standard deviation of a sample; 0 for values that differ by rounding alone."""
    sd = float(x.std(ddof=1)) if len(x) > 1 else math.nan
    return 0.0 if sd <= _ROUNDING * (abs(x).max() if scale is None else scale) else sd
