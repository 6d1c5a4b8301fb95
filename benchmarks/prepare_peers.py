"""What `prepare.py` is compared with. Each function runs in a process of its own and gives the seconds it took, without
the imports, and the number of token ids it wrote."""

import os
import time
from itertools import chain
from pathlib import Path
from random import Random

from bert_jax.data.pretraining.original import Instance, OriginalSettings, create_instances
from bert_jax.data.text.corpus import open_corpus, split_sentences
from bert_jax.data.tokenizers.original_wordpiece import OriginalWordPiece
from bert_jax.data.tokenizers.tokenizer import load_tokenizer
from experiments import base

DUPE_FACTOR = 5  # as in the README of google-research/bert


def original(files: str, kind: str, vocabulary: Path, length: int, workers: int, folder: Path) -> tuple[float, int]:
    """create_pretraining_data.py: plain Python, one process; sentences are split for it beforehand, untimed."""
    from tensorflow_datasets.proto.tf_example_generated_pb2 import Example  # pyright: ignore[reportAttributeAccessIssue]

    if workers != 1:
        raise ValueError("the original has one process")
    data = base.get_config().data
    data.corpus, data.files = kind, files
    sentences = [split_sentences(document) for document in open_corpus(data).documents()]
    tokenizer = load_tokenizer(vocabulary)
    tokens = [tokenizer.token(index) for index in range(tokenizer.vocab_size)]
    ids = {token: index for index, token in enumerate(tokens)}
    settings = OriginalSettings(length, data.max_predictions_per_sequence, DUPE_FACTOR, 0.1, 0.15, whole_word=False)
    written = 0

    def example(instance: Instance) -> bytes:
        """Padded, as the original writes them."""
        nonlocal written
        written += len(instance.tokens)
        feature = Example().features
        count, room = len(instance.tokens), settings.max_predictions - len(instance.labels)
        values = {
            "input_ids": [ids[token] for token in instance.tokens] + [0] * (length - count),
            "input_mask": [1] * count + [0] * (length - count),
            "segment_ids": instance.segment_ids + [0] * (length - count),
            "masked_lm_positions": instance.positions + [0] * room,
            "masked_lm_ids": [ids[token] for token in instance.labels] + [0] * room,
            "next_sentence_labels": [int(instance.is_random_next)],
        }
        for name, numbers in values.items():
            feature.feature[name].int64_list.value.extend(numbers)
        feature.feature["masked_lm_weights"].float_list.value.extend([1.0] * len(instance.labels) + [0.0] * room)
        return Example(features=feature).SerializeToString()

    started = time.perf_counter()
    rules = OriginalWordPiece(ids, tokenizer.unk_id, lowercase=True, strip_accents=True, split_cjk=True)
    documents = [[[tokens[i] for i in rules.pieces(line)[0]] for line in document] for document in sentences]
    examples = create_instances(documents, tokens, Random(12345), settings, store=example)
    with open(folder / "instances", "wb") as file:
        for record in examples:
            file.write(len(record).to_bytes(8, "little") + record)
    return time.perf_counter() - started, written


def datasets(files: str, kind: str, vocabulary: Path, length: int, workers: int, folder: Path) -> tuple[float, int]:
    """As Transformers' run_mlm.py: lines tokenised in batches by the Rust tokenizer, joined, cut into rows.

    Does less: a line is a line, no sentences, no documents, no next sentences; <doc> tags stay in.
    """
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache"), "TOKENIZERS_PARALLELISM": "false"}
    import datasets as library
    import transformers

    library.disable_progress_bars()
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(vocabulary))

    def encode(batch):
        return tokenizer(batch["text"], return_special_tokens_mask=True)

    def group(batch):
        joined = {name: list(chain.from_iterable(lists)) for name, lists in batch.items()}
        total = len(joined["input_ids"]) // length * length
        return {name: [row[i : i + length] for i in range(0, total, length)] for name, row in joined.items()}

    started = time.perf_counter()
    lines = library.load_dataset("text", data_files=files, split="train", num_proc=workers)
    lines = lines.filter(lambda text: text and not text.isspace(), input_columns="text", num_proc=workers)
    encoded = lines.map(encode, batched=True, num_proc=workers, remove_columns=["text"])
    rows = encoded.map(group, batched=True, num_proc=workers)
    rows.save_to_disk(str(folder / "rows"), num_proc=workers)
    return time.perf_counter() - started, len(rows) * length
