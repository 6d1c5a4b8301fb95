"""The modes of a trained checkpoint: texts in, predictions, fillings, vectors, scores or texts out.

Each is a function of (config, workdir, …), as those of bert_jax/modes.py. Heavy imports are inside the functions, so
that `--help` and a mistyped flag answer at once.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from bert_jax.command import say
from bert_jax.config import Json, UserError
from bert_jax.option import Value


def fill_mask(
    config: ConfigDict,
    workdir: Path,
    *,
    text: list[str],
    top_k: int,
    strategy: str = "",
    gap: int = 4,
    iterations: int = 10,
    seed: int = 0,
    whole_words: bool = False,
    contains: str = "",
    allowed: str = "",
    input: str = "",
    output: str = "-",
    input_format: str = "",
    bad_lines: str = "fail",
    overrides: Mapping[str, Value] | None = None,
    checkpoint: str = "best",
    task_name: str = "",
    **_,
) -> int:
    """Prints the likeliest tokens for every [MASK] in every --text, or with a strategy the text with its gaps filled;
    or writes lines of JSON for the rows of `input`."""
    if bool(text) == bool(input):
        raise UserError(
            "--mode=fill_mask needs a text, e.g. --text='The [MASK] of the list is returned.', or --input, and not both"
        )
    from bert_jax.inference.fill_mask import FillMask
    from bert_jax.inference.gaps import Infilling
    from bert_jax.inference.infill import Infiller
    from bert_jax.inference.open import meant, open_model
    from bert_jax.inference.output import write_jsonl

    flags = {"gap": gap, "iterations": iterations, "seed": seed, "whole_words": whole_words}
    how = Infilling.from_flags(strategy, **flags, contains=contains, allowed=allowed)
    path = _prepare(config, workdir, input, output, (".jsonl",)) if input else meant(workdir, config.init_from)
    opened = open_model(path, which=checkpoint, overrides=overrides, task_name=task_name)
    if how is None:
        fill = FillMask(opened, config.eval.batch_size)
        stream, shown = partial(fill.records, top_k=top_k), partial(fill.lines, top_k=top_k)
    else:
        infill = Infiller(opened, config.eval.batch_size)
        stream, shown = partial(infill.stream, how=how), lambda one: [infill([one], how)[0]["text"]]
    if input:
        rows = _rows(input, config.data.text, "", input_format)
        write_jsonl(rows, partial(stream, column=config.data.text), output, skip_bad=bad_lines == "skip")
    for one in text:
        say("\n  ".join([one, *shown(one)]))
    return 0


def predict(
    config: ConfigDict,
    workdir: Path,
    *,
    input: str,
    output: str,
    input_format: str = "",
    bad_lines: str = "fail",
    glue: str = "",
    overrides: Mapping[str, Value] | None = None,
    checkpoint: str = "best",
    task_name: str = "",
    **_,
) -> int:
    """A prediction for every row of `input`: lines of JSON, the answers of SQuAD, or one file of a submission to
    GLUE."""
    _check_input("predict", input)
    if output.endswith(".zip") != bool(glue):
        raise UserError("a submission to GLUE needs both --output=<name>.zip and --glue=<test set>")
    path = _prepare(config, workdir, input, output, (".jsonl", ".json", ".zip"))
    from bert_jax.inference import glue_submission, predictor
    from bert_jax.inference.output import results, write_answers, write_jsonl

    model = predictor.Predictor(path, config.eval.batch_size, **_opening(config, overrides, checkpoint, task_name))
    rows = _rows(input, model.config.data.text, model.config.data.text_pair, input_format)
    if glue:
        description = model.task.description()
        glue_submission.check_submission(Path(output), glue, description)
        predictions = [prediction for _, prediction in results(rows, model.stream, skip_bad=False)]
        glue_submission.add_to_submission(Path(output), glue, predictions, description["labels"])
        return 0
    if output.endswith(".json") and not model.task.makes_answers:
        raise UserError(f"--output={output}: .json is SQuAD's form of answers; of {model.config.task} use .jsonl")
    write = write_answers if output.endswith(".json") else write_jsonl
    write(rows, model.stream, output, skip_bad=bad_lines == "skip")
    return 0


def generate(
    config: ConfigDict,
    workdir: Path,
    *,
    input: str,
    output: str,
    input_format: str = "",
    bad_lines: str = "fail",
    overrides: Mapping[str, Value] | None = None,
    checkpoint: str = "best",
    task_name: str = "",
    **_,
) -> int:
    """A text for every row of `input`, which the model writes as the options generate.* say."""
    _check_input("generate", input)
    path = _prepare(config, workdir, input, output, (".jsonl",))
    from bert_jax.inference.generate import Generator
    from bert_jax.inference.output import write_jsonl

    model = Generator(path, config.eval.batch_size, **_opening(config, overrides, checkpoint, task_name))
    rows = _rows(input, model.config.data.text, "", input_format)
    write_jsonl(rows, model.stream, output, skip_bad=bad_lines == "skip")
    return 0


def embed(
    config: ConfigDict,
    workdir: Path,
    *,
    input: str,
    output: str,
    input_format: str = "",
    bad_lines: str = "fail",
    overrides: Mapping[str, Value] | None = None,
    pooling: str = "mean",
    layer: str = "-1",
    normalize: bool = False,
    tokens: bool = False,
    checkpoint: str = "best",
    task_name: str = "",
    **_,
) -> int:
    """The vector of every text of `input`, or those of its tokens, of any checkpoint."""
    suffix = Path(output).suffix
    if not input or suffix not in (".npy", ".parquet"):
        raise UserError("--mode=embed needs --input and --output=<name>.npy or <name>.parquet")
    if tokens and suffix == ".npy":
        raise UserError("--tokens: each text has its own number of vectors; give --output=<name>.parquet")
    path = _prepare(config, workdir, input, output, (".npy", ".parquet"))
    from bert_jax.inference.embeddings import Embedder, write_npy, write_parquet

    names = {"data.sequence_length": "max_length", "data.long_texts": "long_texts"}
    given: dict[str, Any] = {names[key]: value for key, value in (overrides or {}).items() if key in names}
    given |= {"pooling": pooling, "layer": layer, "normalize": normalize, "which": checkpoint, "overrides": overrides}
    given |= {"task_name": task_name}
    embedder = Embedder(path, batch_size=config.eval.batch_size, **given)
    # A run without labelled examples, such as pretraining, says nothing about columns.
    names_column = embedder.run_config.data.train and "data.text" not in (overrides or {})
    column = (embedder.run_config if names_column else config).data.text
    write = write_npy if suffix == ".npy" else partial(write_parquet, tokens=tokens)
    write(_rows(input, column, "", input_format), embedder, column, Path(output), skip_bad=bad_lines == "skip")
    return 0


def score(
    config: ConfigDict,
    workdir: Path,
    *,
    input: str,
    output: str,
    input_format: str = "",
    bad_lines: str = "fail",
    score_method: str = "within_word",
    tokens: bool = False,
    overrides: Mapping[str, Value] | None = None,
    checkpoint: str = "best",
    task_name: str = "",
    **_,
) -> int:
    """The log-likelihood of every text of `input`, in lines of JSON; a list of texts is ranked."""
    _check_input("score", input)
    path = _prepare(config, workdir, input, output, (".jsonl",))
    from bert_jax.inference.output import write_jsonl
    from bert_jax.inference.score import Scorer

    scorer = Scorer(path, config.eval.batch_size, score_method, **_opening(config, overrides, checkpoint, task_name))
    stream = partial(scorer.stream, column=config.data.text, by_token=tokens)
    write_jsonl(_rows(input, config.data.text, "", input_format), stream, output, skip_bad=bad_lines == "skip")
    return 0


def blimp(
    config: ConfigDict,
    workdir: Path,
    *,
    input: str,
    output: str,
    overrides: Mapping[str, Value] | None = None,
    checkpoint: str = "best",
    task_name: str = "",
    **_,
) -> int:
    """Prints the accuracy on minimal pairs, by field, phenomenon and paradigm. All pairs are scored, unless the command
    sets eval.blimp_pairs."""
    if not input:
        raise UserError("--mode=blimp needs --input, the folder of the .jsonl files of minimal pairs")
    from bert_jax.data.labelled.minimal_pairs import read_pairs, sample

    path = _prepare(config, workdir, input, output, (".json", ".csv"))
    count = config.eval.blimp_pairs if "eval.blimp_pairs" in (overrides or {}) else 0
    pairs = sample(read_pairs(input), count, config.eval.seed)
    from bert_jax.inference import score

    scorer = score.Scorer(path, config.eval.batch_size, **_opening(config, overrides, checkpoint, task_name))
    rows = score.table(scorer.accuracies(pairs), pairs)
    for row in rows:
        say(f"{row['level']:10}  {row['name']:52}  {100 * row['accuracy']:5.1f}")
    if output != "-":
        score.write_table(rows, scorer, Path(output))
    return 0


def retrieve(
    config: ConfigDict,
    workdir: Path,
    *,
    input: str,
    output: str,
    overrides: Mapping[str, Value] | None = None,
    pooling: str = "mean",
    layer: str = "-1",
    retrieval_score: str = "cosine",
    task_name: str = "",
    checkpoint: str = "best",
    **_,
) -> int:
    """Prints how many of the texts of `input` have their translation as the nearest one of the other side by their
    vectors, in both directions; with `layer` "all", of each layer."""
    if not input:
        raise UserError("--mode=retrieve needs --input: translations, as test.en+test.de or en_de=test.en+test.de,…")
    from bert_jax.inference.embeddings import Embedder
    from bert_jax.inference.open import open_model
    from bert_jax.inference.output import json_line, whole_file
    from bert_jax.tasks.retrieval import accuracy, read_translations

    path = _prepare(config, workdir, "", output, (".jsonl",))
    sets = read_translations(input, "--input")
    opened = open_model(path, **_opening(config, overrides, checkpoint, task_name))
    layers = list(range(1, opened.bert_config.num_hidden_layers + 1)) if layer == "all" else [layer]
    given: Any = (overrides or {}).get("data.sequence_length")
    records = []
    for one in layers:
        embedder = Embedder(opened, pooling=pooling, layer=one, batch_size=config.eval.batch_size, max_length=given)
        for pairs in sets:
            found = accuracy(pairs, (embedder(pairs.texts), embedder(pairs.translations)), retrieval_score)
            records.append({"name": pairs.name, "texts": len(pairs.texts), "layer": str(one)} | found._asdict())
            shown = f"{100 * found.forward:5.1f} %   backward {100 * found.backward:5.1f} %"
            say(f"{pairs.name:12} layer {one!s:12} {len(pairs.texts):6} texts   forward {shown}")
    if output != "-":
        with whole_file(Path(output)) as file:
            file.write(b"".join(map(json_line, records)))
    return 0


def _check_input(mode: str, input: str) -> None:
    if not input:
        raise UserError(f"--mode={mode} needs --input: a file, - for standard input, or tfds:NAME@SPLIT")


def _opening(config: ConfigDict, overrides: Mapping[str, Value] | None, checkpoint: str, task_name: str) -> Json:
    """Returns how the tools open a checkpoint, as options of `open_model`."""
    users_task = config.tasks[task_name].task if task_name in config.tasks else config.task
    return {"overrides": overrides, "which": checkpoint, "users_task": users_task, "task_name": task_name}


def _prepare(config: ConfigDict, workdir: Path, input: str, output: str, suffixes: tuple[str, ...]) -> str:
    """Returns the path of the model that makes the output. Raises UserError if the output cannot be written, or would
    replace the input or a file of the run."""
    from bert_jax.inference.output import check_output

    check_output(output, suffixes, [input, workdir / "config.json", workdir / "metrics.jsonl"])
    from bert_jax.backend import keep_programs
    from bert_jax.inference.open import meant

    keep_programs(workdir)
    return meant(workdir, config.init_from)


def _rows(source: str, text: str, text_pair: str, input_format: str):
    from bert_jax.data.labelled.inputs import read_input

    has_header = not any(column.removeprefix("-").isdigit() for column in (text, text_pair))
    return read_input(source, text=text, has_header=has_header, file_format=input_format)
