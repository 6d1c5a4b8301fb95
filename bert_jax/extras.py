"""The extras of setup.cfg: packages that only some of the work needs."""

from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]


def install(extra: str) -> str:
    """Returns the command that installs an extra: of the checkout that this package runs from, or else by its name."""
    if not (_ROOT / "setup.cfg").is_file():
        return f"pip install 'bert_jax[{extra}]'"
    return f"pip install -e '{'.' if Path.cwd() == _ROOT else _ROOT}[{extra}]'"
