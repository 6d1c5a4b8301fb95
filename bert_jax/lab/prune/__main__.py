"""Leaves heads and layers out of a fine-tuned model: a page with the curves, and a smaller checkpoint.

    python -m bert_jax.lab.prune runs/sst2                                  # the curves alone
    python -m bert_jax.lab.prune runs/sst2 --heads=0.5 --to=ckpts/sst2-half-the-heads
    python -m bert_jax.lab.prune runs/sst2 --layers=0.33 --heads=0.25 --examples=dev.tsv --to=ckpts/small
    python -m bert_jax.lab.prune runs/sst2 --take_layers=0,2,4 --to=ckpts/small

The model is whatever `bert_jax.load` opens and was fine-tuned. The smaller one is a checkpoint like any other: give it
to init_from to train it further, and to every command that takes a model. Beside the page stand its curves as SVG and
all numbers as JSON.
"""

import json
import logging
from pathlib import Path
from typing import Any

from bert_jax.command import Flags, Parser, run_command, say
from bert_jax.config import Json, UserError
from bert_jax.files import write_atomically


def main(argv: list[str]) -> int:
    """Writes the page and, with --to, the checkpoint. Heavy imports wait until the flags are known to be right."""
    parser = Parser("bert_jax.lab.prune MODEL", __doc__ or "")
    flag = parser.flag
    flag("heads", 0.0, "share of the heads of each layer that is left out", metavar="SHARE")
    flag("layers", 0.0, "share of the layers that is left out", metavar="SHARE")
    flag("take_layers", "", "layers that are kept, from 0, in place of --layers", metavar="0,2,4")
    flag("to", "", "folder of the smaller checkpoint, to be made", metavar="FOLDER")
    flag("overwrite", False, "replace that folder if it is such a checkpoint")
    flag("examples", "", "labelled examples, with the columns of the run [its data.validation]", metavar="FILE")
    flag("limit", 256, "examples that are used", least=1)
    flag("output", "prune.html", "the page", metavar="FILE.html")
    flag("checkpoint", "best", "best, newest or a step")
    flag("debug", False, "show the traceback of an error")
    flags, names = parser.parse_with_names(argv)
    for word in names[1:]:
        parser.refuse(word)
    if not names:
        raise UserError("no model is named; python -m bert_jax.lab.prune runs/a --heads=0.5 --to=ckpts/small")
    output = _checked(flags)
    say(_run(names[0], flags, output))
    return 0


def _checked(flags: Flags) -> Path:
    """Returns the path of the page. Raises UserError for what is wrong with the flags."""
    for name in ("heads", "layers"):
        try:
            flags[name] = float(flags[name])
        except ValueError:
            raise UserError(f"--{name} is {flags[name]!r}; it must be a share such as 0.5") from None
        if not 0 <= flags[name] < 1:
            raise UserError(f"--{name} is {flags[name]:g}; it must be a share of 0 or more and under 1")
    smaller = flags["heads"] or flags["layers"] or flags["take_layers"]
    if flags["layers"] and flags["take_layers"]:
        raise UserError("--layers and --take_layers both say which layers are kept; give one of them")
    if smaller and not flags["to"]:
        raise UserError("--to is missing: name the folder of the smaller checkpoint, or leave out what to prune")
    if flags["to"] and not smaller:
        raise UserError("--to needs what to prune: --heads, --layers or --take_layers")
    output = Path(flags["output"]).expanduser()
    if output.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--output={flags['output']}: the page is HTML; name it {output.stem or 'prune'}.html")
    if output.is_dir() or not output.parent.is_dir():
        what = "is a folder" if output.is_dir() else f"there is no folder {output.parent}"
        raise UserError(f"--output={flags['output']}: {what}; choose another path")
    return output


def _run(path: str, flags: Flags, output: Path) -> str:
    """Returns what was done, in lines."""
    import bert_jax
    from bert_jax.lab.inspect.reading import insides
    from bert_jax.lab.prune import page, prune
    from bert_jax.models.config import layer_numbers

    model = bert_jax.load(path, dtype="float32", checkpoint=flags["checkpoint"])
    opened = insides(model).opened
    config, kept, chosen, written = opened.bert_config, [], None, None
    if flags["take_layers"]:
        kept = layer_numbers("--take_layers", flags["take_layers"], config.num_hidden_layers)
    if flags["to"]:
        prune.check_shares(config, flags["heads"], flags["layers"])
        prune.check_target(Path(flags["to"]), path, flags["overwrite"])
    found = prune.measure(model, flags["examples"], flags["limit"])
    if flags["to"]:
        chosen = prune.choose(found, heads=flags["heads"], layers=flags["layers"], take_layers=kept)
        written = prune.write_pruned(str(opened.path), flags["to"], chosen, overwrite=flags["overwrite"])
        written |= {"metrics": prune.metrics_of(flags["to"], flags["examples"] or found.spec, flags["limit"])}
    title, kicker = f"Pruning {Path(path).name}", f"{path}, step {model.step:,}; {model.config.task}; {found.examples}"
    write_atomically(output, page.page(found, title, kicker, written))
    report = page.to_json(found, chosen, written)
    write_atomically(output.with_suffix(".json"), json.dumps(report, indent=1, default=float) + "\n")
    for what in ("heads", "layers"):
        write_atomically(output.with_name(f"{output.stem}_{what}.svg"), page.curve(found, what))
    logging.info("page: %s", output)
    return _summary(found, written)


def _summary(found: Any, written: Json | None) -> str:
    lines = [f"{found.examples}: {found.metric} {found.heads[0].metrics[found.metric]:.4f} with all heads and layers"]
    if written:
        lines.append(
            f"wrote {written['to']}: {written['shape']} in place of {written['shape_before']}, "
            f"{written['parameters']:,} of {written['parameters_before']:,} parameters, "
            f"{found.metric} {written['metrics'][found.metric]:.4f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
