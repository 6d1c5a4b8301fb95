"""Beam search: the best targets among those that begin with one of the best beginnings of each length.

As in fairseq and Transformers, a beginning that ends counts if it is among the `beams` best candidates of its length,
and at the greatest length all of these count. A search ends when no target can become better than the worst that was
found, or with `early` as soon as there are enough. Its bound divides by the penalty of the greatest length, at which a
log-probability is divided most, and so is exact (early_stopping="never" in Transformers).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bert_jax.models.decoding.constraints import NEVER, constrained
from bert_jax.models.decoding.options import Decoding
from bert_jax.models.writer import Memory, Writer


class _Targets(NamedTuple):
    """W beginnings, or whole targets, of each source."""

    tokens: Int[Array, "G W T"]
    lengths: Int[Array, "G W"]
    totals: Float[Array, "G W"]  # log-probabilities; below NEVER / 2 there is no target
    scores: Float[Array, "G W"]  # by which they are sorted


class _State(NamedTuple):
    place: Int[Array, ""]  # of the tokens that come next
    done: Bool[Array, " G"]
    last: Int[Array, "G W"]
    alive: _Targets
    found: _Targets
    memory: Memory


def search(
    writer: Writer, memory: Memory, is_empty: Bool[Array, " G"], decoding: Decoding
) -> tuple[Int[Array, "G K T"], Int[Array, "G K"], Float[Array, "G K"]]:
    """Returns tokens, lengths and log-probabilities of the `n_best` targets of each source. The memory has a row for
    each beam."""
    groups, width, room = len(is_empty), decoding.beams, decoding.max_length
    nothing = jnp.full((groups, width), NEVER)
    none = _Targets(
        jnp.zeros((groups, width, room), jnp.int32), jnp.zeros((groups, width), jnp.int32), nothing, nothing
    )
    one = nothing.at[:, 0].set(0.0)  # the beams begin alike: all but one are left out of the first step
    first = jnp.full((groups, width), decoding.start_id, jnp.int32)
    state = _State(jnp.int32(0), is_empty, first, none._replace(totals=one, scores=one), none, memory)

    def unfinished(state: _State):
        return (state.place < room) & ~jnp.all(state.done)

    found = jax.lax.while_loop(unfinished, lambda state: _step(writer, state, decoding), state).found
    is_there = found.totals > NEVER / 2
    lengths, tokens = jnp.where(is_there, found.lengths, 0), jnp.where(is_there[..., None], found.tokens, 0)
    return tokens[:, : decoding.n_best], lengths[:, : decoding.n_best], found.totals[:, : decoding.n_best]


def _step(writer: Writer, state: _State, decoding: Decoding) -> _State:
    groups, width, room = state.alive.tokens.shape
    logits, memory = writer.next(state.memory, state.last.reshape(-1))
    gains = jax.nn.log_softmax(logits, axis=1)
    gains = constrained(gains, state.alive.tokens.reshape(groups * width, room), state.place, decoding)
    beams, candidates, ends = _candidates(gains, state, decoding)
    # Those that end: of the first `width`, merged with what was found before. A finished search changes no more.
    counts = ends & (jnp.arange(2 * width)[None] < width) & (candidates.totals > NEVER / 2) & ~state.done[:, None]
    ended = candidates._replace(scores=jnp.where(counts, candidates.scores, NEVER))
    ended = ended._replace(totals=jnp.where(counts, candidates.totals, NEVER))
    found = _best(jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), state.found, ended), width)[0]
    going_on = jnp.where(ends, NEVER, candidates.totals)
    alive, chosen = _best(candidates._replace(totals=going_on, scores=going_on), width)
    order = jnp.take_along_axis(beams, chosen, axis=1)
    written = jax.tree.map(lambda x: _reordered(x, order), memory.written)
    last = jnp.take_along_axis(alive.tokens, jnp.full((groups, width, 1), state.place), axis=2)[..., 0]
    worst = found.scores[:, -1]
    best_possible = decoding.score(alive.scores[:, 0], jnp.full((groups,), room))
    is_full = worst > NEVER / 2
    done = state.done | (is_full if decoding.early else is_full & (best_possible <= worst))
    return _State(state.place + 1, done, last, alive, found, Memory(memory.source, written))


def _candidates(
    gains: Float[Array, "B V"], state: _State, decoding: Decoding
) -> tuple[Int[Array, "G C"], _Targets, Bool[Array, "G C"]]:
    """Returns the 2 W best continuations by one token, at least W of which do not end: the beams that they continue,
    the targets, and which of them end."""
    groups, width, room = state.alive.tokens.shape
    size = gains.shape[1]
    totals = gains.reshape(groups, width, size) + state.alive.totals[:, :, None]
    totals, places = jax.lax.top_k(totals.reshape(groups, width * size), 2 * width)
    totals = jnp.maximum(totals, NEVER)
    beams, chosen = places // size, (places % size).astype(jnp.int32)
    tokens = jnp.take_along_axis(state.alive.tokens, beams[:, :, None], axis=1)
    tokens = tokens.at[:, :, state.place].set(chosen)
    lengths = jnp.full(beams.shape, state.place + 1)
    ends = (chosen == decoding.end_id) | (state.place == room - 1)
    return beams, _Targets(tokens, lengths, totals, decoding.score(totals, lengths)), ends


def _best(targets: _Targets, width: int) -> tuple[_Targets, Int[Array, "G W"]]:
    """Returns the targets with the highest scores, and their places."""
    _, places = jax.lax.top_k(targets.scores, width)
    tokens = jnp.take_along_axis(targets.tokens, places[:, :, None], axis=1)
    lengths, totals, scores = (jnp.take_along_axis(x, places, axis=1) for x in targets[1:])
    return _Targets(tokens, lengths, totals, scores), places


def _reordered(x: Array, order: Int[Array, "G W"]) -> Array:
    """Returns the rows of each source in another order. Sources stay apart, so that devices which hold different ones
    exchange nothing."""
    if not x.ndim:
        return x
    groups, width = order.shape
    return jax.vmap(lambda rows, order: rows[order])(x.reshape(groups, width, *x.shape[1:]), order).reshape(x.shape)
