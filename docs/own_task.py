"""A task of your own in one file: star ratings as ordered classes, learned as "more than 1 star?", "more than 2?", …

    python -m bert_jax.main --config=docs/own_task.py --config.init_from=ckpts/bert-base --workdir=runs/stars \\
        --config.data.train=train.csv --config.data.validation=dev.csv \\
        --config.data.text=review --config.data.label=stars

K ordered classes are K − 1 questions, each with a sigmoid (Frank and Hall 2001): predicting 4 where 5 is right costs
less than predicting 1. Reading, encoding and labels are those of text classification.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bert_jax.models.heads import Classifier
from bert_jax.tasks.classification import Classification
from bert_jax.tasks.finetuning import Outputs
from bert_jax.tasks.task import Batch, Sums
from experiments import finetune


class Ordinal(Classification):
    """Labels are ordered as they sort; label number k means that the first k questions are answered with yes."""

    def classifier(self, rngs: nnx.Rngs) -> Classifier:
        return Classifier(self.bert_config, len(self.labels) - 1, rngs=rngs, inputs=self.head_features.size)

    def losses(self, outputs: Outputs, batch: Batch) -> Sums:
        logits = outputs["logits"]
        questions = jnp.arange(logits.shape[-1])[None, None]
        yes = (batch["labels"][:, :, None] > questions).astype(jnp.float32)
        loss = jnp.sum(jax.nn.softplus(logits) - yes * logits, axis=-1)  # one cross-entropy per question, in nats
        weights = batch["item_weights"]
        return {"loss": (jnp.sum(loss * weights), jnp.sum(weights))}

    def predict(self, examples, items, outputs):
        yes = 1 / (1 + np.exp(-np.asarray(outputs["logits"], np.float64)))
        shares = np.clip(-np.diff(yes, axis=1, prepend=1, append=0), 0, None)
        shares /= shares.sum(axis=1, keepdims=True)
        predictions = zip((yes > 0.5).sum(axis=1), shares.tolist(), strict=True)  # JSON knows no NumPy
        return [
            {"label": self.labels[k], "probability": p[k], "probabilities": dict(zip(self.labels, p, strict=True))}
            for k, p in predictions
        ]

    def score(self, examples, predictions, description):
        gold, given = self.numbers(examples, predictions)
        error = float(np.mean(np.abs(gold - given)))
        return super().score(examples, predictions, description) | {"mean_absolute_error": error}

    def score_names(self, split):
        return *super().score_names(split), "mean_absolute_error"


def get_config():
    """The best checkpoint is the one with the highest accuracy; errors in stars are logged beside it."""
    config = finetune.get_config("docs.own_task.Ordinal", "accuracy")
    config.data.label_kind = "single"
    return config
