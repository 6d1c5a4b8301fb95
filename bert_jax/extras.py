"""The extras of setup.cfg: packages that only some of the work needs."""

import os
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]


def install(extra: str) -> str:
    """Returns the command that installs an extra: of the checkout that this package runs from, or else by its name."""
    if not (_ROOT / "setup.cfg").is_file():
        return f"pip install 'bert_jax[{extra}]'"
    is_here = os.path.samefile(".", _ROOT)  # Path.cwd() fails where the current folder was deleted
    return f"pip install -e '{'.' if is_here else _ROOT}[{extra}]'"
