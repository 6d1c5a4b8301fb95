"""How to write: what can be chosen, and what belongs together."""

import math
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bert_jax.config import UserError


@dataclass(frozen=True)
class Decoding:
    """How a target is chosen. The default is greedy: at each place the likeliest token.

    With `beams`, the most probable of so many targets that are written side by side. With a `temperature`, tokens are
    drawn: of logits ÷ temperature, of the `top_k` likeliest (0 = all), of the fewest that have the share `top_p` of the
    probability.

    Raises UserError for values that are out of range, or do not belong together.
    """

    end_id: int
    start_id: int
    max_length: int  # tokens that are written at most, the end included
    never: tuple[int, ...] = ()  # ids that are never written
    beams: int = 1
    n_best: int = 1  # targets that are returned for each source
    length_penalty: float = 0.6  # α of ((5 + n) / 6)^α, by which the log-probability of n tokens is divided
    early: bool = False  # whether a search ends as soon as it has as many whole targets as beams
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0  # positive logits of tokens already written ÷ it, negative ones × it
    no_repeat_ngram: int = 0  # so many tokens in a row occur once only; 0 = off
    min_length: int = 0  # tokens before the end

    def __post_init__(self):
        ranges = {
            "beams": (1, 1024), "n_best": (1, 1024), "length_penalty": (0, 100), "temperature": (0, 1000),
            "top_k": (0, 1 << 24), "top_p": (0, 1), "repetition_penalty": (0, 1000),
            "no_repeat_ngram": (0, 1 << 20), "min_length": (0, 1 << 20), "max_length": (1, 1 << 20),
        }  # fmt: skip
        for name, (least, most) in ranges.items():
            value = getattr(self, name)
            if not least <= value <= most or not math.isfinite(value):
                raise UserError(f"{name} is {value}; it can be {least} to {most}")
        for name in ("top_p", "repetition_penalty"):
            if not getattr(self, name):
                raise UserError(f"{name} is 0; it must be over 0")
        self._check_together()

    def _check_together(self) -> None:
        if self.temperature and self.beams > 1:
            raise UserError(
                f"temperature={self.temperature:g} draws tokens, beams={self.beams} searches: leave one of them out"
            )
        for name, off in (("top_k", 0), ("top_p", 1)):
            if not self.temperature and getattr(self, name) != off:
                raise UserError(f"{name} is for drawing tokens: set a temperature, such as 1, or leave it out")
        if not self.temperature and self.n_best > self.beams:
            raise UserError(
                f"n_best={self.n_best} is over beams={self.beams}: raise beams, or draw tokens with a temperature"
            )
        if self.min_length >= self.max_length:
            raise UserError(
                f"min_length={self.min_length} leaves no room for the end: max_length, the end included, is "
                f"{self.max_length}"
            )

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises UserError for more beams than the vocabulary has tokens that may be written."""
        if self.beams > (usable := vocab_size - len(self.never)):
            raise UserError(f"beams={self.beams} is over the vocabulary of {usable} tokens that can be written")

    def score(self, log_probability: Float[Array, "*N"], length: Int[Array, "*N"]) -> Float[Array, "*N"]:
        """Returns the log-probability ÷ ((5 + n) / 6)^α for n tokens (Wu et al. 2016, section 7)."""
        return log_probability / ((5.0 + length.astype(jnp.float32)) / 6.0) ** self.length_penalty
