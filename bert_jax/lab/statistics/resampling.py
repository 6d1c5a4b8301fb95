"""Methods that resample: the multibootstrap, almost stochastic order, and the expected best of several trials."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy import special, stats

FEWEST_SEEDS = 10
_CELLS = 1 << 24  # numbers in memory at a time


@dataclass(frozen=True)
class Bootstrapped:
    """A difference of two means over seeds and examples; interval and two-sided p-value are NaN without any spread."""

    mean: float
    low: float
    high: float
    p: float


def multibootstrap(
    scores: Float[np.ndarray, "S N"],
    baseline: Float[np.ndarray, "T N"],
    *,
    paired: bool,
    alpha: float = 0.05,
    samples: int = 10_000,
    seed: int = 0,
) -> Bootstrapped:
    """Returns the difference of the mean scores of the same N examples by S and T runs, whose noise is that of the
    seeds and that of the examples (Sellam et al. 2022).

    Each sample draws seeds and examples with replacement; `paired` draws the same seeds on both sides, whose rows then
    belong together. The samples give the standard error. Their own quantiles would give an interval that is too narrow
    with 10 seeds (6 to 10 % false positives): as in a t-test, the error is enlarged by √(n / (n − 1)) and multiplied by
    a quantile of t (Hesterberg 2015). With noise of the seeds alone this is the t-test.

    Raises ValueError with fewer than 10 seeds on a side, of which there are too few different samples.
    """
    x, y = np.asarray(scores, np.float64), np.asarray(baseline, np.float64)
    seeds = min(len(x), len(y))
    if seeds < FEWEST_SEEDS:
        raise ValueError(f"{seeds} seeds are too few to resample; the multibootstrap needs {FEWEST_SEEDS} per level")
    if paired and len(x) != len(y):
        raise ValueError(f"{len(x)} and {len(y)} runs are no pairs")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("a score is not finite; leave out the failed run, and count it")
    mean = float(x.mean() - y.mean())
    drawn = _drawn_differences(x, y, paired, samples, np.random.default_rng(seed))
    factor, freedom = _expansion(x.mean(axis=1), y.mean(axis=1), paired)
    error = factor * float(drawn.std())
    if error <= 1e-12 * max(abs(x).max(), abs(y).max()):  # all runs have the same scores
        return Bootstrapped(mean, math.nan, math.nan, math.nan)
    half = float(stats.t.isf(alpha / 2, freedom)) * error
    return Bootstrapped(mean, mean - half, mean + half, 2 * float(stats.t.sf(abs(mean) / error, freedom)))


def almost_stochastic_order(scores: Sequence[float], baseline: Sequence[float], *, alpha: float = 0.05) -> float:
    """Returns an upper bound, with confidence 1 − alpha, of the share by which `scores` violate being stochastically
    larger than `baseline` (del Barrio et al. 2018, Dror et al. 2019): 0 = larger at every quantile, 1 = smaller.

    Below 0.5 the scores are called almost stochastically larger, but with few runs only 0.2 is safe (Ulmer et al.
    2022): with 5 runs of equal levels the bound is below 0.5 in 21 % of cases, below 0.2 in 5 %. A larger score must be
    a better one. Of a single score, or of equal ones on both sides, the bound is 1. It is taken from 1,000 bootstrap
    samples, the same ones in every call.
    """
    x, y = (np.sort(np.asarray(values, np.float64)) for values in (scores, baseline))
    n, m = len(x), len(y)
    ratio = _violations(x[None], y[None])[0]
    if min(n, m) < 2 or math.isnan(ratio):
        return 1.0
    random = np.random.default_rng(0)
    xs, ys = (np.sort(values[random.integers(0, len(values), (1000, len(values)))], axis=1) for values in (x, y))
    drawn = _violations(xs, ys)
    # Samples that are the same on both sides violate neither order.
    spread = float(np.std(np.where(np.isnan(drawn), 0.5, drawn) - ratio))
    return float(np.clip(ratio + float(stats.norm.isf(alpha)) * spread, 0.0, 1.0))


def expected_best(
    values: Sequence[float],
    *,
    reported: Sequence[float] | None = None,
    mode: Literal["min", "max"] = "max",
    replacement: bool = False,
) -> Float[np.ndarray, " N"]:
    """Returns the expected result of the best of n trials, for n = 1 … N: the trial with the best of `values` is
    chosen, and its entry in `reported` (by default its value itself) counts. Choose on validation, report on test.

    Without replacement the estimate is unbiased (Tang et al. 2020). With it, it is that of Dodge et al. (2019), which
    is too low for n near N, since a trial may be drawn twice.
    """
    chosen_by = np.asarray(values, np.float64)
    results = chosen_by if reported is None else np.asarray(reported, np.float64)
    if chosen_by.ndim != 1 or not len(chosen_by) or results.shape != chosen_by.shape:
        raise ValueError(f"{chosen_by.shape} values and {results.shape} results are no trials")
    if not (np.isfinite(chosen_by).all() and np.isfinite(results).all()):
        raise ValueError("a value is not finite; give a failed trial the worst result that can be")
    order = np.argsort(chosen_by if mode == "max" else -chosen_by, kind="stable")
    count = len(order)
    rank, n = np.arange(1, count + 1)[None, :], np.arange(1, count + 1)[:, None]
    if replacement:
        weights = (rank / count) ** n - ((rank - 1) / count) ** n
    else:  # the best of n is the one of this rank, and the others are among those below: C(rank − 1, n − 1) / C(N, n)
        logs = _log_choose(rank - 1, n - 1) - _log_choose(np.full_like(rank, count), n)
        weights = np.where(rank >= n, np.exp(logs), 0.0)
    return weights @ results[order]


def _drawn_differences(
    x: Float[np.ndarray, "S N"], y: Float[np.ndarray, "T N"], paired: bool, samples: int, random: np.random.Generator
) -> Float[np.ndarray, " B"]:
    """Returns the difference of means in each bootstrap sample, by how often it draws each seed and each example."""
    (s, examples), t, drawn = x.shape, len(y), []
    block = max(1, _CELLS // max(examples, s, t))
    for start in range(0, samples, block):
        count = min(block, samples - start)
        of_x = random.multinomial(s, np.full(s, 1 / s), count) / s
        of_y = of_x if paired else random.multinomial(t, np.full(t, 1 / t), count) / t
        of_examples = random.multinomial(examples, np.full(examples, 1 / examples), count) / examples
        drawn.append(np.einsum("bn,bn->b", of_x @ x - of_y @ y, of_examples))
    return np.concatenate(drawn)


def _expansion(x: Float[np.ndarray, " S"], y: Float[np.ndarray, " T"], paired: bool) -> tuple[float, float]:
    """Returns the factor by which the bootstrap's standard error over seeds is too small, and the degrees of freedom of
    the t quantile that takes the place of the normal one; unpaired, by Welch and Satterthwaite."""
    n, m = len(x), len(y)
    if paired:
        return math.sqrt(n / (n - 1)), n - 1
    parts = np.array([x.var(ddof=1) / n, y.var(ddof=1) / m])
    shares = parts / parts.sum() if parts.sum() else np.array([0.5, 0.5])
    kept = shares @ np.array([(n - 1) / n, (m - 1) / m])
    return 1 / math.sqrt(kept), float(1 / (shares**2 @ np.array([1 / (n - 1), 1 / (m - 1)])))


def _violations(x: Float[np.ndarray, "B N"], y: Float[np.ndarray, "B M"]) -> Float[np.ndarray, " B"]:
    """Returns the violation ratio of each pair of samples, which are sorted: of the squared distance between their
    quantile functions, the share where that of y is above. NaN where they are the same."""
    n, m = x.shape[1], y.shape[1]
    # Both quantile functions are steps; between two neighbouring ends of steps both are constant.
    ends = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)  # in units of 1 / (n m), exact
    widths = np.diff(ends, prepend=0) / (n * m)
    gap = y[:, (ends - 1) // n] - x[:, (ends - 1) // m]
    with np.errstate(invalid="ignore"):
        return (np.maximum(gap, 0) ** 2 @ widths) / (gap**2 @ widths)


def _log_choose(n: np.ndarray, k: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # of k > n, which is not used
        return special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(np.maximum(n - k, 0) + 1)
