"""What a number of seeds can show: power of Welch's test between two levels with the same spread.

    python -m bert_jax.lab.statistics.power --seeds=5 [--effect=2.5 | --power=0.8] [--comparisons=4]

Effects are in standard deviations between seeds: the difference of two means, divided by the standard deviation of one
metric over seeds with all else equal. `comparisons` is the number of tests among which an error is not to happen; the
smallest of their p-values has to be below alpha / comparisons (Holm 1979).
"""

from functools import lru_cache

import numpy as np
from jaxtyping import Float
from scipy import optimize, stats

from bert_jax.command import Parser, run_command, say
from bert_jax.config import UserError

MOST_SEEDS = 1000  # beyond it the answer is "more than that"
_QUADRATURE = 400  # points; the power then has an error below 1e-4
_FAR = 300.0  # standard errors


def power(n: int, effect: float, *, alpha: float = 0.05, comparisons: int = 1, paired: bool = False) -> float:
    """Returns the probability that a two-sided test of `n` seeds per level finds a difference of `effect`.

    The test is Welch's, of two levels whose true spread is the same; with `paired` it is the t-test of the differences
    between runs of one seed, and `effect` is in standard deviations of these. Raises ValueError unless n ≥ 2.
    """
    _check(n, alpha, comparisons)
    effect, level = abs(effect), alpha / comparisons
    if paired:
        critical = stats.t.isf(level / 2, n - 1)
        return float(_beyond(np.array([critical]), n - 1, effect * n**0.5)[0])
    return float(_beyond(_welch_limits(n, level), 2 * n - 2, effect * (n / 2) ** 0.5).mean())


def detectable_difference(
    n: int, *, power: float = 0.8, alpha: float = 0.05, comparisons: int = 1, paired: bool = False
) -> float:
    """Returns the smallest difference that `n` seeds per level show with the probability `power`, in standard
    deviations between seeds. Raises ValueError unless n ≥ 2 and alpha < power < 1."""
    _check(n, alpha, comparisons)
    if not alpha < power < 1:
        raise ValueError(f"power is {power}; it must lie between alpha ({alpha}) and 1")
    find = _power_of(alpha=alpha, comparisons=comparisons, paired=paired)
    high = 1.0
    while find(n, high) < power:
        high *= 2
    return optimize.root_scalar(lambda effect: find(n, effect) - power, bracket=(0.0, high), xtol=1e-6).root


def seeds_needed(
    effect: float, *, power: float = 0.8, alpha: float = 0.05, comparisons: int = 1, paired: bool = False
) -> int | None:
    """Returns the smallest number of seeds per level that shows `effect` with the probability `power`; None if it is
    above MOST_SEEDS."""
    find = _power_of(alpha=alpha, comparisons=comparisons, paired=paired)
    low, high = 1, 2  # too few; enough, once the loop has ended
    while find(high, effect) < power:
        low, high = high, 2 * high
        if low >= MOST_SEEDS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if find(middle, effect) >= power else (middle, high)
    return high if high <= MOST_SEEDS else None


def main(argv: list[str]) -> int:
    """Prints what a number of seeds can show."""
    parser = Parser("bert_jax.lab.statistics.power", __doc__ or "")
    parser.flag("seeds", 5, "seeds per level", least=2)
    parser.flag("effect", "", "true difference, in standard deviations between seeds")
    parser.flag("power", "0.8", "probability of finding the difference")
    parser.flag("comparisons", 1, "number of comparisons with the baseline", least=1)
    parser.flag("paired", False, "test the differences between runs of one seed")
    flags, rest = parser.parse(argv)
    for word in rest:
        parser.refuse(word)
    n, how = flags["seeds"], {"comparisons": flags["comparisons"], "paired": flags["paired"]}
    wanted, unit = _number("power", flags["power"]), "standard deviations between seeds"
    if not 0.05 < wanted < 1:
        raise UserError(f"--power is {wanted:g}; it must lie between 0.05 and 1")
    if not flags["effect"]:
        visible = detectable_difference(n, power=wanted, **how)
        say(f"{n} seeds per level show a difference of {visible:.2f} {unit} with a probability of {wanted:.0%}")
        return 0
    effect = _number("effect", flags["effect"])
    enough = seeds_needed(effect, power=wanted, **how) or f"more than {MOST_SEEDS}"
    found = power(n, effect, **how)
    say(f"{n} seeds per level show a difference of {effect:g} {unit} with a probability of {found:.0%}")
    say(f"{enough} seeds per level show it with a probability of {wanted:.0%}")
    return 0


def _check(n: int, alpha: float, comparisons: int) -> None:
    if n < 2:
        raise ValueError(f"n is {n}; the spread between seeds shows from 2 on")
    if not 0 < alpha < 1 or comparisons < 1:
        raise ValueError(f"alpha is {alpha} and comparisons {comparisons}; they must be in (0, 1) and at least 1")


def _power_of(**how):
    return lambda n, effect: power(n, effect, **how)


@lru_cache
def _welch_limits(n: int, level: float) -> Float[np.ndarray, " Q"]:
    """Returns the critical values of Welch's test, equally likely ones.

    With equal n Welch's statistic is Student's, and only its degrees of freedom differ: they follow from the share of
    one level in the sum of both variances, which is Beta distributed and independent of the statistic.
    """
    share = stats.beta.ppf((np.arange(_QUADRATURE) + 0.5) / _QUADRATURE, (n - 1) / 2, (n - 1) / 2)
    return stats.t.isf(level / 2, (n - 1) / (share**2 + (1 - share) ** 2))


def _beyond(limits: Float[np.ndarray, " Q"], freedom: int, shift: float) -> Float[np.ndarray, " Q"]:
    """Returns the probability that a noncentral t is outside of ± each limit."""
    if shift > _FAR:  # only its denominator varies then; SciPy's series would take minutes
        return stats.chi2.cdf(freedom * np.square(shift / limits), freedom)
    below = stats.nct.cdf(-limits, freedom, shift)
    return stats.nct.sf(limits, freedom, shift) + np.nan_to_num(below)  # SciPy gives NaN where it is next to nothing


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < 1e6:
        raise UserError(f"--{name} is {text!r}; it must be a number above 0")
    return value


if __name__ == "__main__":
    run_command(main)
