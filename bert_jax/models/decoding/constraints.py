"""What may be written next, given what was written before: changes of logits."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bert_jax.models.decoding.options import Decoding

NEVER = -1e30  # as good as −∞, but sums and differences of it are numbers


def constrained(
    logits: Float[Array, "B V"], written: Int[Array, "B T"], count: Int[Array, ""], decoding: Decoding
) -> Float[Array, "B V"]:
    """Returns the logits, or log-probabilities, of the next tokens, of which those that must not come are NEVER.

    `written` holds the `count` tokens that each row has so far. The order is that of Transformers: repetition penalty,
    n-grams, lengths. Where each other token would repeat an n-gram, the end may come before the least length.
    """
    is_there = jnp.broadcast_to(jnp.arange(written.shape[1])[None] < count, written.shape)
    if decoding.repetition_penalty != 1:
        # Keskar et al. (2019), section 4.1, for logits of either sign.
        lower = jnp.where(logits > 0, logits / decoding.repetition_penalty, logits * decoding.repetition_penalty)
        logits = jnp.where(_marked(written, is_there, logits.shape[1]), lower, logits)
    if decoding.no_repeat_ngram:
        repeats = _ends_of_ngrams(written, is_there, count, decoding.no_repeat_ngram)
        logits = jnp.where(_marked(written, repeats, logits.shape[1]), NEVER, logits)
    places = jnp.arange(logits.shape[1])
    never = jnp.isin(places, jnp.asarray(decoding.never, jnp.int32))
    is_early = ((places == decoding.end_id) & (count < decoding.min_length))[None]
    if decoding.no_repeat_ngram and decoding.min_length > 1:
        others = jnp.where((never | (places == decoding.end_id))[None], NEVER, logits)
        is_early = is_early & (jnp.max(others, axis=1, keepdims=True) > NEVER / 2)
    return jnp.where(never[None] | is_early, NEVER, logits)


def kept_for_drawing(logits: Float[Array, "B V"], decoding: Decoding) -> Float[Array, "B V"]:
    """Returns the logits ÷ temperature; those that `top_k` and then `top_p` leave out are NEVER. Equal logits are kept
    or left out together."""
    logits = (logits - jnp.max(logits, axis=1, keepdims=True)) / decoding.temperature  # a low one overflows to −∞ only
    if 0 < decoding.top_k < logits.shape[1]:
        least = jax.lax.top_k(logits, decoding.top_k)[0][:, -1:]
        logits = jnp.where(logits < least, NEVER, logits)
    if decoding.top_p < 1:
        falling = -jnp.sort(-logits, axis=1)
        shares = jax.nn.softmax(falling, axis=1)
        # A token is kept if the likelier ones do not have the share yet (Holtzman et al. 2020, section 3.1).
        before = jnp.cumsum(shares, axis=1) - shares
        least = jnp.min(jnp.where(before < decoding.top_p, falling, jnp.inf), axis=1, keepdims=True)
        logits = jnp.where(logits < least, NEVER, logits)
    return logits


def _ends_of_ngrams(
    written: Int[Array, "B T"], is_there: Bool[Array, "B T"], count: Int[Array, ""], size: int
) -> Bool[Array, "B T"]:
    """Returns which tokens end an n-gram that the next token would repeat: those before it equal the last ones."""
    ends = is_there & (jnp.arange(written.shape[1])[None] >= size - 1)
    for back in range(1, size):
        last = jax.lax.dynamic_slice_in_dim(written, jnp.maximum(count - back, 0), 1, axis=1)
        ends = ends & (jnp.roll(written, back, axis=1) == last)
    return ends & (count >= size - 1)


def _marked(written: Int[Array, "B T"], chosen: Bool[Array, "B T"], size: int) -> Bool[Array, "B V"]:
    """Returns which entries of the vocabulary are among the chosen tokens of each row."""
    return jax.vmap(lambda tokens, marks: jnp.zeros(size, bool).at[tokens].max(marks))(written, chosen)
