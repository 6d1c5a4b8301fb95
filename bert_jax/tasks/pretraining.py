"""Masked language model + next sentence prediction (Devlin et al. 2018, section 3.1)."""

import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from bert_jax import backend
from bert_jax.config import UserError
from bert_jax.data.batching.reader import Share, TrainBatches
from bert_jax.data.labelled.minimal_pairs import read_pairs, sample
from bert_jax.data.media.source import vector_source
from bert_jax.data.pretraining import pipeline
from bert_jax.data.pretraining.corpora import Mixture, languages_of
from bert_jax.data.pretraining.packing import Packing
from bert_jax.data.pretraining.pipeline import Prepared
from bert_jax.data.tokenizers.tokenizer import Tokenizer
from bert_jax.models.attention import use_cudnn
from bert_jax.models.bert import Bert, Model, TrunkInputs
from bert_jax.models.config import bert_config, check_length
from bert_jax.models.cost import training_bytes, training_flops
from bert_jax.models.encoder import is_scanned
from bert_jax.models.heads import LinearHead, MaskedLMHead, padded_decoder, vocabulary_logits
from bert_jax.phases import phase_ends
from bert_jax.tasks import pretraining_losses, sampled_softmax
from bert_jax.tasks.likelihood import EncodedPairs, text_log_likelihoods, token_log_probabilities
from bert_jax.tasks.losses import Logits
from bert_jax.tasks.masking import WordsOfLanguages, mask_tokens
from bert_jax.tasks.pretraining_text import (
    assumed_words,
    prepared_corpora,
    steps_of_an_epoch,
    token_counts,
    words_of_languages,
)
from bert_jax.tasks.retrieval import RetrievalProbe
from bert_jax.tasks.scores import guesser_scores, wilson_interval
from bert_jax.tasks.task import (
    Batch,
    Constants,
    Description,
    Evaluation,
    Phase,
    Rows,
    Source,
    Sums,
    Task,
    mean_of_each,
    shapes_of,
)


class Pretraining(Task):
    """Both objectives of BERT over a prepared corpus. With data.pairing=none the second one has weight 0 everywhere."""

    objectives: Mapping[str, float] = {"mlm_loss": 1.0, "nsp_loss": 1.0}
    makes_vocabulary = True
    extends_vocabulary = True
    has_phases = True
    makes_predictions = False
    new_parameters = "heads/mlm/|heads/nsp/|pooler/"
    dropped_parameters = "heads/"
    renewed_parameters = ""
    final_splits = ()
    prepared: Prepared  # only of a task with data
    corpora: Mapping[int, Prepared] = MappingProxyType({})  # by length of rows, where phases have other rows
    origin = 0  # position of the row that batch 0 would begin with; of a phase
    minimal_pairs: EncodedPairs | None = None  # of eval.blimp
    retrieval: RetrievalProbe | None = None  # of eval.retrieval
    words: WordsOfLanguages | None = None  # that random tokens are drawn from; None = the vocabulary
    cumulative: np.ndarray | None = None  # shares of the vocabulary, for train.sampled_softmax; None = all alike

    def __init__(self, config: ConfigDict, tokenizer: Tokenizer, description: Description | None = None):
        self.config = config
        self.tokenizer = tokenizer
        self.bert_config = bert_config(config.model, tokenizer.vocab_size)
        data = config.data
        check_length(self.bert_config, data.sequence_length)
        if config.train.z_loss:
            self.objectives = {**self.objectives, "mlm_z_loss": config.train.z_loss}
        self.words = assumed_words(config, tokenizer.vocab_size) if data.random_words == "language" else None
        sampled_softmax.check(config.train.sampled_softmax, tokenizer.vocab_size)
        self.packing = Packing.from_config(data) if data.packing else None
        pairs_a_row, predictions = 1, min(data.max_predictions_per_sequence, data.sequence_length)
        if self.packing is not None:
            pairs_a_row, predictions = self.packing.sequences, self.packing.predictions
        model, rows, length = self.bert_config, config.train.batch_size, data.sequence_length
        self.tokens_per_step = rows * length
        positions = None if is_scanned(model) else predictions + pairs_a_row
        sampled = config.train.sampled_softmax
        of_step = replace(model, vocab_size=1 + sampled) if sampled else model
        self.flops_per_step = training_flops(of_step, rows, length, predictions, positions)
        self.bytes_per_step = training_bytes(model, rows, length, fused_attention=use_cudnn(model, training=True))

    @classmethod
    def with_data(cls, config: ConfigDict, source: Source | None) -> Self:
        if vectors := vector_source(config):
            instead = "leave it out, or use task=visual_pretraining"
            raise UserError(f"data.{vectors.kind}: task={config.task} reads text alone; {instead}")
        corpora = prepared_corpora(config, source)
        return cls.over(config, corpora[config.data.sequence_length], corpora)

    @classmethod
    def over(
        cls, config: ConfigDict, prepared: Prepared, corpora: Mapping[int, Prepared] = MappingProxyType({})
    ) -> Self:
        """Returns the task over a corpus that is prepared already, with `corpora` for the lengths of rows of phases."""
        task = cls(config, prepared.tokenizer, None)
        task.prepared, task.corpora = prepared, {config.data.sequence_length: prepared} | dict(corpora)
        if config.eval.blimp:
            pairs = sample(read_pairs(config.eval.blimp), config.eval.blimp_pairs, config.eval.seed)
            task.minimal_pairs = EncodedPairs(pairs, task.tokenizer, task.bert_config.max_position_embeddings)
        if config.eval.retrieval:
            most = min(config.data.sequence_length, task.bert_config.max_position_embeddings)
            layers = config.eval.retrieval_layer, task.bert_config.num_hidden_layers
            task.retrieval = RetrievalProbe(config.eval.retrieval, task.tokenizer, most, *layers)
        if task.words is not None and isinstance(prepared, Mixture):
            task.words = words_of_languages(prepared, languages_of(config))
        if config.train.sampled_softmax:
            task.cumulative = sampled_softmax.cumulative_shares(token_counts(prepared))
        task.steps_per_epoch = math.ceil(steps_of_an_epoch(config, task.corpora))
        return task

    @classmethod
    def without_data(cls, config: ConfigDict, tokenizer: Tokenizer, description: Description | None) -> Self:
        return cls(config, tokenizer, description)

    def batch_shapes(self, *, training: bool) -> dict[str, jax.ShapeDtypeStruct]:
        return shapes_of(pipeline.padding_batch(self.config, self.tokenizer, training=training))

    @classmethod
    def splits(cls, config: ConfigDict) -> tuple[str, ...]:
        return ("validation",)

    @classmethod
    def predicted_tokens(cls, config: ConfigDict) -> int:
        return config.data.max_predictions_per_sequence

    @classmethod
    def prepared_folders(cls, config: ConfigDict, position: Mapping[str, object]) -> list[Path]:
        return [Path(config.data.prepared) / name for name in str(position["dataset"]).split("+")]

    def init(self, rngs: nnx.Rngs) -> Model:
        config, trunk = self.bert_config, Bert(self.bert_config, rngs=rngs)
        return Model(trunk, {"mlm": MaskedLMHead(config, rngs=rngs), "nsp": LinearHead(config, 2, rngs=rngs)})

    def constants(self) -> Constants:
        if not self.config.train.sampled_softmax:
            return {}
        alike = sampled_softmax.cumulative_shares(np.zeros(self.bert_config.vocab_size))
        return {"cumulative_shares": alike if self.cumulative is None else self.cumulative}

    def fingerprints(self) -> dict[str, str]:
        found = {}
        for length, prepared in self.corpora.items():
            rows = "" if prepared is self.prepared else f" for rows of {length}"
            shards = [(shard["file"], shard["records"], shard["bytes"]) for shard in prepared.shards]
            found |= {f"prepared corpus{rows}": prepared.name, f"prepared shards{rows}": str(shards)}
        if self.minimal_pairs is not None:
            found["minimal pairs"] = hashlib.blake2b(repr(self.minimal_pairs.pairs).encode()).hexdigest()
        return found

    def phases(self) -> list[Phase]:
        """Phases whose rows have the same length read one after the other what the ones before have left; other rows
        are those of another dataset, which is read from its beginning."""
        found: list[Phase] = []
        read: dict[int, tuple[ConfigDict, int]] = {}  # by length of rows: the last phase's config, rows read until then
        for end, config in phase_ends(self.config):
            if config is self.config:
                return [Phase(end, self)]
            task, start = type(self)(config, self.tokenizer, None), found[-1].end if found else 0
            task.words = self.words
            length, row = config.data.sequence_length, 0
            if self.corpora:
                task.prepared = self.corpora[length]
                task.corpora = {length: task.prepared}
                if length in read:
                    row = pipeline.following_row(task.prepared, *read[length], config)
            task.origin = row - start * config.train.batch_size
            read[length] = config, task.origin + end * config.train.batch_size
            found.append(Phase(end, task))
        return found

    def train_batches(self, start_step, process_index, process_count) -> TrainBatches:
        position = {"start_step": start_step, "process_index": process_index, "process_count": process_count}
        return pipeline.train_batches(self.prepared, self.config, **position, origin=self.origin)

    def eval_batches(self, split, process_index, process_count) -> Iterator[dict[str, np.ndarray]]:
        """Yields the records; then, with the validation split, the texts of eval.retrieval, and the sentences of
        eval.blimp, a row per token."""
        process = {"process_index": process_index, "process_count": process_count}
        if self.prepared.num_records(split):
            yield from pipeline.eval_batches(self.prepared, self.config, split=split, **process)
        if split == "validation":
            size, length = self.config.eval.batch_size, self.config.data.sequence_length
            share = Share(size, **process, key="eval.batch_size")
            texts = self.retrieval.batches(size) if self.retrieval else ()
            sentences = self.minimal_pairs.batches(size, length) if self.minimal_pairs else ()
            for batch in itertools.chain(texts, sentences):
                own = share.of(len(batch["input_ids"]))
                yield {name: x[own] for name, x in batch.items()}

    def features(self, batch: Batch, key: Key[Array, ""]) -> Batch:
        """Masks tokens, unless the corpus was prepared with static masks, and adds the seed of train.sampled_softmax.

        In an evaluation every record has a key of its own, so that its masks depend on (eval.seed, record) alone and
        not on which other records share its batch.
        """
        if "masked_positions" not in batch and "vector_ids" not in batch:
            batch = batch | self._masked(batch, key)
        if self.config.train.sampled_softmax:
            batch = batch | sampled_softmax.seeds(key, len(batch["input_ids"]))
        return batch

    def _masked(self, batch: Batch, key: Key[Array, ""]) -> Batch:
        def mask(ids, sequences, languages, key, packing=None):
            of = None if self.words is None else (languages, self.words)
            return mask_tokens(ids, sequences, self.config.data, self.tokenizer, key, packing=packing, languages=of)

        def mask_record(ids, sequences, languages, record):
            own = None if languages is None else languages[None]
            masked = mask(ids[None], sequences[None], own, jax.random.fold_in(key, record))
            return {name: value[0] for name, value in masked.items()}

        rows = batch["input_ids"], batch["sequence_ids"], batch.get("language_ids")
        if "records" not in batch:
            return mask(*rows, key, self.packing if batch["first_tokens"].shape[1] > 1 else None)
        return jax.vmap(mask_record)(*rows, batch["records"])

    def weights(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        # The 1e-5 is the original's: it avoids a division by zero where nothing is masked.
        masked = jnp.sum(batch["masked_weights"]) + 1e-5
        return {
            "mlm_loss": masked,
            "mlm_z_loss": masked,
            "nsp_loss": jnp.maximum(jnp.sum(batch["next_sentence_weights"]), 1.0),
        }

    def sums(self, model: Model, batch: Batch, key: Key[Array, ""] | None, constants) -> Sums:
        return self.sums_of(self.outputs(model, batch, key), batch, key, constants)

    def outputs(self, model: Model, batch: Batch, key: Key[Array, ""] | None) -> dict[str, Array]:
        """Returns the logits of the masked tokens and of the pairs. Where train.sampled_softmax takes the place of the
        former, what it needs: the vectors of these tokens, the table and the bias."""
        masked, first = batch["masked_positions"], batch["first_tokens"]
        positions = jnp.concatenate([first, masked], axis=1)
        inputs = TrunkInputs.from_batch(batch)
        if not self.config.data.isolated:
            inputs = inputs._replace(sequence_ids=jnp.minimum(inputs.sequence_ids, 1))
        hidden = model.trunk.encode(inputs, key=key, places=positions).hidden
        of_pairs, of_masks = jnp.split(hidden, [first.shape[1]], axis=1)
        mlm, nsp = model.heads["mlm"], model.heads["nsp"]
        vectors = mlm.vectors(of_masks)
        # A single pair goes without its axis, over which XLA would add up the gradient of a bias in another order.
        vectors_of_pairs = model.trunk.pooled(of_pairs[:, 0] if first.shape[1] == 1 else of_pairs)
        outputs = {"nsp_logits": nsp.logits(vectors_of_pairs).reshape(*first.shape, 2)}
        table, bias = mlm.table_and_bias(model.trunk.embeddings.word.embedding[...])
        if key is not None and self.config.train.sampled_softmax:
            return outputs | {"vectors": vectors, "table": table, "bias": bias}
        decoder = padded_decoder(table, bias, backend.current().vocabulary_multiple)
        return outputs | {"mlm_logits": vocabulary_logits(vectors, *decoder, self.bert_config.dtype)}

    def sums_of(self, outputs: dict[str, Array], batch: Batch, key: Key[Array, ""] | None, constants) -> Sums:
        """Returns what `sums` does, of outputs that are there already."""
        data = outputs, batch, constants
        return pretraining_losses.sums(self.config, self.bert_config.vocab_size, *data, training=key is not None)

    def soft(self, outputs: dict[str, Array], batch: Batch) -> dict[str, list[Logits]]:
        """Returns the logits that a student learns from a teacher's, by objective."""
        return pretraining_losses.soft(self.config, outputs, batch)

    def evaluate(self, model, batch, constants) -> tuple[Sums, Rows]:
        if "text_ids" in batch:  # of minimal pairs
            rows: Rows = {"text_ids": batch["text_ids"], "log_probabilities": token_log_probabilities(model, batch)}
            return {}, rows
        if "vector_ids" in batch and self.retrieval is not None:
            return {}, {"vector_ids": batch["vector_ids"], "vectors": self.retrieval.vectors(model, batch)}
        return self.sums(model, batch, None, constants), {}

    def means(self, sums) -> dict[str, float]:
        metrics = mean_of_each({name: value for name, value in sums.items() if name != "label_counts"})
        if not metrics:  # an evaluation of minimal pairs alone
            return {}
        metrics["loss"] = sum(weight * metrics[name] for name, weight in self.objectives.items() if name in metrics)
        return metrics

    def evaluation(self, split, sums, rows, description) -> Evaluation:
        """Adds to the means:

        mlm_perplexity            exp(mlm_loss)
        <corpus>/mlm_loss         of one of config.corpora, and its mlm_accuracy
        unigram_entropy           loss in nats of the best guesser without context: entropy of the predicted tokens
        majority_accuracy         accuracy of always guessing the most frequent of them
        nsp_accuracy_low, _high   95 % Wilson interval
        retrieval                 accuracy on eval.retrieval, a mean; <name>/retrieval of one of its sets
        blimp, blimp/<phenomenon> accuracy on the minimal pairs of eval.blimp, a mean over paradigms
        """
        metrics = self.means(sums)
        if "mlm_loss" in metrics:
            metrics["mlm_perplexity"] = float(np.exp(metrics["mlm_loss"]))
            metrics |= guesser_scores(np.asarray(sums["label_counts"][0], np.float64))
            if "nsp_accuracy" in metrics:
                low, high = wilson_interval(metrics["nsp_accuracy"], float(sums["nsp_accuracy"][1]))
                metrics |= {"nsp_accuracy_low": low, "nsp_accuracy_high": high}
        if of_texts := [batch for batch in rows if "vector_ids" in batch]:
            assert self.retrieval is not None
            metrics |= self.retrieval.metrics(of_texts)
        if rows and self.minimal_pairs is not None:
            scored = ((one["text_ids"], one["log_probabilities"]) for one in rows if "text_ids" in one)
            scores = text_log_likelihoods(scored, len(self.minimal_pairs.texts))
            found = self.minimal_pairs.accuracies(scores)
            metrics |= {"blimp": found.overall} | {f"blimp/{name}": x for name, x in found.phenomena.items()}
        return Evaluation(split, metrics)

    def metric_names(self, split: str) -> tuple[str, ...]:
        pairs = self.minimal_pairs.pairs if self.minimal_pairs and split == "validation" else ()
        blimp = ("blimp", *sorted({f"blimp/{pair.phenomenon}" for pair in pairs})) if pairs else ()
        blimp += self.retrieval.metric_names() if self.retrieval and split == "validation" else ()
        if self.prepared.num_records(split) == 0:
            return blimp
        names = ("loss", "mlm_loss", "mlm_accuracy", "mlm_perplexity", "unigram_entropy", "majority_accuracy")
        if self.config.data.pairing != "none":
            names += ("nsp_loss", "nsp_accuracy", "nsp_accuracy_low", "nsp_accuracy_high")
        if isinstance(self.prepared, Mixture):
            found = [one.name for one in self.prepared.members if one.prepared.num_records(split)]
            names += tuple(f"{corpus}/{name}" for name in ("mlm_loss", "mlm_accuracy") for corpus in found)
        return (*names, "real_tokens", *blimp)
