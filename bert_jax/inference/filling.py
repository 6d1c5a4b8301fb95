"""Several masks of a text filled jointly, by a masked language model: ways to choose one token after the other.

    left_to_right   the first mask gets its likeliest token, which the second one then sees, and so on
    confidence      of all masks the one whose likeliest token is most probable is filled, then the rest is looked at
                    again
    mask_predict    all masks are filled at once; then the least probable ones are masked and filled again, fewer of
                    them in each iteration (Ghazvininejad et al. 2019)
    beam            left to right, keeping the most probable beginnings
    gibbs           a token is drawn for one mask after the other, in sweeps of random order (Wang and Cho 2019)

`gibbs` is a heuristic. Its authors withdrew the claim that BERT is a Markov random field, since the conditional
distributions of a masked model need not belong to any joint one: what the draws converge to, if at all, is unknown.

All work on any number of texts at the same time. They ask the model through functions (`Likeliest`, `Distribution`),
one call per step for all texts; what a text gets does not depend on the others.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int32


class Blank(NamedTuple):
    """A row with masks. `kinds` says for each of its `places` which tokens are allowed there, as a number that the
    model's side understands."""

    ids: Int32[np.ndarray, " L"]  # with [CLS], [SEP] and [MASK]
    places: tuple[int, ...]  # of the masks to fill, ascending
    kinds: tuple[int, ...]


class Filled(NamedTuple):
    """A row without masks; `log_probabilities` are those that the tokens at its places had when they were chosen."""

    ids: Int32[np.ndarray, " L"]
    log_probabilities: Float[np.ndarray, " P"]

    @property
    def score(self) -> float:
        return float(self.log_probabilities.sum(dtype=np.float64))


class Query(NamedTuple):
    """A row, the places that are asked for, and the kind of each."""

    ids: Int32[np.ndarray, " L"]
    places: Sequence[int]
    kinds: Sequence[int]


# Returns for each query the likeliest allowed token at each of its places, and its log-probability.
Likeliest = Callable[[Sequence[Query]], list[tuple[np.ndarray, np.ndarray]]]
# Returns for each query, of one place, the log-probabilities of all tokens; −inf for those that are not allowed.
Distribution = Callable[[Sequence[Query]], list[np.ndarray]]


def left_to_right(blanks: Sequence[Blank], likeliest: Likeliest) -> list[Filled]:
    filled = [_start(blank) for blank in blanks]
    for step in range(_most_places(blanks)):
        numbers = [i for i, blank in enumerate(blanks) if len(blank.places) > step]
        found = likeliest([_query(blanks[i], filled[i], [step]) for i in numbers])
        for i, (tokens, log_p) in zip(numbers, found, strict=True):
            _set(blanks[i], filled[i], [step], tokens, log_p)
    return filled


def confidence(blanks: Sequence[Blank], likeliest: Likeliest) -> list[Filled]:
    filled = [_start(blank) for blank in blanks]
    is_open = [list(range(len(blank.places))) for blank in blanks]
    while numbers := [i for i, rest in enumerate(is_open) if rest]:
        found = likeliest([_query(blanks[i], filled[i], is_open[i]) for i in numbers])
        for i, (tokens, log_p) in zip(numbers, found, strict=True):
            best = int(np.argmax(log_p))
            step = is_open[i].pop(best)
            _set(blanks[i], filled[i], [step], tokens[best : best + 1], log_p[best : best + 1])
    return filled


def mask_predict(blanks: Sequence[Blank], likeliest: Likeliest, iterations: int, mask_id: int) -> list[Filled]:
    """Fills N masks in `iterations` T: in iteration t, from 0, the N · (T − t) / T least probable ones, rounded down,
    are predicted."""
    filled = [_start(blank) for blank in blanks]
    for t in range(iterations):
        counts = [len(blank.places) * (iterations - t) // iterations for blank in blanks]
        numbers = [i for i, count in enumerate(counts) if count]
        if not numbers:
            break
        steps = {i: np.sort(np.argsort(filled[i].log_probabilities, kind="stable")[: counts[i]]) for i in numbers}
        for i in numbers:
            filled[i].ids[np.asarray(blanks[i].places)[steps[i]]] = mask_id
        found = likeliest([_query(blanks[i], filled[i], steps[i]) for i in numbers])
        for i, (tokens, log_p) in zip(numbers, found, strict=True):
            _set(blanks[i], filled[i], steps[i], tokens, log_p)
    return filled


def beam(blanks: Sequence[Blank], distribution: Distribution, width: int) -> list[list[Filled]]:
    """Returns for each blank at most `width` fillings, the most probable first: by the product of the probabilities of
    its tokens, each given those on its left and masks on its right."""
    beams = [[_start(blank)] for blank in blanks]
    for step in range(_most_places(blanks)):
        numbers = [i for i, blank in enumerate(blanks) if len(blank.places) > step]
        rows = [(i, filled) for i in numbers for filled in beams[i]]
        found = iter(distribution([_query(blanks[i], filled, [step]) for i, filled in rows]))
        for i in numbers:
            beams[i] = _best_continuations(blanks[i], beams[i], [next(found) for _ in beams[i]], step, width)
    return beams


def gibbs(
    blanks: Sequence[Blank],
    distribution: Distribution,
    sweeps: int,
    mask_id: int,
    *,
    temperature: float = 1.0,
    seed: int = 0,
) -> list[Filled]:
    """Returns the state after so many sweeps, the first of which goes from left to right over masks. What is drawn
    depends on the seed and on the blank alone."""
    filled = [_start(blank) for blank in blanks]
    generators = [
        np.random.default_rng([seed, *hashlib.blake2b(b.ids.tobytes(), digest_size=8).digest()]) for b in blanks
    ]
    for sweep in range(sweeps):
        orders = [
            generator.permutation(len(blank.places)) if sweep else np.arange(len(blank.places))
            for blank, generator in zip(blanks, generators, strict=True)
        ]
        for step in range(_most_places(blanks)):
            numbers = [i for i, order in enumerate(orders) if len(order) > step]
            for i in numbers:
                filled[i].ids[blanks[i].places[orders[i][step]]] = mask_id
            found = distribution([_query(blanks[i], filled[i], [orders[i][step]]) for i in numbers])
            for i, log_p in zip(numbers, found, strict=True):
                token = _drawn(log_p, temperature, generators[i])
                _set(blanks[i], filled[i], [orders[i][step]], [token], log_p[[token]])
    return filled


def _start(blank: Blank) -> Filled:
    return Filled(blank.ids.copy(), np.full(len(blank.places), -np.inf))


def _most_places(blanks: Sequence[Blank]) -> int:
    return max((len(blank.places) for blank in blanks), default=0)


def _query(blank: Blank, filled: Filled, steps: Sequence[int] | np.ndarray) -> Query:
    return Query(filled.ids, [blank.places[i] for i in steps], [blank.kinds[i] for i in steps])


def _set(blank: Blank, filled: Filled, steps, tokens, log_p) -> None:
    """Writes tokens and their log-probabilities; the arrays of `filled` are its own."""
    filled.ids[[blank.places[i] for i in steps]] = tokens
    filled.log_probabilities[list(steps)] = log_p


def _best_continuations(
    blank: Blank, beams: Sequence[Filled], found: Sequence[np.ndarray], step: int, width: int
) -> list[Filled]:
    before = [float(one.log_probabilities[:step].sum()) for one in beams]
    candidates = []
    for number, log_p in enumerate(found):
        count = min(width, int(np.isfinite(log_p).sum()))
        tokens = np.argsort(-log_p, kind="stable")[:count]
        candidates += [(before[number] + float(log_p[token]), number, int(token)) for token in tokens]
    candidates.sort(key=lambda one: (-one[0], one[1], one[2]))
    kept = []
    for _, number, token in candidates[:width]:
        filled = Filled(beams[number].ids.copy(), beams[number].log_probabilities.copy())
        _set(blank, filled, [step], [token], found[number][[token]])
        kept.append(filled)
    return kept


def _drawn(log_p: np.ndarray, temperature: float, generator: np.random.Generator) -> int:
    with np.errstate(over="ignore"):  # a low temperature overflows to −∞, which is right
        shares = np.cumsum(np.exp((log_p.astype(np.float64) - log_p.max()) / temperature))
    return int(np.searchsorted(shares, generator.random() * shares[-1], side="right"))
