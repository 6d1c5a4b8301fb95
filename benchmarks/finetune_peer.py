"""The other side of benchmarks/finetune.py: Hugging Face Trainer on PyTorch, in a process of its own.

    python benchmarks/finetune_peer.py job.json

Set up as its users are advised to on a CPU: rows padded to the longest of their batch, batches of like length, bfloat16
by autocast. Preprocessing and decoding are those of Transformers' examples run_glue, run_ner and run_qa in short.
Reads what `finetune.py` writes; writes {"predictions": one a row, "seconds": {part: seconds}} to the job's `output`.
"""

import itertools
import json
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from finetune_data import Row, read_file

IGNORED = -100  # label without loss
OVERLAP = 128  # tokens that neighbouring windows of a context share
N_BEST, MAX_ANSWER_TOKENS = 20, 30


def main(job: dict[str, Any]) -> None:
    marks = {"start": time.perf_counter()}
    transformers.set_seed(job["seed"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(job["checkpoint"])
    side = {"classification": Classification, "tagging": Tagging, "span_qa": SpanQA}[job["family"]](job, tokenizer)
    train = side.features(read_file(Path(job["train"])), is_training=True)
    rows = read_file(Path(job["validation"]))
    validation = side.features(rows, is_training=False)
    model = side.model()
    marks["prepare"] = time.perf_counter()
    trainer = transformers.Trainer(
        model, _arguments(job), data_collator=side.collator, train_dataset=train, processing_class=tokenizer
    )
    trainer.train()
    marks["train"] = time.perf_counter()
    trainer.save_model()
    marks["save"] = time.perf_counter()
    predictions = side.decode(rows, validation, _logits(trainer, validation))
    marks["evaluate"] = time.perf_counter()
    seconds = {name: marks[name] - marks[before] for before, name in itertools.pairwise(marks)}
    steps = trainer.state.global_step
    Path(job["output"]).write_text(json.dumps({"predictions": predictions, "seconds": seconds, "steps": steps}))


def _arguments(job: dict[str, Any]) -> transformers.TrainingArguments:
    return transformers.TrainingArguments(
        output_dir=job["workdir"],
        seed=job["seed"],
        num_train_epochs=job["epochs"],
        per_device_train_batch_size=job["batch"],
        per_device_eval_batch_size=job["batch"],
        learning_rate=job["learning_rate"],
        lr_scheduler_type="linear",
        warmup_steps=0.1,  # a share, below 1
        weight_decay=0.01,
        max_grad_norm=1.0,
        adam_epsilon=1e-6,  # as experiments/base.py has it
        train_sampling_strategy="group_by_length",
        bf16=job["dtype"] == "bf16",
        use_cpu=True,
        eval_strategy="no",
        save_strategy="no",
        report_to="none",
        logging_steps=100,
        disable_tqdm=True,
    )


def _logits(trainer: transformers.Trainer, features: list[Row]) -> list[Any]:
    """One array (or tuple of arrays) a feature, in their order; computed in the order of their length, the longest
    first. The sampler that groups by length would shuffle them."""
    trainer.args.train_sampling_strategy = "random"
    order = sorted(range(len(features)), key=lambda i: -len(features[i]["input_ids"]))
    inputs = [{name: features[i][name] for name in _MODEL_INPUTS if name in features[i]} for i in order]
    output: Any = trainer.predict(inputs).predictions  # type: ignore[arg-type]
    arrays = output if isinstance(output, tuple) else (output,)
    found: list[Any] = [None] * len(features)
    for place, i in enumerate(order):
        found[i] = tuple(array[place] for array in arrays) if isinstance(output, tuple) else arrays[0][place]
    return found


_MODEL_INPUTS = ("input_ids", "token_type_ids", "attention_mask")


class Classification:
    def __init__(self, job: dict[str, Any], tokenizer: Any):
        self.job, self.tokenizer, self.labels = job, tokenizer, job["labels"]
        self.collator = transformers.DataCollatorWithPadding(tokenizer)
        self.numbers = {label: i for i, label in enumerate(self.labels)}

    def model(self) -> Any:
        problems = {
            "single": "single_label_classification",
            "multi": "multi_label_classification",
            "regression": "regression",
        }
        return transformers.AutoModelForSequenceClassification.from_pretrained(
            self.job["checkpoint"],
            num_labels=max(1, len(self.labels)),
            problem_type=problems[self.job["label_kind"]],
        )

    def features(self, rows: list[Row], is_training: bool) -> list[Row]:
        texts = [[row[name] for row in rows] for name in ("text", "text_pair") if name in rows[0]]
        encoded = self.tokenizer(*texts, truncation=True, max_length=self.job["length"])
        features = _as_rows(encoded, len(rows))
        if is_training:
            for feature, row in zip(features, rows, strict=True):
                feature["labels"] = self._target(row["label"])
        return features

    def decode(self, rows: list[Row], features: list[Row], logits: list[Any]) -> list[Any]:
        values = np.stack(logits).astype(np.float64)
        if self.job["label_kind"] == "regression":
            return values[:, 0].tolist()
        if self.job["label_kind"] == "multi":
            return (1 / (1 + np.exp(-values))).tolist()
        return [self.labels[i] for i in values.argmax(axis=1)]

    def _target(self, label: Any) -> Any:
        if self.job["label_kind"] == "multi":
            return [float(name in label) for name in self.labels]
        return label if self.job["label_kind"] == "regression" else self.numbers[label]


class Tagging:
    """A word's first piece has its label; words that a cut leaves out are predicted as "O"."""

    def __init__(self, job: dict[str, Any], tokenizer: Any):
        self.job, self.tokenizer, self.labels = job, tokenizer, job["labels"]
        self.collator = transformers.DataCollatorForTokenClassification(tokenizer)
        self.numbers = {label: i for i, label in enumerate(self.labels)}

    def model(self) -> Any:
        return transformers.AutoModelForTokenClassification.from_pretrained(
            self.job["checkpoint"], num_labels=len(self.labels)
        )

    def features(self, rows: list[Row], is_training: bool) -> list[Row]:
        words = [row["words"] for row in rows]
        encoded = self.tokenizer(words, is_split_into_words=True, truncation=True, max_length=self.job["length"])
        features = _as_rows(encoded, len(rows))
        for i, (feature, row) in enumerate(zip(features, rows, strict=True)):
            at = encoded.word_ids(i)
            is_first = [word is not None and word != before for before, word in zip([None, *at], at, strict=False)]
            if is_training:
                feature["labels"] = [
                    self.numbers[row["tags"][word]] if first else IGNORED
                    for word, first in zip(at, is_first, strict=True)
                ]
            else:
                feature["first_pieces"] = [(word, place) for place, word in enumerate(at) if is_first[place]]
        return features

    def decode(self, rows: list[Row], features: list[Row], logits: list[Any]) -> list[Any]:
        predictions = []
        for row, feature, values in zip(rows, features, logits, strict=True):
            tags = ["O"] * len(row["words"])
            for word, place in feature["first_pieces"]:
                tags[word] = self.labels[int(values[place].argmax())]
            predictions.append(tags)
        return predictions


class SpanQA:
    def __init__(self, job: dict[str, Any], tokenizer: Any):
        self.job, self.tokenizer = job, tokenizer
        self.collator = transformers.DataCollatorWithPadding(tokenizer)

    def model(self) -> Any:
        return transformers.AutoModelForQuestionAnswering.from_pretrained(self.job["checkpoint"])

    def features(self, rows: list[Row], is_training: bool) -> list[Row]:
        encoded = self.tokenizer(
            [row["question"].lstrip() for row in rows],
            [row["context"] for row in rows],
            truncation="only_second",
            max_length=self.job["length"],
            stride=OVERLAP,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        features = _as_rows(encoded, len(encoded["input_ids"]))
        for i, feature in enumerate(features):
            row = encoded["overflow_to_sample_mapping"][i]
            in_context = [sequence == 1 for sequence in encoded.sequence_ids(i)]
            offsets = encoded["offset_mapping"][i]
            if is_training:
                start, end = _target_span(rows[row]["answers"], offsets, in_context)
                feature |= {"start_positions": start, "end_positions": end}
            else:
                kept = [span if inside else None for span, inside in zip(offsets, in_context, strict=True)]
                feature |= {"row": row, "offsets": kept}
        return features

    def decode(self, rows: list[Row], features: list[Row], logits: list[Any]) -> list[Any]:
        best: dict[int, tuple[float, str]] = defaultdict(lambda: (-np.inf, ""))
        for feature, (starts, ends) in zip(features, logits, strict=True):
            row, offsets = feature["row"], feature["offsets"]
            for start in np.argsort(-starts[: len(offsets)])[:N_BEST]:
                for end in np.argsort(-ends[: len(offsets)])[:N_BEST]:
                    if offsets[start] is None or offsets[end] is None or not 0 <= end - start < MAX_ANSWER_TOKENS:
                        continue
                    score = float(starts[start] + ends[end])
                    if score > best[row][0]:
                        best[row] = score, rows[row]["context"][offsets[start][0] : offsets[end][1]]
        return [best[i][1] for i in range(len(rows))]


def _as_rows(encoded: Any, count: int) -> list[Row]:
    return [{name: encoded[name][i] for name in _MODEL_INPUTS} for i in range(count)]


def _target_span(answers: Row, offsets: list[tuple[int, int]], in_context: list[bool]) -> tuple[int, int]:
    """Tokens of the first answer; (0, 0), [CLS], where the window does not show all of it."""
    start, end = answers["answer_start"][0], answers["answer_start"][0] + len(answers["text"][0])
    inside = [i for i, is_context in enumerate(in_context) if is_context]
    if not inside or offsets[inside[0]][0] > start or offsets[inside[-1]][1] < end:
        return 0, 0
    first = max(i for i in inside if offsets[i][0] <= start)
    last = min(i for i in inside if offsets[i][1] >= end)
    return first, last


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
