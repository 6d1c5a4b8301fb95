"""How to write: what can be chosen, and what belongs together."""

from dataclasses import dataclass, fields
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from bert_jax.config import UserError, check_option
from bert_jax.data.tokenizers.tokenizer import Tokenizer
from bert_jax.options import OPTIONS, nearest


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
    min_length: int = 1  # tokens before the end

    def __post_init__(self):
        for field in fields(self):
            if field.name not in ("end_id", "start_id", "never"):
                check_option(f"generate.{field.name}", getattr(self, field.name))
        self._check_together()

    @classmethod
    def from_options(cls, generate: ConfigDict, tokenizer: Tokenizer, target_length: int, **given: Any) -> "Decoding":
        """Returns what the group `generate` (`options.py`) says, but for what is `given`. `target_length` takes the
        place of max_length where there is none. Special tokens but [UNK] are never written."""
        names = [field.name for field in fields(cls) if f"generate.{field.name}" in OPTIONS]
        for name in given:
            if name not in names:
                raise UserError(f"generate.{name} is not an option; the nearest is {nearest(f'generate.{name}')}")
        values = {name: generate[name] for name in names} | given
        if values["max_length"] is None:
            values["max_length"] = target_length
        never = (tokenizer.pad_id, tokenizer.cls_id, tokenizer.mask_id)
        return cls(tokenizer.sep_id, tokenizer.cls_id, never=never, **values)

    def _check_together(self) -> None:
        if self.temperature and self.beams > 1:
            raise UserError(
                f"generate.temperature={self.temperature:g} draws tokens and generate.beams={self.beams} searches: "
                "leave one of them out"
            )
        for name, off in (("top_k", 0), ("top_p", 1)):
            if not self.temperature and getattr(self, name) != off:
                raise UserError(
                    f"generate.{name} is for drawing tokens: set generate.temperature, such as 1, or leave it out"
                )
        if not self.temperature and self.n_best > self.beams:
            raise UserError(
                f"generate.n_best={self.n_best} is over generate.beams={self.beams}: raise it, or draw tokens with a "
                "generate.temperature"
            )
        if self.min_length >= self.max_length:
            raise UserError(
                f"generate.min_length={self.min_length} leaves no room for the end: generate.max_length, the end "
                f"included, is {self.max_length}"
            )

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises UserError for more beams than the vocabulary has tokens that may be written."""
        if self.beams > (usable := vocab_size - len(self.never)):
            raise UserError(
                f"generate.beams={self.beams} is over the vocabulary of {usable} tokens that can be written; lower it"
            )

    def score(self, log_probability: Float[Array, "*N"], length: Int[Array, "*N"]) -> Float[Array, "*N"]:
        """Returns the log-probability ÷ ((5 + n) / 6)^α for n tokens (Wu et al. 2016, section 7)."""
        return log_probability / ((5.0 + length.astype(jnp.float32)) / 6.0) ** self.length_penalty
