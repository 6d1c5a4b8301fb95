"""Pretraining on texts with pictures, sounds or features of regions.

Three objectives, of which each has the weight 1:

    mlm       tokens that are masked, as in BERT, from the rest of the text and from the vectors
    vector    the values of vectors that are masked, by the squared error. Those of patches are first shifted and scaled
              to mean 0 and variance 1 within the patch (He et al. 2022, MAE, section 4)
    match     whether text and vectors belong together: a share vectors.mismatch_rate of the rows gets those of another
              row (Lu et al. 2019, ViLBERT; Chen et al. 2020, UNITER). Of such rows nothing else is learned

With data.modalities=text only the first is left, with vectors only the second. Masks and mismatches are made on the
device, as functions of (seed, step). In an evaluation masks depend on (eval.seed, example) alone, mismatches also on
which rows share a batch.
"""

from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key
from ml_collections import ConfigDict

from bert_jax import backend
from bert_jax.config import Json, UserError
from bert_jax.data.batching.items import Item
from bert_jax.data.labelled.columns import text_examples
from bert_jax.data.labelled.examples import TextExample
from bert_jax.data.labelled.tables import Row
from bert_jax.data.tokenizers.tokenizer import Tokenizer
from bert_jax.models.attention import take_places
from bert_jax.models.bert import Model, TrunkInputs
from bert_jax.models.cost import training_flops
from bert_jax.models.heads import LinearHead, MaskedLMHead, padded_decoder, vocabulary_logits
from bert_jax.models.patches import MaskedVectorHead, is_vector, trunk_inputs
from bert_jax.tasks.finetuning import FineTuning, Outputs
from bert_jax.tasks.losses import cross_entropy_sums
from bert_jax.tasks.masking import mask_tokens
from bert_jax.tasks.task import Batch, Description, Evaluation, Sums, mean_of_each
from bert_jax.tasks.texts import blank_example, encode_texts, log_splits, text_columns, text_example


class VisualPretraining(FineTuning):
    """Rows of a table with data.text and one of data.image, data.sound and data.features."""

    makes_predictions = False
    head = "heads/mlm/|heads/match/|heads/masked_vectors/"
    has_classes = False
    reads_media = True

    def __init__(self, config: ConfigDict, tokenizer: Tokenizer, description: Description | None):
        super().__init__(config, tokenizer, description)
        self.renewed_parameters = ""  # the MLM head of a BERT is trained further
        self.learns_match = self.source is not None and self.reads_text and config.vectors.mismatch_rate > 0
        learned = {"mlm_loss": self.reads_text, "vector_loss": self.source is not None, "match_loss": self.learns_match}
        self.objectives: Mapping[str, float] = {name: 1.0 for name, is_learned in learned.items() if is_learned}

    @property
    def reads_text(self) -> bool:
        return self.config.data.modalities != "vectors"

    def check(self) -> None:
        super().check()
        data = self.config.data
        if not (data.image or data.sound or data.features):
            raise UserError("task=visual_pretraining needs a column: set data.image, data.sound or data.features")
        if data.packing:
            raise UserError("data.packing: task=visual_pretraining needs rows of their own; leave it out")

    def read(self, spec: str) -> Iterator[TextExample]:
        columns = text_columns(self.config.data) | {"label": "", "separator": "|"}
        return text_examples(spec, **columns, kind="single", vectors=self.source and self.source.read)

    def example(self, row: Row) -> TextExample:
        return text_example(row, self.config.data, self.source)

    def stand_in(self, text: str) -> TextExample:
        return blank_example(text, self.config.data, self.source)

    def unlabelled(self, example: TextExample) -> str:
        return ""

    def learn(self) -> None:
        log_splits(self.examples)

    def encode(self, examples) -> list[Item]:
        return [Item(parts, {}, own) for parts, own in encode_texts(self.tokenizer, examples, self.config.data)]

    def heads(self, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        heads: dict[str, nnx.Module] = {}
        if self.reads_text:
            heads["mlm"] = MaskedLMHead(self.bert_config, rngs=rngs)
        if self.learns_match:
            heads["match"] = LinearHead(self.bert_config, 2, rngs=rngs)
        if self.source is not None:
            heads["masked_vectors"] = MaskedVectorHead(self.bert_config, self.source, rngs=rngs)
        return heads

    def count_step(self, rows: float, length: float, targets: float) -> None:
        super().count_step(rows, length, targets)
        predictions = min(self.config.data.max_predictions_per_sequence, round(length)) if self.reads_text else 0
        self.flops_per_step = training_flops(self.bert_config, rows, length, predictions)

    def features(self, batch: Batch, key: Key[Array, ""]) -> Batch:
        """Gives some rows the vectors of another, then masks tokens and vectors."""
        partner_key, mask_key = jax.random.split(key)
        numbers = jnp.maximum(batch["item_ids"][:, 0], 0)
        batch = dict(batch)
        if self.source is not None:
            batch |= {"matches": jnp.ones_like(numbers)}
            if self.learns_match:
                batch |= mismatched(batch, partner_key, self.config.vectors.mismatch_rate)

        def mask(row: Batch, number: Int[Array, ""]) -> Batch:
            own = jax.random.fold_in(mask_key, number)
            masked = self._masked({name: x[None] for name, x in row.items()}, own)
            return {name: x[0] for name, x in masked.items()}

        names = ("input_ids", "sequence_ids", *(("vector_grid",) if self.source is not None else ()))
        return batch | jax.vmap(mask)({name: batch[name] for name in names}, numbers)

    def weights(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        own = self._row_weights(batch)
        found = {}
        if self.reads_text:
            found["mlm_loss"] = jnp.sum(batch["masked_weights"] * own) + 1e-5
        if self.source is not None:
            found["vector_loss"] = jnp.maximum(jnp.sum(batch["vector_weights"] * own), 1.0)
        if self.learns_match:
            found["match_loss"] = jnp.maximum(jnp.sum(batch["item_weights"]), 1.0)
        return found

    def outputs(self, model: Model, batch: Batch, key: Key[Array, ""] | None) -> Outputs:
        places = {"first": batch["first_tokens"]}
        places |= {name: batch[f"{name}_positions"] for name in ("masked", "vector") if f"{name}_positions" in batch}
        hidden = model.trunk.encode(self._inputs(model, batch), key=key, places=jnp.concatenate([*places.values()], 1))
        ends = np.cumsum([x.shape[1] for x in places.values()])[:-1].tolist()
        of = dict(zip(places, jnp.split(hidden.hidden, ends, axis=1), strict=True))
        found = {}
        if self.reads_text:
            mlm = model.heads["mlm"]
            table, bias = mlm.table_and_bias(model.trunk.embeddings.word.embedding[...])
            decoder = padded_decoder(table, bias, backend.current().vocabulary_multiple)
            found["mlm"] = vocabulary_logits(mlm.vectors(of["masked"]), *decoder, self.bert_config.dtype)
        if self.source is not None:
            found["vector"] = model.heads["masked_vectors"](of["vector"])
        if self.learns_match:
            found["match"] = model.heads["match"].logits(model.trunk.pooled(of["first"][:, 0]))
        return found

    def losses(self, outputs: Outputs, batch: Batch) -> Sums:
        own, sums = self._row_weights(batch), {}
        if self.reads_text:
            sums |= cross_entropy_sums("mlm", outputs["mlm"], batch["masked_labels"], batch["masked_weights"] * own)
        if self.source is not None:
            target = take_places(batch["vectors"], batch["vector_positions"])
            target = target if self.source.kind == "features" else _normalised(target)
            weights = batch["vector_weights"] * own
            error = jnp.mean(jnp.square(outputs["vector"] - target), axis=-1)
            sums["vector_loss"] = jnp.sum(error * weights), jnp.sum(weights)
            sums["vector_square"] = jnp.sum(jnp.mean(jnp.square(target), axis=-1) * weights), jnp.sum(weights)
        if self.learns_match:
            sums |= cross_entropy_sums("match", outputs["match"], batch["matches"], batch["item_weights"][:, 0])
        return sums

    def evaluate(self, model, batch, constants):
        return self.sums(model, batch, None, constants), {}

    def means(self, sums) -> dict[str, float]:
        metrics = mean_of_each(sums)
        return metrics | {"loss": sum(w * metrics[name] for name, w in self.objectives.items() if name in metrics)}

    def evaluation(self, split, sums, rows, description) -> Evaluation:
        """Adds `vector_explained` to the means: 1 − vector_loss ÷ the loss of predicting zeros, which are the mean of
        a patch."""
        metrics = self.means(sums)
        if square := metrics.get("vector_square"):
            metrics["vector_explained"] = 1 - metrics["vector_loss"] / square
        return Evaluation(split, metrics)

    def score(self, examples, predictions, description) -> dict[str, float]:
        return {}

    def score_names(self, split: str) -> tuple[str, ...]:
        names = ("mlm_loss", "mlm_accuracy") if self.reads_text else ()
        names += ("vector_loss", "vector_square", "vector_explained") if self.source is not None else ()
        return (*names, "match_loss", "match_accuracy") if self.learns_match else names

    def predict(self, examples, items, outputs) -> list[Json]:
        raise UserError("task=visual_pretraining predicts nothing; fine-tune it with experiments/visual.py")

    def _masked(self, batch: Batch, key: Key[Array, ""]) -> Batch:
        """Returns what a row has instead and besides once tokens and vectors are masked."""
        token_key, vector_key = jax.random.split(key)
        found, sequence_ids = {}, batch["sequence_ids"]
        if self.source is not None:
            there = is_vector(batch)
            sequence_ids = jnp.where(there, 0, sequence_ids)
            most = max(1, round(self.config.vectors.mask_rate * self.source.most))
            found |= _masked_vectors(there, self.config.vectors.mask_rate, most, vector_key)
        if self.reads_text:
            found |= mask_tokens(batch["input_ids"], sequence_ids, self.config.data, self.tokenizer, token_key)
        return found

    def _inputs(self, model: Model, batch: Batch) -> TrunkInputs:
        if self.source is None:
            return trunk_inputs(model, batch)
        shown = model.heads["masked_vectors"].mask.embedding[...].reshape(-1)
        return trunk_inputs(model, batch, masked=batch["is_masked"], mask=shown)

    def _row_weights(self, batch: Batch) -> Float[Array, "B 1"]:
        """Returns 1 for the rows whose tokens and vectors are learned."""
        own = batch["item_weights"]
        return own if self.source is None else own * batch["matches"][:, None].astype(own.dtype)


def mismatched(batch: Batch, key: Key[Array, ""], rate: float) -> Batch:
    """Returns the rows with the vectors of another row in a share `rate` of them: `matches` is 0 there.

    A row whose own vectors are more than those of the other loses the rest of its positions; of more it gets the first.
    """
    real, (rows, length) = batch["item_weights"][:, 0] > 0, batch["input_ids"].shape
    count = jnp.sum(real)  # padding comes last
    shift_key, row_key = jax.random.split(key)
    shift = jax.random.randint(shift_key, (), 1, jnp.maximum(count, 2))
    partner = (jnp.arange(rows) + shift) % jnp.maximum(count, 1)
    is_other = real & (count > 1) & (jax.random.uniform(row_key, (rows,)) < rate)
    there = is_vector(batch)
    sizes, start = jnp.sum(there, axis=1), jnp.argmax(there, axis=1)
    number = jnp.arange(length)[None] - start[:, None]  # of the vector at a position
    at = jnp.clip(start[partner][:, None] + number, 0, length - 1)
    swapped = there & is_other[:, None]
    has_other = swapped & (number < sizes[partner][:, None])

    def taken(x: Array) -> Array:
        other = jnp.take_along_axis(jnp.take(x, partner, axis=0), at[:, :, None], axis=1)
        other = jnp.where(has_other[:, :, None], other, jnp.zeros_like(other))
        return jnp.where(swapped[:, :, None], other, x)

    return {
        "vectors": taken(batch["vectors"]),
        "vector_grid": taken(batch["vector_grid"]),
        "sequence_ids": jnp.where(swapped & ~has_other, 0, batch["sequence_ids"]),
        "matches": 1 - is_other.astype(jnp.int32),
    }


def _masked_vectors(there: Bool[Array, "B L"], rate: float, most: int, key: Key[Array, ""]) -> Batch:
    """Chooses round(rate × vectors) of each row, at least one and at most `most`."""
    rows, length = there.shape
    most = min(most, length)
    rank = jnp.where(there, jax.random.uniform(key, there.shape), 2.0)
    chosen = jnp.argsort(rank, axis=1)[:, :most]
    count = jnp.sum(there, axis=1)
    budget = jnp.clip(jnp.round(rate * count.astype(jnp.float32)).astype(jnp.int32), 1, most)
    weights = jnp.arange(most)[None] < jnp.minimum(budget, count)[:, None]
    places = jnp.arange(rows)[:, None], jnp.where(weights, chosen, length)
    return {
        "vector_positions": jnp.where(weights, chosen, 0).astype(jnp.int32),
        "vector_weights": weights.astype(jnp.float32),
        "is_masked": jnp.zeros_like(there).at[places].set(True, mode="drop"),
    }


def _normalised(x: Float[Array, "B P F"]) -> Float[Array, "B P F"]:
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + 1e-6)
