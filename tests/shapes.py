"""The type checker of the tests: shapes and dtypes of arrays, as signatures and dataclasses say them.

`conftest.py` gives it to jaxtyping's import hook. Arguments and results are checked in plain calls and while a program
is traced; a compiled program contains nothing of it.
"""

import inspect
from collections.abc import Callable
from typing import Any, get_args

from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float


def checked(function: Callable) -> Callable:
    """Returns the function with beartype's checks of those arguments and results whose annotations contain the shape of
    an array. All others are left to pyright: tests may put a simple object in the place of a config."""
    hints = inspect.get_annotations(function)
    function.__annotations__ = {name: hint for name, hint in hints.items() if _has_shape(hint)}
    return _check(function) if function.__annotations__ else function


def _has_shape(annotation: Any) -> bool:
    is_array = isinstance(annotation, type) and issubclass(annotation, AbstractArray)
    return is_array or any(map(_has_shape, get_args(annotation)))
