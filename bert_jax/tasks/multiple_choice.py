"""Which of several endings continues a context: SWAG, CODAH and similar sets (Devlin et al. 2018, section 4.4).

Every choice is a row, [CLS] context [SEP] start of the ending, choice [SEP]. The head gives each row one number, and a
softmax over the rows of a question gives the probabilities of its choices.
"""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Key

from bert_jax.config import Json, UserError
from bert_jax.data.batching.items import Item
from bert_jax.data.labelled.columns import choice_examples, names_of, text_in, texts_in
from bert_jax.data.labelled.examples import ChoiceExample, TextExample
from bert_jax.data.labelled.tables import Row
from bert_jax.models.bert import Model
from bert_jax.models.features import sequence_vectors
from bert_jax.models.heads import Classifier
from bert_jax.tasks import sections
from bert_jax.tasks.finetuning import FineTuning, Outputs
from bert_jax.tasks.losses import Logits, check_finite, cross_entropy_sums, softmax
from bert_jax.tasks.task import Batch, Evaluation, Sums
from bert_jax.tasks.texts import encode_long, log_cut, log_splits


class MultipleChoice(FineTuning):
    """Questions with choices, which may differ in their number.

    data.text is the context, data.text_pair the common start of all endings ("" = none), data.choices the endings, and
    data.label the number of the right one, from 0.
    """

    head = "heads/classifier/"
    has_classes = False
    reads_features = True
    reads_vectors = True

    @property
    def input_example(self) -> Json:
        names = names_of("data.choices", self.config.data.choices)
        return super().input_example | ({names[0]: ["a", "a"]} if len(names) == 1 else dict.fromkeys(names, "a"))

    def check(self) -> None:
        super().check()
        if not self.config.data.choices:
            raise UserError("data.choices is empty: name the columns with the choices, comma-separated")
        if self.config.data.long_texts == "windows":
            raise UserError("data.long_texts=windows is not for multiple choice: choose head, tail, head+tail or error")

    def read(self, spec: str) -> Iterator[ChoiceExample]:
        data = self.config.data
        return choice_examples(
            spec, context=data.text, ending_start=data.text_pair, choices=data.choices, label=data.label
        )

    def example(self, row: Row) -> ChoiceExample:
        data = self.config.data
        names = names_of("data.choices", data.choices)
        choices = [text_in(row, name) for name in names] if len(names) > 1 else texts_in(row, names[0])
        if not choices:
            raise UserError(f"{row.origin}: column '{names[0]}' has no choices; add them to this row")
        start = text_in(row, data.text_pair) if data.text_pair else ""
        return ChoiceExample(row.origin, text_in(row, data.text), start, tuple(choices))

    def stand_in(self, text: str) -> ChoiceExample:
        """Four choices, as SWAG has, if data.choices is one column of lists."""
        names = names_of("data.choices", self.config.data.choices)
        return ChoiceExample("stand-in", text, "", (text,) * (len(names) if len(names) > 1 else 4))

    def learn(self) -> None:
        log_splits({split: [_as_text(e) for e in examples] for split, examples in self.examples.items()})

    def encode(self, examples: Sequence[ChoiceExample]) -> list[Item]:
        data = self.config.data
        contexts = self.tokenizer.encode_words([example.context for example in examples])
        endings = iter(self.tokenizer.encode_words([text for example in examples for text in _endings(example)]))
        items, cut = [], 0
        for example, context in zip(examples, contexts, strict=True):
            rows = [encode_long(self.tokenizer, context, next(endings), data, example.origin) for _ in example.choices]
            cut += any(dropped for _, dropped in rows)
            parts = tuple(part for (part,), _ in rows)
            items.append(Item(parts, {"labels": np.asarray(example.label or 0, np.int32)}))
        log_cut(cut, len(examples), data)
        return items

    def heads(self, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        return {"classifier": Classifier(self.bert_config, 1, rngs=rngs, inputs=self.head_features.size)}

    def outputs(self, model: Model, batch: Batch, key: Key[Array, ""] | None) -> Outputs:
        trunk_key, head_key = (None, None) if key is None else jax.random.split(key)
        vectors = sequence_vectors(model, batch, trunk_key)
        logits = model.heads["classifier"].logits(vectors, key=head_key)[:, :, 0]
        return {"logits": jnp.where(batch["part_weights"] > 0, logits, jnp.finfo(jnp.float32).min)[:, None]}

    def losses(self, outputs: Outputs, batch: Batch) -> Sums:
        sums = cross_entropy_sums("choice", outputs["logits"], batch["labels"], batch["item_weights"])
        return {"loss": sums["choice_loss"], "choice_accuracy": sums["choice_accuracy"]}

    def soft(self, outputs, batch) -> dict[str, list[Logits]]:
        return {"loss": [Logits(outputs["logits"], batch["item_weights"])]}

    def predict(self, examples, items, outputs) -> list[Json]:
        """Returns for each example `choice`, the number of the most probable one, its `text` and `probability`, and the
        `probabilities` of all."""
        check_finite(outputs)
        predictions = []
        for example, row in zip(examples, outputs["logits"], strict=True):
            given = softmax(row[: len(example.choices)])
            choice = int(given.argmax())
            prediction = {"choice": choice, "text": example.choices[choice], "probability": float(given[choice])}
            predictions.append(prediction | {"probabilities": given.tolist()})
        return predictions

    def score(self, examples, predictions, description) -> dict[str, float]:
        right = [p["choice"] == example.label for example, p in zip(examples, predictions, strict=True)]
        return {"accuracy": float(np.mean(right))}

    def report_sections(self, evaluation: Evaluation) -> list[sections.Section]:
        return sections.choices(self.examples[evaluation.split], evaluation.predictions)

    def score_names(self, split: str) -> tuple[str, ...]:
        return "choice_accuracy", "accuracy"


def _endings(example: ChoiceExample) -> list[str]:
    return [f"{example.ending_start} {choice}" if example.ending_start else choice for choice in example.choices]


def _as_text(example: ChoiceExample) -> TextExample:
    """Returns the example as a text, for the data report: it finds questions that occur twice or with two answers."""
    return TextExample(example.origin, example.context, "\n".join(_endings(example)), str(example.label))
