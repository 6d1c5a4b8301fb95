"""`--help` of the door: modes with an example each, flags, and the options of the config, as a whole or by topic.

python -m bert_jax.main --help
python -m bert_jax.main --help=predict            # a mode: what it does, its flags and options
python -m bert_jax.main --help=optimizer          # a group of options, with defaults and units
python -m bert_jax.main --help=train.steps        # one option
"""

import argparse
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from bert_jax.command import Parser, suggest
from bert_jax.config import UserError
from bert_jax.experiment import experiment_names
from bert_jax.option import Option, can_be
from bert_jax.options import NAMED, OPTIONS, nearest
from bert_jax.terminal import bold, dim, in_columns, wrapped

EXAMPLES = {
    "prepare": "--config=base --config.data.corpus=text --config.data.files='corpus/*.txt.gz'",
    "train": "--config=base --workdir=runs/mine --config.data.corpus=text --config.data.files='corpus/*.txt.gz'",
    "evaluate": "--config=classify --workdir=runs/reviews --checkpoint=newest",
    "fill_mask": "--config=base --workdir=runs/mine --text='The [MASK] of the list is returned.'",
    "predict": "--config=classify --workdir=runs/reviews --input=new.csv --output=predictions.jsonl",
    "generate": "--config=translate --workdir=runs/en-de --input=new.txt --config.generate.beams=4",
    "embed": "--config=base --config.init_from=ckpts/bert-base --input=texts.txt --output=vectors.npy",
    "score": "--config=base --workdir=runs/mine --input=texts.txt",
    "blimp": "--config=base --workdir=runs/mine --input=blimp",
    "retrieve": "--config=multilingual --input=en_de=test.en+test.de --layer=all",
    "doctor": "--workdir=runs/mine --replay=100",
    "compile": "--config=base --topology=v5e:2x4",
}
_OF_CHECKPOINTS = "those marked I may differ from the run's: --help=inference lists them; the others are the run's own"
_READS = {  # which options of the config a mode reads
    "prepare": "of the groups run, data and corpora",
    "train": "all; those marked R may differ when the same command continues a run",
    "doctor": "none: those of the workdir's config.json count",
    "compile": "all",
}
_GROUPS = {
    "run": "the task, seeds, what it starts from",
    "model": "size and shape of the encoder",
    "head": "what a fine-tuned head reads",
    "seq2seq": "models that write",
    "extractive": "sentences that summarize",
    "image": "pictures beside the text",
    "sound": "recordings beside the text",
    "features": "features of regions beside the text",
    "vectors": "patches and regions as tokens",
    "extend": "new words for a vocabulary",
    "distillation": "learning from another model",
    "energy": "what a run costs",
    "multitask": "which task comes when",
    "data": "corpora, vocabulary, rows, masks; files and columns of labelled data",
    "optimizer": "the optimizer and its schedule",
    "train": "steps, batches, what is logged",
    "eval": "when and on what it is evaluated",
    "checkpoint": "when it is saved",
    "generate": "how texts are written",
    "predict": "who runs predictions",
    "mesh": "how work is split over devices",
    "corpora": "several corpora; * is a name of your choice",
    "tasks": "several tasks; * is a name of your choice",
}
_MARKS = (
    "S: belongs to the model's shape, and is taken from the checkpoint that a run starts from. R: may differ between "
    "two starts of one run. I: may differ between a run and a command that uses its checkpoint."
)


def pages(modes: Mapping[str, Callable[..., int]]) -> Callable[[Parser, str], str]:
    """Returns what makes the page of a topic from a parser; the topic "" is the overview. Raises UserError."""

    def page(parser: Parser, topic: str) -> str:
        groups = option_groups()
        parts = [] if topic else [_overview(parser, modes, groups)]
        if topic in modes:
            parts.append(_mode(parser, topic, modes[topic]))
        if topic in groups:
            parts.append(_group(topic, groups[topic]))
        if topic == "inference":
            parts.append(_listed("Options that a command may set for a checkpoint", _marked("inference")))
        if topic in OPTIONS and not parts:
            parts.append(in_columns(_rows([OPTIONS[topic]]), 28) + "\n\n" + wrapped(_MARKS))
        if topic == "all":
            parts += [_overview(parser, modes, groups), *(_group(name, its) for name, its in groups.items())]
        if not parts:
            near = nearest(topic) if "." in topic else ""
            topics = dict.fromkeys([*modes, *groups, "inference", "all"])
            others = f"the nearest is --help={near}" if near else can_be(topic, topics)
            raise UserError(f"--help={topic} is no topic; {others}")
        return "\n\n".join(parts)

    return page


def summary(mode: Callable[..., int]) -> str:
    """Returns the first sentence of a mode's description."""
    return _description(mode).partition(". ")[0].rstrip(".") + "."


def add_options(parser: Parser) -> None:
    """Adds the options of the config to a parser that is asked for completions, and the names of experiments."""
    config = next(action for action in parser._actions if action.dest == "config")
    suggest(config, [*experiment_names(), *sorted(str(path) for path in Path("experiments").glob("*.py"))])
    for option in OPTIONS.values():
        values = option.choices or (("True", "False") if option.type is bool else None)
        parser.add_argument(f"--config.{option.name}", choices=values, default=argparse.SUPPRESS)


def option_groups() -> dict[str, list[Option]]:
    """Returns the options of the config by group, in the order in which they are declared."""
    groups: dict[str, list[Option]] = {}
    for option in (*OPTIONS.values(), *(option for its in NAMED.values() for option in its.values())):
        groups.setdefault(option.name.split(".")[0] if "." in option.name else "run", []).append(option)
    return groups


def _overview(parser: Parser, modes: Mapping[str, Callable[..., int]], groups: Mapping[str, list[Option]]) -> str:
    lines = [
        f"{bold('usage:')} {parser.usage}",
        "",
        bold("Modes") + ", each with an example; --help=MODE tells more",
        "",
    ]
    for name, mode in modes.items():
        lines += [in_columns([(name, summary(mode))], 13), dim(13 * " " + _command(name))]
    lines += ["", bold("Flags"), "", in_columns(parser.flag_rows(""))]
    lines += ["", bold("Flags of some modes") + ", which are named behind each", "", in_columns(parser.flag_rows())]
    lines += ["", bold("Options of the config") + ", --config.NAME=VALUE; --help=GROUP lists them with defaults", ""]
    rows = [(f"{name} ({len(its)})", _GROUPS.get(name, "")) for name, its in groups.items()]
    lines += [in_columns(rows, 20), "", wrapped(_STATUS)]
    return "\n".join(lines)


_STATUS = (
    "The exit status is 0 when the work is done, 2 for a mistake that you can correct (one line), 75 when another "
    "process of the run, a device or a disk no longer answers, and 128 + n when signal n stopped the run; the same "
    "command continues after both. docs/options.md has all options on one page."
)


def _mode(parser: Parser, name: str, mode: Callable[..., int]) -> str:
    lines = [bold(f"--mode={name}"), "", wrapped(_description(mode)), "", "  " + dim(_command(name)), ""]
    lines += [bold("Flags"), ""]
    lines += [in_columns([*parser.flag_rows(name), *parser.flag_rows("")]), ""]
    return "\n".join([*lines, wrapped(f"Options of the config that it reads: {_READS.get(name, _OF_CHECKPOINTS)}.")])


def _description(mode: Callable[..., int]) -> str:
    """Returns the docstring of a mode, in which its parameters are flags."""
    flags = inspect.signature(mode).parameters
    text = " ".join((inspect.getdoc(mode) or "").split())
    return re.sub(r"`(\w+)`", lambda name: f"--{name[1]}" if name[1] in flags else name[0], text)


def _command(mode: str) -> str:
    named = "" if mode == "train" else f" --mode={mode}"
    return f"python -m bert_jax.main{named} {EXAMPLES[mode]}"


def _group(name: str, options: list[Option]) -> str:
    about = f": {_GROUPS[name]}" if name in _GROUPS else ""
    return _listed(f"Options of {name}{about}", options)


def _listed(title: str, options: list[Option]) -> str:
    return "\n".join([bold(title), "", in_columns(_rows(options), 28), "", wrapped(_MARKS)])


def _rows(options: Iterable[Option]) -> list[tuple[str, str]]:
    rows = []
    for option in options:
        marks = "".join(mark[0].upper() for mark in ("shape", "restart", "inference") if mark in option.marks)
        default = "''" if option.default == "" else str(option.default)
        values = f" ({option.type.__name__}, {option.range})" if option.range else ""
        values = f" ({option.allowed})" if option.choices else values
        rows.append((f"{option.name} {marks}".rstrip(), f"[{default}] {option.meaning}{values}"))
    return rows


def _marked(mark: str) -> list[Option]:
    return [option for option in OPTIONS.values() if mark in option.marks]
