"""The likeliest tokens for every [MASK] in a text."""

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.config import UserError
from bert_jax.inference.open import open_model
from bert_jax.inference.prepared import Prepared
from bert_jax.models.heads import BertForPretraining

_OTHER_HEADS = "(?!embeddings/|encoder/|pooler/|mlm/|nsp/)"


class FillMask:
    """Holds a checkpoint in memory; calling it with a text gives, for each [MASK], [(token, probability), …]."""

    def __init__(self, checkpoint: str, which: str = "best"):
        opened = open_model(checkpoint, which=which)
        self.tokenizer, self.config = opened.tokenizer, opened.bert_config
        if "mlm/bias" not in opened.parameters:
            raise UserError(f"{opened.path} has no MLM head, which fills masks; it was made without one")
        # Neither the pooler nor the head of sentence pairs takes part; a saved BertForMaskedLM has none.
        model = opened.model(
            lambda rngs: BertForPretraining(self.config, rngs=rngs), absent="nsp/|pooler/", dropped=_OTHER_HEADS
        )
        self._logits = Prepared(model).program(_logits)

    def __call__(self, text: str, top_k: int = 5) -> list[list[tuple[str, float]]]:
        """Raises UserError if the text has no [MASK] or is longer than the model's positions."""
        if "[MASK]" not in text:
            raise UserError(f"no [MASK] in '{text}'")
        ids = self._ids(text)
        positions = np.flatnonzero(ids == self.tokenizer.mask_id)
        if len(ids) > self.config.max_position_embeddings:
            raise UserError(f"the text has {len(ids)} tokens; the model takes {self.config.max_position_embeddings}")
        # The row is padded to a multiple of 64, so that texts of like length share one compiled program.
        length = min(-(-len(ids) // 64) * 64, self.config.max_position_embeddings)
        row = np.zeros((1, length), np.int32)
        row[0, : len(ids)] = ids
        real = (np.arange(length)[None] < len(ids)).astype(np.int32)
        logits = self._logits(row, real, jnp.asarray(positions)[None])
        probabilities = np.asarray(jax.nn.softmax(logits[0], axis=-1))
        best = np.argsort(-probabilities, axis=-1)[:, :top_k]
        return [
            [(self.tokenizer.token(int(i)), float(p[i])) for i in row]
            for row, p in zip(best, probabilities, strict=True)
        ]

    def _ids(self, text: str) -> np.ndarray:
        """[CLS] text [SEP], with the masks put between the tokens of what is around them: the original's tokenizer
        would split the word [MASK], and SentencePiece does not know it."""
        tokenizer, ids = self.tokenizer, []
        for part in tokenizer.encode_words(text.split("[MASK]")):
            ids += [*part, tokenizer.mask_id]
        return np.asarray([tokenizer.cls_id, *ids[:-1], tokenizer.sep_id], np.int32)


def _logits(model, input_ids, sequence_ids, positions):
    places = jnp.broadcast_to(jnp.arange(input_ids.shape[1])[None], input_ids.shape)
    hidden = model.encode(input_ids, jnp.zeros_like(input_ids), places, sequence_ids).hidden
    return model.mlm_logits(hidden, positions)
