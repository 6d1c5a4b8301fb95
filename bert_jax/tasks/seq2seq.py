"""Texts that are written for other texts: translations, summaries, replies.

A source is a row [CLS] turn [SEP] turn [SEP] …, one turn but in dialogues; a target is tokens and [SEP]. The model is a
writer (models/writer.py), which learns each token of the target from the source and the target's tokens before it.

An evaluation has two parts: the loss of every example, and what the model itself writes for the first of them.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from bert_jax.config import Json, UserError
from bert_jax.data.batching.batch_plan import BatchPlan
from bert_jax.data.batching.batches import by_item
from bert_jax.data.batching.items import Item
from bert_jax.data.labelled.examples import WritingExample
from bert_jax.data.labelled.languages import files_of
from bert_jax.data.labelled.parallel import source_in, writing_examples
from bert_jax.data.labelled.tables import Row
from bert_jax.data.tokenizers.tokenizer import Tokenizer, tokenizer_from_texts
from bert_jax.models.bert import Model, TrunkInputs
from bert_jax.models.cost import training_flops
from bert_jax.models.decoding.options import Decoding
from bert_jax.models.decoding.write import write
from bert_jax.models.writer import UniLM, Writer, WriterConfig
from bert_jax.tasks import sections, text_scores
from bert_jax.tasks.finetuning import FineTuning, Outputs
from bert_jax.tasks.losses import Logits, cross_entropy_sums
from bert_jax.tasks.task import Batch, Description, Evaluation, HostSums, Rows, Sums
from bert_jax.tasks.texts import encode_long, log_cut, log_pairs

_WRITTEN = "written:"  # begins the name of a split's sources that an evaluation writes for


class Seq2Seq(FineTuning):
    """Sources with targets. A batch without targets is one to write for."""

    head = "heads/mlm/"
    makes_vocabulary = True
    makes_texts = True
    percentages = ("bleu", "chrf", *text_scores.ROUGE)

    def __init__(self, config: ConfigDict, tokenizer: Tokenizer, description: Description | None):
        self.writer_config = WriterConfig.from_options(config.seq2seq, tokenizer)
        super().__init__(config, tokenizer, description)
        self.new_parameters = self.writer_config.new
        self.renewed_parameters = self.writer_config.renewed if description is None else ""
        self.copied_parameters = self.writer_config.copied

    def check(self) -> None:
        super().check()
        data = self.config.data
        if data.long_texts == "windows":
            raise UserError("data.long_texts=windows is not for task=seq2seq: choose head, tail, head+tail or error")
        if self.config.train.class_weights != "none":
            raise UserError("train.class_weights: the classes of task=seq2seq are tokens; leave it none")
        self.writer_config.check_room(self.bert_config, data.sequence_length, data.target_length, "data.target_length")
        self.decoding()

    @classmethod
    def new_tokenizer(cls, config: ConfigDict) -> Tokenizer:
        """Returns data.vocab_file, or a vocabulary learned from the sources and targets of data.train."""
        data = config.data
        if data.vocab_file or not data.train:
            return super().new_tokenizer(config)
        logging.info("learning a vocabulary from %s", data.train)
        columns = {"source": data.text, "target": data.label}
        parts = (writing_examples(files, **columns) for files in files_of(data.train, "data.train"))
        texts = (text for examples in parts for e in examples for text in (*e.source, e.target or ""))
        return tokenizer_from_texts(data, texts)

    def read(self, spec: str) -> Iterator[WritingExample]:
        return writing_examples(spec, source=self.config.data.text, target=self.config.data.label)

    def example(self, row: Row) -> WritingExample:
        return WritingExample(row.origin, source_in(row, self.config.data.text))

    def stand_in(self, text: str) -> WritingExample:
        return WritingExample("stand-in", (text,), text)

    def unlabelled(self, example: WritingExample) -> str:
        return "no target" if example.target is None else ""

    def learn(self) -> None:
        text_scores.check_package(self.config.seq2seq.scores)
        log_pairs(self.examples)
        if self.config.seq2seq.scores == "summary":
            text_scores.warn_of_letters([example.target for example in self.examples["train"][:1000]])

    def encode(self, examples: Sequence[WritingExample]) -> list[Item]:
        """Returns a source each, and the target of those that have one. A target that is cut does not end with [SEP]:
        the model is not to learn to stop there."""
        data, tokenizer = self.config.data, self.tokenizer
        turns = iter(tokenizer.encode_words([turn for example in examples for turn in example.source]))
        targets = tokenizer.encode_words([example.target or "" for example in examples])
        items, cut, cut_targets = [], 0, 0
        for example, target in zip(examples, targets, strict=True):
            source = next(turns)
            for _ in example.source[1:]:
                source = [*source, tokenizer.sep_id, *next(turns)]
            (part,), is_cut = encode_long(tokenizer, source, None, data, example.origin)
            cut += is_cut
            if not source or (example.target is not None and not target):
                what = "target" if source else "source"
                raise UserError(f"{example.origin}: the {what} has no token: correct or leave out this row")
            whole = [*target, tokenizer.sep_id]
            if len(whole) > data.target_length and data.long_texts == "error":
                raise UserError(
                    f"{example.origin}: a target of {len(whole)} tokens, over data.target_length "
                    f"{data.target_length}; raise it, or choose another data.long_texts, such as head"
                )
            cut_targets += len(whole) > data.target_length
            kept = None if example.target is None else np.asarray(whole[: data.target_length], np.int32)
            items.append(Item((part,), target=kept))
        log_cut(cut, len(examples), data)
        if cut_targets:
            message = "%d of %d targets (%.1f %%) lose tokens to data.target_length=%d"
            logging.warning(message, cut_targets, len(examples), 100 * cut_targets / len(examples), data.target_length)
        return items

    def make_plan(self) -> BatchPlan:
        """As `FineTuning.make_plan`; the sources that evaluations write for are splits of their own."""
        limits = {"validation": self.config.seq2seq.eval_examples or None, "test": None}
        for split, count in limits.items():
            if split in self.items:
                self.items[_WRITTEN + split] = [Item(item.parts) for item in self.items[split][:count]]
        return super().make_plan()

    def count_step(self, rows: float, length: float, targets: float) -> None:
        super().count_step(rows, length, targets)
        model, predictions = self.bert_config, round(targets)
        if self.writer_config.model == "unilm":  # a row has every target twice, once as [MASK]s, or some as [MASK]
            copies = 1 if self.writer_config.mask_rate else 2
            self.flops_per_step = training_flops(model, rows, length + copies * targets, predictions)
        else:
            size, layers = model.hidden_size, model.num_hidden_layers
            cross = 2 * size * size * (length + targets) + 2 * size * length * targets  # projections; attention
            stacks = ((length, 0), (targets, predictions))
            self.flops_per_step = sum(training_flops(model, rows, *stack) for stack in stacks)
            self.flops_per_step += 3 * 2 * rows * layers * cross

    @classmethod
    def predicted_tokens(cls, config: ConfigDict) -> int:
        return config.data.target_length

    def heads(self, rngs: nnx.Rngs) -> Mapping[str, nnx.Module]:
        return self.writer_config.heads(self.bert_config, rngs)

    def writer(self, model: Model) -> Writer:
        return self.writer_config.writer(model)

    def decoding(self, **given: object) -> Decoding:
        data = self.config.data
        found = Decoding.from_options(self.config.generate, self.tokenizer, data.target_length, **given)
        found.check_vocabulary(self.tokenizer.vocab_size)
        self.writer_config.check_room(self.bert_config, data.sequence_length, found.max_length, "generate.max_length")
        return found

    def fingerprints(self) -> dict[str, str]:
        """Leaves out the splits that follow from others."""
        return {name: digest for name, digest in super().fingerprints().items() if _WRITTEN not in name}

    def eval_batches(self, split, process_index, process_count) -> Iterator[dict[str, np.ndarray]]:
        for part in (split, _WRITTEN + split):
            yield from super().eval_batches(part, process_index, process_count)

    def features(self, batch: Batch, key: Key[Array, ""]) -> Batch:
        """Adds which tokens of the targets are shown as [MASK] in training, where not all are learned."""
        rate = self.writer_config.mask_rate
        if not rate or "target_ids" not in batch:
            return batch
        masked = jax.random.uniform(key, batch["target_ids"].shape) < rate
        return batch | {"masked": masked & (batch["target_weights"] > 0)}

    def outputs(self, model: Model, batch: Batch, key: Key[Array, ""] | None) -> Outputs:
        writer, source, targets = self.writer(model), TrunkInputs.from_batch(batch), batch["target_ids"]
        if "masked" in batch:
            assert isinstance(writer, UniLM)
            hidden = writer.predict_masked(source, targets, batch["masked"], key=key)
        else:
            hidden = writer.predict(source, targets, key=key)
        return {"logits": writer.logits(hidden)}

    def weights(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        return {"loss": jnp.maximum(jnp.sum(_token_weights(batch)), 1.0)}

    def losses(self, outputs: Outputs, batch: Batch) -> Sums:
        """Returns the loss and the cross-entropy of the tokens, which differ by train.label_smoothing, and the share of
        tokens that are the likeliest."""
        logits, labels, weights = outputs["logits"], batch["target_ids"], _token_weights(batch)
        sums = cross_entropy_sums("token", logits, labels, weights)
        smoothed = cross_entropy_sums("token", logits, labels, weights, smoothing=self.config.train.label_smoothing)
        return {"loss": smoothed["token_loss"], "nll": sums["token_loss"], "token_accuracy": sums["token_accuracy"]}

    def soft(self, outputs, batch) -> dict[str, list[Logits]]:
        return {"loss": [Logits(outputs["logits"], _token_weights(batch))]}

    def means(self, sums: HostSums) -> dict[str, float]:
        """Returns the perplexity of a token in place of its cross-entropy."""
        found = super().means(sums)
        return found | {"perplexity": float(np.exp(min(found.pop("nll"), 500.0)))} if "nll" in found else found

    def evaluate(self, model, batch, constants) -> tuple[Sums, Rows]:
        batch = {name: x for name, x in batch.items() if name != "masked"}
        if "target_ids" in batch:
            return self.sums_of(self.outputs(model, batch, None), batch, None, constants), {}
        decoding, keys = self.decoding(), None
        if decoding.temperature:
            seed = jax.random.key(self.config.generate.seed)
            keys = jax.vmap(lambda number: jax.random.fold_in(seed, number))(batch["item_ids"][:, 0])
        written = write(self.writer(model), TrunkInputs.from_batch(batch), decoding, keys)
        return {}, {"written": written.tokens[:, :1]} | {name: batch[name] for name in ("item_ids", "first_tokens")}

    def evaluation(self, split, sums, rows, description) -> Evaluation:
        items = self.items[_WRITTEN + split]
        examples = self.examples[split][: len(items)]
        predictions = self.predict(examples, items, by_item(rows, items))
        score = partial(self.score, description=description)
        scores = self.languages.scores(split, examples, predictions, score)
        return Evaluation(split, self.means(sums) | scores, predictions)

    def predict(self, examples, items, outputs) -> list[Json]:
        """Returns for each source the `text` that is written for it."""
        return [{"text": self._text(tokens.tolist())} for tokens in outputs["written"]]

    def score(self, examples, predictions, description) -> dict[str, float]:
        """Returns the share of texts that equal their targets, as the vocabulary writes them, and the scores of
        seq2seq.scores."""
        texts = [prediction["text"] for prediction in predictions]
        exact = np.mean([text == self._as_written(e.target) for text, e in zip(texts, examples, strict=True)])
        found = self.scorer(texts, [example.target for example in examples])
        if found.signature:
            logging.info("%d texts written: %s", len(texts), found.signature)
        return {"exact_match": float(exact)} | found.scores

    def score_names(self, split: str) -> tuple[str, ...]:
        return "token_accuracy", "perplexity", "exact_match", *text_scores.KINDS[self.config.seq2seq.scores]

    @cached_property
    def scorer(self) -> text_scores.Scorer:
        """The scorer of written texts. BLEU and chrF see no case where the vocabulary has none."""
        options, letters = self.config.seq2seq, self.tokenizer.encode_words([*"aAдДαΑ"])
        pairs = zip(letters[::2], letters[1::2], strict=True)
        known = [small == capital for small, capital in pairs if self.tokenizer.unk_id not in small]
        sees_no_case = bool(known) and all(known)
        return text_scores.Scorer(options.scores, tokenizer=options.bleu_tokenizer, lowercase=sees_no_case)

    def report_sections(self, evaluation: Evaluation) -> list[sections.Section]:
        texts = [prediction["text"] for prediction in evaluation.predictions]
        return sections.writing(self.examples[evaluation.split][: len(texts)], texts, self.scorer)

    def _text(self, tokens: list[int]) -> str:
        end = self.tokenizer.sep_id
        return self.tokenizer.decode(tokens[: tokens.index(end)] if end in tokens else tokens)

    def _as_written(self, text: str) -> str:
        """Returns the text as the vocabulary gives it back: perhaps without capitals, with other spaces."""
        return self.tokenizer.decode(self.tokenizer.encode_words([text])[0])


def _token_weights(batch: Batch) -> Float[Array, "B T"]:
    weights = batch["target_weights"]
    return jnp.where(batch["masked"], weights, 0.0) if "masked" in batch else weights
