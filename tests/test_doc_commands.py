"""Commands of README and docs/: each is accepted by its program, and is run by a test or needs what its page names.

Those of README.md that train, convert and predict are run here one after another, on a small corpus.
"""

import configparser
import contextlib
import gzip
import importlib
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bert_jax.__main__ import TOOLS
from bert_jax.command import Parser
from bert_jax.main import main, read_command
from bert_jax.modes import MODES

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / name for name in ("README.md", "README.zh.md", "CONTRIBUTING.md", "SECURITY.md")]
PAGES += [page for page in sorted((ROOT / "docs").rglob("*.md")) if page.name != "LOG.md"]
# A mode, tool or script → the tests that run it.
RUN_BY = {
    **dict.fromkeys(
        ("prepare", "train", "evaluate", "fill_mask", "blimp", "predict", "convert"), "test_doc_commands.py"
    ),
    "generate": "inference/test_generate.py",
    "embed": "inference/test_embeddings.py",
    "score": "inference/test_score.py",
    "retrieve": "tasks/test_retrieval.py",
    "doctor": "lab/test_doctor.py",
    "compile": "lab/test_compile.py",
    "serve": "serve/test_life.py",
    "sweep": "lab/sweep/test_sweep.py",
    "report": "lab/report/test_report.py",
    "compare": "lab/test_compare.py",
    "reproduce": "lab/test_reproduce.py",
    "inspect": "lab/inspect/test_page.py",
    "prune": "lab/test_prune.py",
    "first_look": "lab/test_first_look.py",
    "power": "lab/statistics/test_power.py",
    "speedrun": "lab/speedrun/test_command.py",
    "options": "test_options.py",
    "help": "test_help.py",
    "launch/quickstart.sh": "test_quickstart.py",
    "launch/slurm.sh": "test_launch.py",
    "launch/tpu_pod.sh": "test_launch.py",
    "launch/gke_jobset.yaml": "test_launch.py",
    "launch/Dockerfile": "test_launch.py",
    "tests.reliability": "reliability/test_malformed.py",
    "tests.reliability.faults": "reliability/test_faults.py",
    "docs/tutorials": "tutorials/test_tutorials.py",
    "mkdocs": "test_site.py",
    "build": "test_package.py",
}
# What starts other commands → what they need, in words of the page.
NEEDS = {
    "launch/test.sh": "suite|测试",
    "pip": r"extra|pip install",
    "benchmarks": r"[Mm]easured|machine|\.\./shared|study|once|digits",
    "mkdir": r"\.\./shared",
    "tar": r"\.\./shared",
    "cd": "clone",
    "docker": "Docker",
    "kubectl": "Kubernetes|GKE",
    "curl": "bert_jax.serve",
    "export": "GLIBC|XLA_FLAGS|LIBTPU",
    "git": "clone",
    "source": "environment|venv",
    "ruff": "EXTRAS",
    "pyright": "EXTRAS",
    "eval": "argcomplete",
    "twine": "twine",
    "pytest": "test",
    "jupyter": "pip install jupyterlab",
}


def blocks(page: Path) -> Iterator[str]:
    """Yields the blocks of commands of a page: those without a language, or of bash. Output is marked as text."""
    for _, language, text in re.findall(r"^( *)```+(\w*)\n(.*?)^ *```+$", page.read_text("utf-8"), re.S | re.M):
        if language in ("", "bash"):
            yield text


def commands(page: Path) -> list[list[str]]:
    lines = [line for text in blocks(page) for line in text.replace("\\\n", " ").splitlines()]
    found = [shlex.split(line, comments=True) for line in lines]
    parts = [part for words in found for part in _split(words) if part]
    left_out = ("…", "[--replay=100]")
    return [[_filled(word) for word in words if word not in left_out] for words in parts]


def test_there_are_commands():
    found = {page.name: len(commands(page)) for page in PAGES}
    assert sum(found.values()) > 180 and len([name for name, count in found.items() if count]) > 25


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_are_accepted_and_accounted_for(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = page.read_text("utf-8")
    for words in commands(page):
        kind = _checked(words)
        assert kind in RUN_BY or re.search(NEEDS[kind], text), (kind, words)


def test_the_named_tests_run_what_they_are_named_for():
    for kind, name in RUN_BY.items():
        called = kind.rpartition("/")[2].rpartition(".reliability.")[2]
        assert re.search(rf"\b{re.escape(called)}", (ROOT / "tests" / name).read_text("utf-8")), (kind, name)
    assert {*MODES, *TOOLS} <= set(RUN_BY)


def _filled(word: str) -> str:
    return "--config=base" if word == "--config=…" else word


def _split(words: list[str]) -> Iterator[list[str]]:
    command: list[str] = []
    for word in words:
        if word in ("&&", "|"):
            yield command
            command = []
        else:
            command.append(word)
    yield command


def _checked(words: list[str]) -> str:
    """Returns what a command runs, after its own parser has accepted its flags."""
    script = next((word for word in words if re.match(r"launch/\w+\.(sh|yaml)$|launch/\w*Dockerfile$", word)), "")
    files = [word.partition("=")[2] or word for word in words if "launch/" in word and "://" not in word]
    assert all((ROOT / file).exists() for file in files), words
    options = [word for word in words if word.startswith(("--config", "--workdir", "--mode"))]
    if script.endswith(".sh"):
        read_command(options or ["--config=base"])
        return script
    if words[0].startswith("--config."):
        read_command(["--config=base", *words])
        return "train"
    if words[0] == "docker" and options:
        read_command(options)
    if "bert_jax" in words[:1]:
        return _of_module(["bert_jax.main", f"--mode={words[1]}", *words[2:]] if words[1] in MODES else words[1:])
    if "python" in words:
        rest = words[words.index("python") + 1 :]
        return _of_module(rest[1:]) if rest[0] == "-m" else _of_file(rest)
    if words[0] in ("pip", "bash"):
        _check_extras(words)
    return words[0]


def _of_module(words: list[str]) -> str:
    module, rest = words[0], words[1:]
    if any(word.startswith("--help") for word in words):
        return "help"
    if module == "bert_jax.main":
        return read_command(rest)[0]
    if module.startswith("tests."):
        return module
    if module == "build":
        return module
    tool = next((name for name, (full, _) in TOOLS.items() if module in (full, name)), "")
    if not tool:
        assert module == "bert_jax.options", words
        return "options"
    place = TOOLS[tool][0]
    inside = [f"{place}.command", f"{place}.__main__", place]
    names = [name for name in inside if (ROOT / f"{name.replace('.', '/')}.py").is_file()]
    with _only_parsed():
        importlib.import_module(names[0]).main(rest)
    return tool


class _Parsed(Exception):
    """A command's flags were accepted."""


@contextlib.contextmanager
def _only_parsed() -> Iterator[None]:
    parse = Parser.parse

    def parse_only(self, argv):
        _, rest = parse(self, argv)
        for word in rest:
            if word.startswith("-"):
                self.refuse(word)
        raise _Parsed

    Parser.parse = parse_only
    try:
        with pytest.raises(_Parsed):
            yield
    finally:
        Parser.parse = parse


def _of_file(words: list[str]) -> str:
    source = (ROOT / words[0]).read_text("utf-8")
    for flag in (word.partition("=")[0] for word in words[1:] if word.startswith("--")):
        shared = (ROOT / "benchmarks" / "archives.py").read_text("utf-8")
        assert f'"{flag}"' in source + shared, (words[0], flag)
    return words[0].partition("/")[0] if words[0].startswith("benchmarks") else str(Path(words[0]).parent)


def _check_extras(words: list[str]) -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for extras in re.findall(r"\[(\w+)\]", " ".join(words)):
        assert extras in setup["options.extras_require"], words


TINY = """seed=0 model.hidden_size=32 model.num_hidden_layers=2 model.num_attention_heads=2 model.intermediate_size=64
data.corpus=text data.vocab_size=600 data.sequence_length=32 data.max_predictions_per_sequence=5 data.workers=1
data.validation_share=0.15 data.test_share=0.1 optimizer.warmup_steps=1 train.steps=2 train.batch_size=8 eval.every=2
eval.max_examples=16 eval.batch_size=8 checkpoint.every=2"""
FINE = "optimizer.warmup_steps=1 train.epochs=1 train.batch_size=8 eval.batch_size=8 data.sequence_length=32"


@pytest.mark.slow
@pytest.mark.optimized
def test_the_commands_of_the_readme(topics, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").mkdir()
    with gzip.open(tmp_path / "corpus" / "topics.txt.gz", "wb") as file:
        file.write(topics.read_bytes())
    (tmp_path / "blimp").mkdir()
    pair = {"sentence_good": "The list is returned.", "sentence_bad": "The list are returned.", "UID": "agreement"}
    pair |= {"field": "syntax", "linguistics_term": "agreement"}
    (tmp_path / "blimp" / "agreement.jsonl").write_text(json.dumps(pair) + "\n")
    rows = [f"{word} text,{stars}" for word, stars in (("good", 5), ("bad", 1)) for _ in range(8)]
    for name in ("train.csv", "dev.csv"):
        (tmp_path / name).write_text("\n".join(["review,stars", *rows]) + "\n")
    (tmp_path / "new.csv").write_text("review\na good text\n")
    files = "--config.data.files=corpus/*.txt.gz"
    run = [words for words in commands(ROOT / "README.md") if "-m" in words]
    run.remove(["python", "-m", "bert_jax.main", "--config=experiments/base.py"])  # as with --mode=train, which follows
    left_out = ("bert_jax.serve", "--mode=compile", "--help")  # their tests are in RUN_BY
    for words in run:
        module, *flags = words[words.index("-m") + 1 :]
        if any(word in words for word in left_out):
            continue
        if module == "bert_jax.convert":
            if "--from=bert-base-uncased" in flags:  # a folder of this name is taken before the Hub
                _convert(["--from=runs/mine", "--to=bert-base-uncased", "--format=huggingface"])
            _convert(flags)
            continue
        options = FINE if "--config=experiments/classify.py" in flags else TINY
        small = [f"--config.{option}" for option in options.split()]
        given = {word.partition("=")[0] for word in flags}
        small = [word for word in [files, *small] if word.partition("=")[0] not in given]
        if options is FINE:
            small.remove(files)
        assert main([*flags, *small]) == 0, flags
    shown = capsys.readouterr().out
    for expected in ("The [MASK] of the list is returned.", "validation: ", "agreement", '"probabilities": {"1": '):
        assert expected in shown
    assert (tmp_path / "hf_out" / "model.safetensors").is_file()
    _run_python(ROOT / "README.md", files)
    shutil.rmtree(tmp_path / "runs")


def _convert(flags: list[str]) -> None:
    from bert_jax.convert.__main__ import main as convert

    assert convert(flags) == 0


def _run_python(page: Path, files: str) -> None:
    """Executes the block of Python on the page, with a config for its `train`."""
    (block,) = re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.S | re.M)
    config = read_command(["--config=base", files, *(f"--config.{option}" for option in TINY.split())])[1]
    names = {"config": config}
    exec(compile(block.replace("runs/mine", "runs/python"), str(page), "exec"), names)
    assert names["out"].last_hidden_state.shape[-1] == 32 and names["result"].step == 2
