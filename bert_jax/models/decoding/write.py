"""The one way to let a writer write; and token by token, the likeliest or one that is drawn."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from bert_jax.models.bert import TrunkInputs
from bert_jax.models.decoding.beams import search
from bert_jax.models.decoding.constraints import NEVER, constrained, kept_for_drawing
from bert_jax.models.decoding.options import Decoding
from bert_jax.models.writer import Memory, Writer


class Written(NamedTuple):
    """K targets for each of G sources, the best first; drawn ones in the order in which they were drawn.

    A target may end with end_id, or is as long as allowed. Its log-probability is the model's for all of its tokens:
    what may not be written has a share of it too, and a temperature does not count. Only a search with a repetition
    penalty returns the sum that it compares, to which repeated tokens add their log-probability × the penalty. Where
    there are fewer targets than K, the length is 0.
    """

    tokens: Int[Array, "G K T"]  # 0 after the end
    lengths: Int[Array, "G K"]  # the end included
    log_probabilities: Float[Array, "G K"]
    scores: Float[Array, "G K"]  # Decoding.score of it


def write(writer: Writer, source: TrunkInputs, decoding: Decoding, keys: Key[Array, " G"] | None = None) -> Written:
    """Returns what the writer writes for each source, inside of one program. `keys`, one per source, are needed to draw
    tokens: what is drawn depends on them and on the source alone. A source without any token has nothing written."""
    if decoding.temperature and keys is None:
        raise ValueError("to draw tokens, each source needs a key")
    copies = decoding.n_best if decoding.temperature else decoding.beams
    memory = writer.read(source, decoding.max_length, copies)
    is_empty = ~jnp.any(source.sequence_ids > 0, axis=1)
    if decoding.beams > 1:
        tokens, lengths, totals = search(writer, memory, is_empty, decoding)
    else:
        tokens, lengths, totals = _one_by_one(writer, memory, jnp.repeat(is_empty, copies), decoding, keys)
        groups = len(is_empty)
        tokens, lengths, totals = (x.reshape(groups, copies, *x.shape[1:]) for x in (tokens, lengths, totals))
    return Written(tokens, lengths, totals, decoding.score(totals, lengths))


def _one_by_one(writer: Writer, memory: Memory, is_empty, decoding: Decoding, keys: Key[Array, " G"] | None):
    """Returns tokens, lengths and log-probabilities of all rows."""
    rows, room = len(is_empty), decoding.max_length
    if keys is not None:
        copies = rows // len(keys)
        keys = jax.vmap(lambda key: jax.random.split(key, copies))(keys).reshape(rows)

    def unfinished(state):
        count, done = state[:2]
        return (count < room) & ~jnp.all(done)

    def step(state):
        count, done, last, tokens, lengths, totals, memory = state
        logits, memory = writer.next(memory, last)
        allowed = constrained(logits, tokens, count, decoding)
        if decoding.temperature:
            assert keys is not None
            at = jax.vmap(lambda key: jax.random.fold_in(key, count))(keys)
            chosen = jax.vmap(jax.random.categorical)(at, kept_for_drawing(allowed, decoding))
        else:
            chosen = jnp.argmax(allowed, axis=1)
        chosen = chosen.astype(jnp.int32)
        gained = jnp.take_along_axis(logits, chosen[:, None], axis=1)[:, 0] - jax.nn.logsumexp(logits, axis=1)
        tokens = tokens.at[:, count].set(jnp.where(done, 0, chosen))
        lengths, totals = lengths + (~done).astype(jnp.int32), jnp.where(done, totals, totals + gained)
        return count + 1, done | (chosen == decoding.end_id), chosen, tokens, lengths, totals, memory

    nothing = jnp.zeros((rows, room), jnp.int32)
    first, lengths = jnp.full(rows, decoding.start_id, jnp.int32), jnp.zeros(rows, jnp.int32)
    state = (jnp.int32(0), is_empty, first, nothing, lengths, jnp.zeros(rows), memory)
    _, _, _, tokens, lengths, totals, _ = jax.lax.while_loop(unfinished, step, state)
    return tokens, lengths, jnp.where(lengths > 0, totals, NEVER)
