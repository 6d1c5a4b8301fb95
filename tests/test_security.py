"""What SECURITY.md claims: every claim has a test that exists; those that belong to no single file are here."""

import ast
import re
import sys
from pathlib import Path

import pytest
from flax import nnx

import bert_jax
from bert_jax.config import UserError
from bert_jax.data.tokenizers.wordpiece import make_wordpiece
from bert_jax.tasks.pretraining import Pretraining
from bert_jax.training.checkpoint import write_checkpoint
from bert_jax.training.parameters import flatten
from experiments import base

ROOT = Path(__file__).resolve().parents[1]
TOKENIZER = make_wordpiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"], "test", True, None, True)

# Calls that execute, unpickle or unpack what they are given: functions, methods of anything, and keywords.
DANGEROUS = {"eval", "exec", "compile", "__import__", "allow_pickle=", "shell=", ".import_module", ".system", ".popen"}
DANGEROUS |= {".extract", ".extractall", ".unpack_archive", ".TarFile", ".Unpickler", ".read_pickle"}
DANGEROUS |= {f"{module}.{name}" for module in ("pickle", "marshal", "torch", "yaml") for name in ("load", "loads")}
DANGEROUS |= {f"subprocess.{name}" for name in ("run", "call", "check_call", "check_output", "Popen")}
DANGEROUS |= {"tarfile.open", "shelve.open"}
# Where one of them stands, and why it may.
REASONS = {
    ("experiment.py", "exec"): "the config file that the user names",
    ("experiment.py", "compile"): "the config file that the user names",
    ("lab/compile.py", "subprocess.run"): "the same program once more, for another device",
    ("lab/provenance.py", "subprocess.run"): "git, in the folder of this code",
    ("tasks/__init__.py", ".import_module"): "a class of ours, or the one that the user names",
    ("data/text/tfds_names.py", ".import_module"): "a module of TFDS, by a name of the user's",
    ("data/pretraining/workers.py", "pickle.loads"): "what the line itself pickled",
    ("convert/tensor_files.py", "torch.load"): "with weights_only",
}


def test_every_claim_names_a_test_that_exists():
    claimed = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "SECURITY.md").read_text())
    assert len(claimed) >= 20
    for file, name in claimed:
        assert re.search(rf"^\s*def {name}\(", (ROOT / file).read_text(), re.MULTILINE), (file, name)


def test_nothing_in_the_package_executes_or_unpacks_what_it_reads():
    found = set()
    for path in sorted((ROOT / "bert_jax").rglob("*.py")):
        file = str(path.relative_to(ROOT / "bert_jax"))
        for node in ast.walk(ast.parse(path.read_text())):
            found |= {(file, name) for name in dangerous_names(node)}
            if "torch.load" in dangerous_names(node):
                assert "weights_only=True" in ast.unparse(node)
    assert found == set(REASONS)


def dangerous_names(node: ast.AST) -> set[str]:
    """Returns those of DANGEROUS that a call is: `pickle.load(…)`, `file.extractall(…)`, `load(…, allow_pickle=…)`."""
    if not isinstance(node, ast.Call):
        return set()
    parts = ast.unparse(node.func).split(".")
    switched_on = (word for word in node.keywords if ast.unparse(word.value) != "False")
    names = {".".join(parts[-2:]), *(f"{word.arg}=" for word in switched_on)}
    return (names | {f".{parts[-1]}"} if len(parts) > 1 else names) & DANGEROUS


@pytest.mark.parametrize(
    "line",
    [
        "pickle.load(file)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "tarfile.open(path).extractall(folder)",
        "eval(text)",
        "os.system(text)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_a_dangerous_call_is_recognised(line: str):
    assert dangerous_names(ast.parse(line, mode="eval").body)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a pretraining run, from somebody whose config names a class of their own."""
    workdir = tmp_path_factory.mktemp("theirs") / "run"
    config = base.get_config()
    config.model.update(size=None, hidden_size=16, num_attention_heads=2, num_hidden_layers=1, intermediate_size=32)
    config.model.update(max_position_embeddings=32, embedding_size=16, dtype="float32")
    config.data.sequence_length = 32
    parameters = flatten(Pretraining(config, TOKENIZER, None).init(nnx.Rngs(params=0)))
    config.task = "hostile_task.Canary"
    content = {"step": 3, "config": config.to_dict(), "task": {}}
    write_checkpoint(workdir / "checkpoints" / "3", parameters, content, TOKENIZER)
    return workdir


def test_the_class_that_a_checkpoint_names_is_not_imported(run: Path, monkeypatch: pytest.MonkeyPatch):
    (run.parent / "hostile_task.py").write_text("raise SystemExit('executed')\n")
    monkeypatch.syspath_prepend(run.parent)
    model = bert_jax.load(run)
    assert len(model.fill_mask("a [MASK]")) == 1  # the trunk and the MLM head need no class
    with pytest.raises(UserError, match=r"hostile_task\.Canary"):
        model.predict("a b")
    assert "hostile_task" not in sys.modules


def test_reading_a_run_changes_nothing_in_it(run: Path):
    before = content_of(run)
    model = bert_jax.load(run)
    model.fill_mask("a [MASK]")
    model.embed(["a b"])
    assert content_of(run) == before


def content_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    paths = sorted(folder.rglob("*"))
    return {str(path): (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else b"") for path in paths}
