"""docs/options.md, made from the declarations in `options.py`."""

from itertools import groupby

from bert_jax.options import NAMED, OPTIONS


def table() -> str:
    """Returns docs/options.md: one line per option, in the groups of the config."""
    starred = [option for options in NAMED.values() for option in options.values()]
    lines, head = [_INTRODUCTION], ["| option | default | values | meaning |", "|---|---|---|---|"]
    for group, options in groupby([*OPTIONS.values(), *starred], lambda option: option.name.rpartition(".")[0]):
        lines += [f"\n## {group or 'run'}\n", *_ABOUT.get(group, ()), *head]
        for option in options:
            default = f"`{option.default!r}`" if isinstance(option.default, str) else str(option.default)
            marks = [mark[0].upper() for mark in ("shape", "restart", "inference") if mark in option.marks]
            values = f"{option.type.__name__}, {option.range}" if option.range else option.allowed
            cells = (" ".join([f"`{option.name}`", *marks]), default, values, option.meaning)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


_INTRODUCTION = """# Options

Generated from `bert_jax/options.py` by `python -m bert_jax.options > docs/options.md`; do not edit it by hand.

Set an option with `--config.NAME=VALUE`, or in an experiment file with `config.NAME = VALUE`. An unknown name, a wrong
type and a value out of range are errors. The letters after a name say when its value may differ:

- **S**: belongs to the model's shape. A run that starts from a checkpoint takes it from there.
- **R**: may differ between two starts of one run. It changes nothing of what is learned.
- **I**: may differ between a run and a command that uses its checkpoint (`evaluate`, `predict`, `generate`, `embed`).

Options that are regular expressions (`optimizer.no_decay`, `optimizer.freeze`, and `--allow` of `bert_jax.convert`)
match anywhere in a name, as Python's `re.search` does: `^` anchors a pattern to the start, `$` to the end."""
_NAMES = "Its entries have names of your choice (letters, digits and _, a letter first), which stand for the `*`: "
_ABOUT = {
    "corpora.*": (_NAMES + "`--config.corpora.de.files=de.txt`\nadds the corpus `de`.\n",),
    "tasks.*": (
        _NAMES + "`--config.tasks.sst2.task=classification`\nadds the task `sst2`. Besides the options below, an entry "
        "may set those of `data` and `head` for itself, as\n`tasks.sst2.data.train`, and `train.class_weights`, "
        "`train.label_smoothing`, `train.z_loss`, `train.sampled_softmax`,\n`eval.blimp`, `eval.blimp_pairs` and "
        "`eval.max_examples`; not what is one for all tasks: the vocabulary (`data.tokenizer`,\n`data.vocab_*`, "
        "`data.lowercase`, `data.strip_accents`, `data.split_cjk`) and `data.prefetch`.\n",
    ),
}
