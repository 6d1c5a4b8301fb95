"""A trained checkpoint at work. Each tool needs a checkpoint folder and nothing else.

`Predictor` and `Embedder` can be imported from here; `output.py` writes files.
"""

from typing import Any

_TOOLS = {"Predictor": "predictor", "Embedder": "embeddings", "FillMask": "fill_mask"}


def __getattr__(name: str) -> Any:
    """Imported when first used: they need JAX, which takes a while."""
    if name not in _TOOLS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_TOOLS[name]}"), name)
