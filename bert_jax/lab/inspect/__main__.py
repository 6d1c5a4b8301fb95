"""Looks inside a model and writes one page that loads nothing.

    python -m bert_jax.lab.inspect runs/a --text="The bank of the river" --output=inspect.html
    python -m bert_jax.lab.inspect runs/sst2 --text="a dull film" --what=gradient --target=negative
    python -m bert_jax.lab.inspect runs/a --tagged=train.conll --what=probes

The model is whatever `bert_jax.load` opens: a workdir, a checkpoint, a folder of Hugging Face or TensorFlow. Without
--what the page has everything that the model and the files given allow, and says what is missing.
"""

import logging
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from bert_jax.command import Flags, Parser, run_command
from bert_jax.config import UserError
from bert_jax.files import write_atomically

# What a page can have, in its order → what it needs.
PARTS = {
    "attention": "text",
    "rollout": "text",
    "gradient": "text",
    "loss": "text",
    "sources": "text",
    "neighbours": "text",
    "patches": "media",
    "projection": "sentences",
    "probes": "tagged",
    "heads": "",
}
_MOST_TOKENS = 128  # of a text, unless --max_length says otherwise: what a page can show and a reader can survey
_MOST_WORDS = 40  # whose neighbours are listed


def main(argv: list[str]) -> int:
    """Writes the page. Heavy imports wait until the flags are known to be right."""
    parser = Parser("bert_jax.lab.inspect MODEL", __doc__ or "")
    flag = parser.flag
    flag("text", "", "text to look at; [MASK] in it is a masked token")
    flag(
        "text_pair",
        "",
        "second text, for a model of pairs; context of the question; choices with | between them; what is written",
    )
    flag("media", "", "picture, sound or features that the text goes with, for patches", metavar="FILE")
    flag("what", "", f"parts of the page, comma-separated: {', '.join(PARTS)} [all that can be made]", metavar="PARTS")
    flag("output", "inspect.html", "the page", metavar="FILE.html")
    flag("target", "", "class, tag, choice, start of the answer or masked word that gradient explains [the likeliest]")
    flag("max_length", 0, f"tokens of the text that are read [{_MOST_TOKENS} or what the model takes]", least=0)
    flag(
        "sentences",
        "",
        "texts for projection, neighbours in context and heads: one per line, CSV, TSV, JSONL",
        metavar="FILE",
    )
    flag("sentence", "text", "their column", metavar="COLUMN")
    flag("label", "", "column of the labels that colour a projection", metavar="COLUMN")
    flag("projection", "pca", "how vectors become points", choices=("pca", "tsne"))
    flag("layer", -1, "layer of vectors of sentences and of neighbours in context; 0 the embeddings", least=-(2**15))
    flag("tagged", "", "sentences whose words have tags, for probes: CoNLL columns, JSONL, Parquet", metavar="FILE")
    flag("words", "0", "column of the words", metavar="COLUMN")
    flag("tags", "-1", "column of the tags", metavar="COLUMN")
    flag(
        "examples", "", "labelled examples for heads, with the columns of the run [its data.validation]", metavar="FILE"
    )
    flag("limit", 256, "rows of a file that are used; for heads of a model with an MLM head, tokens", least=1)
    flag("seed", 0, "of probes and t-SNE")
    flag("checkpoint", "best", "best, newest or a step")
    flag("task_name", "", "of a model of several tasks, the one whose head is looked at", metavar="NAME")
    flag("task", "", "module.Class of a task of your own, whose code is executed")
    flag("debug", False, "show the traceback of an error")
    flags, names = parser.parse_with_names(argv)
    for word in names[1:]:
        parser.refuse(word)
    if not names:
        raise UserError("no model is named; python -m bert_jax.lab.inspect runs/a --text='…'")
    parts, output = _checked(flags)
    write_atomically(output, _Page(names[0], flags).made(parts))
    logging.info("page: %s", output)
    return 0


def _checked(flags: Flags) -> tuple[list[str], Path]:
    """Returns the parts of the page and its path. Raises UserError for what is wrong with the flags."""
    parts = [part.strip() for part in flags["what"].split(",") if part.strip()] or list(PARTS)
    if unknown := [part for part in parts if part not in PARTS]:
        raise UserError(f"--what: '{unknown[0]}' is unknown; choose from {', '.join(PARTS)}")
    for part in parts:
        need = PARTS[part]
        if flags["what"] and need and not flags[need].strip():
            raise UserError(f"--what={part} needs --{need}; give one")
    if not any(flags[name].strip() for name in ("text", "media", "sentences", "tagged", "examples")) and parts != [
        "heads"
    ]:
        raise UserError("there is nothing to look at; give --text, --media, --sentences, --tagged or --examples")
    output = Path(flags["output"]).expanduser()
    if output.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--output={flags['output']}: the page is HTML; name it {output.stem or 'inspect'}.html")
    if output.is_dir() or not output.parent.is_dir():
        what = "is a folder" if output.is_dir() else f"there is no folder {output.parent}"
        raise UserError(f"--output={flags['output']}: {what}; choose another path")
    return [part for part in PARTS if part in parts], output


class _Page:
    """A model and what was asked of it; each method makes one part of the page."""

    def __init__(self, path: str, flags: Flags):
        import bert_jax

        self.flags, self.text, self.is_asked = flags, flags["text"], bool(flags["what"])
        self.pair = flags["text_pair"] or None
        # In float32: a picture is made once, and rounding to bfloat16 shows in gradients.
        chosen = {name: flags[name] for name in ("checkpoint", "task", "task_name")}
        self.model = bert_jax.load(path, dtype="float32", **chosen)
        self.name = path

    def made(self, parts: list[str]) -> str:
        """Returns the page. Raises UserError for a part that cannot be made, if it was asked for by name."""
        from bert_jax.lab.inspect import page
        from bert_jax.lab.inspect.reading import insides
        from bert_jax.lab.report import html

        sections, reasons = [], []
        for part in parts:
            need = PARTS[part]
            if need and not self.flags[need].strip():
                reasons.append(f"{part}: needs --{need}")
                continue
            logging.info("%s …", part)
            try:
                sections.append(getattr(self, part)())
            except UserError as error:
                if self.is_asked:
                    raise
                reasons.append(f"{part}: {error}")
        if not sections:
            raise UserError(f"nothing can be shown of {self.name} ({'; '.join(reasons)})")
        config = insides(self.model).opened.bert_config
        shape = f"{config.num_hidden_layers} layers of {config.num_attention_heads} heads, {config.hidden_size} wide"
        kicker = f"{self.name}, step {self.model.step:,}; {self.model.config.task}; {shape}"
        body = [page.STYLE, *sections, page.left_out_section(reasons)]
        return html.page(f"Inside {Path(self.name).name}", body, kicker)

    def attention(self) -> str:
        from bert_jax.lab.inspect.page import attention_section

        return attention_section(self._attention)

    def rollout(self) -> str:
        from bert_jax.lab.inspect.page import rollout_section

        return rollout_section(self._attention)

    def gradient(self) -> str:
        from bert_jax.lab.inspect.page import attribution_section
        from bert_jax.lab.inspect.tokens import gradient_times_input, integrated_gradients

        asked = self.model, self.text, self.pair
        target = self.flags["target"]
        return attribution_section(
            gradient_times_input(*asked, target=target), integrated_gradients(*asked, target=target)
        )

    def loss(self) -> str:
        from bert_jax.lab.inspect.page import loss_section
        from bert_jax.lab.inspect.tokens import token_losses

        found = token_losses(self.model, self.text, self.pair, max_length=self._longest)
        return loss_section(found, self.model.tokenizer.vocab_size, self.model.config.model.causal)

    def sources(self) -> str:
        from bert_jax.lab.inspect.page import source_section
        from bert_jax.lab.inspect.sources import dependence

        return source_section(dependence(self.model, self.text, self.pair or ""))

    def patches(self) -> str:
        from bert_jax.lab.inspect.page import patch_section
        from bert_jax.lab.inspect.patches import words_and_patches

        return patch_section(words_and_patches(self.model, self.text, self.pair, self.flags["media"]))

    def neighbours(self) -> str:
        from bert_jax.lab.inspect.page import neighbour_section
        from bert_jax.lab.inspect.vectors import context_neighbours, layer_number, neighbours

        reading, layer = self._attention.reading, layer_number(self.model, self.flags["layer"])
        words = list(dict.fromkeys(t for t, is_word in zip(reading.tokens, reading.is_word, strict=True) if is_word))
        words = words[:_MOST_WORDS]
        in_context = None
        if self.flags["sentences"]:
            texts = [text for text, _ in self._sentences]
            in_context = context_neighbours(self.model, reading, texts, layer=layer)
        return neighbour_section(reading, words, neighbours(self.model, words), in_context, layer)

    def projection(self) -> str:
        import numpy as np

        from bert_jax.inference.predictor import all_good
        from bert_jax.lab.inspect.page import projection_section
        from bert_jax.lab.inspect.vectors import layer_number, project

        texts, labels = zip(*self._sentences, strict=True)
        layer = layer_number(self.model, self.flags["layer"])
        if layer == 0:
            raise UserError("--layer=0: vectors of sentences come from layer 1 or a later one")
        vectors = np.stack(all_good(self.model.embed(texts, layer=layer)))
        found = project(vectors, self.flags["projection"], self.flags["seed"])
        what = f"The mean vectors of {len(texts):,} texts of {Path(self.flags['sentences']).name} at layer {layer}"
        return projection_section(found, labels, what)

    def probes(self) -> str:
        from bert_jax.data.labelled.conll import tagged_examples
        from bert_jax.lab.inspect.page import probe_section
        from bert_jax.lab.inspect.probes import probe_layers

        spec = self.flags["tagged"]
        sentences = list(tagged_examples(spec, text=self.flags["words"], label=self.flags["tags"]))
        return probe_section(probe_layers(self.model, sentences, seed=self.flags["seed"]), Path(spec).name)

    def heads(self) -> str:
        from bert_jax.lab.inspect.heads import head_importance
        from bert_jax.lab.inspect.page import importance_section
        from bert_jax.lab.inspect.reading import insides

        opened = insides(self.model).opened
        if not self.is_asked and not self.flags["examples"] and not opened.fills_masks:
            raise UserError("it evaluates a fine-tuned model once per head; give --examples, or ask by --what=heads")
        texts = [text for text, _ in self._sentences] if self.flags["sentences"] else [self.text] * bool(self.text)
        options = {"examples": self.flags["examples"], "limit": self.flags["limit"], "progress": True}
        return importance_section(head_importance(self.model, texts=texts, **options))

    @property
    def _longest(self) -> int:
        return self.flags["max_length"] or min(_MOST_TOKENS, self.model.config.model.max_position_embeddings)

    @cached_property
    def _attention(self) -> Any:
        from bert_jax.lab.inspect.heads import attention

        return attention(self.model, self.text, self.pair, max_length=self._longest)

    @cached_property
    def _sentences(self) -> list[tuple[str, str]]:
        """The texts of --sentences with their labels, "" without."""
        from bert_jax.data.labelled.columns import text_examples

        columns = {"text": self.flags["sentence"], "text_pair": "", "label": self.flags["label"]}
        examples = text_examples(self.flags["sentences"], **columns, kind="single", separator="|")
        return [(one.text, str(one.label or "")) for one in islice(examples, self.flags["limit"])]


if __name__ == "__main__":
    run_command(main)
