"""docs/tutorials/…/from_transformers.md: both columns run from top to bottom, and give the same where they say so."""

import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bert_jax.data.tokenizers.wordpiece import make_wordpiece

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorials" / "en" / "from_transformers.md"
PEER = all(importlib.util.find_spec(name) for name in ("torch", "transformers", "accelerate"))
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = "the a dog man plays barks very good bad film ! . ##s"
TAGS = ["O", "B-PER", "B-LOC"]  # no I-, of which those that continue nothing become B- here


def write_models() -> None:
    """Writes small models of Transformers with random weights, under the names that the page uses."""
    import torch
    import transformers

    tokens = [*SPECIAL, *VOCABULARY.split()]
    kinds = {
        "bert-base-uncased": ("BertForPreTraining", []),
        "reviews": ("BertForSequenceClassification", ["negative", "positive"]),
        "ner": ("BertForTokenClassification", TAGS),
    }
    for name, (kind, labels) in kinds.items():
        names = dict(enumerate(labels)) or None
        config = transformers.BertConfig(
            vocab_size=len(tokens),
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=128,
            id2label=names,
            label2id=names and {label: i for i, label in names.items()},
        )
        torch.manual_seed(0)
        model = getattr(transformers, kind)(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.1)
        model.save_pretrained(name)
        make_wordpiece(tokens, "test", True, None, True).save(Path(name))
    texts = [
        "a good film!",
        "the very good dog",
        "good.",
        "the man plays a film",
        "a bad film!",
        "very bad",
        "bad dogs.",
    ]
    rows = "".join(f"{text},{int('bad' not in text)}\n" for text in [*texts, "the film barks"])
    Path("train.csv").write_text("review,stars\n" + rows)


def test_each_part_of_the_page_is_read():
    parts = list(steps(PAGE.read_text(encoding="utf-8")))
    assert len([part for part in parts if part[0] == "row"]) > 30
    assert [part[0] for part in parts if part[0] != "row"] == ["bert_jax", "options", "Transformers", "bert_jax"]


@pytest.mark.slow
@pytest.mark.optimized
@pytest.mark.parity
@pytest.mark.skipif(not PEER, reason="needs PyTorch, Transformers and accelerate: the extra 'parity'")
@pytest.mark.filterwarnings("default")  # of Transformers and PyTorch about themselves
def test_both_columns_run_and_give_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_models()
    left: dict[str, Any] = {}
    right: dict[str, Any] = {}
    compared = []
    for kind, *code in steps(PAGE.read_text(encoding="utf-8")):
        if kind == "options":
            from transformers import TrainingArguments

            options = {name: eval(value) for name, value in (line.split("=", 1) for line in code[0])}
            left["arguments"] = TrainingArguments("out", use_cpu=True, save_strategy="no", **options)
            exec("\n".join(code[1]), right)
            right["config"].mesh.data = 1
            continue
        if kind in ("Transformers", "row"):
            exec(code[0], left)
        if kind in ("bert_jax", "row"):
            exec(code[-1], right)
        if kind == "row":
            for name in assigned(code[0]) & assigned(code[1]) - {"text", "pair", "texts", "out", "found"}:
                assert_same(left[name], right[name], name)
                compared.append(name)
    assert_same(left["loss"], right["loss"], "loss")
    assert left["loss"] < 0.68  # something was learned
    assert len(compared) >= 24


def steps(page: str):
    """Yields ("row", left, right) of each row of a table, ("options", left lines, right lines) of the table of options,
    and ("Transformers" or "bert_jax", code) of each block of code."""
    pattern = r"```python\n(.*?)```|^\| ([^\n]*) \|\n\|---\|---\|\n((?:\|[^\n]*\|\n)+)"
    for match in re.finditer(pattern, page, re.MULTILINE | re.DOTALL):
        block, header, body = match.groups()
        if block:
            yield ("Transformers" if block.startswith("# Transformers") else "bert_jax"), block
            continue
        rows = [row[1:-1].split("|") for row in body.splitlines()]
        codes = [["\n".join(re.findall(r"`([^`]+)`", cell)) for cell in row] for row in rows]
        assert all(len(row) == 2 for row in codes), header
        if header.startswith("`TrainingArguments`"):
            yield "options", [row[0] for row in codes], [row[1] for row in codes]
        else:
            yield from (("row", *row) for row in codes)


def assigned(code: str) -> set[str]:
    names = re.findall(r"^(?:with .*: )?\[?(\w+(?:, \w+)*)\]? = ", code, re.MULTILINE)
    return {name for group in names for name in group.split(", ")}


def assert_same(theirs: Any, ours: Any, name: str) -> None:
    if isinstance(theirs, str | int) or (isinstance(theirs, list) and isinstance(theirs[0], str | int)):
        assert theirs == ours, name
    elif isinstance(theirs, Sequence) and not isinstance(theirs, Mapping) and hasattr(theirs[0], "shape"):
        assert len(theirs) == len(ours) > 1
        for one, other in zip(theirs, ours, strict=True):
            assert_same(one, other, name)
    else:
        np.testing.assert_allclose(np.asarray(theirs), np.asarray(ours), atol=1e-4, err_msg=name)
        assert np.abs(np.asarray(ours)).max() > 1e-2  # that zeros agree would say nothing
