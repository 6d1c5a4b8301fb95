"""From a config file and flags to a config that can be trusted: loading, overrides, validation, comparison.

`UserError` is how every room says that something is wrong which the user can mend; `main.py` turns it into
one line and exit status 2.
"""

import difflib
import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict


class UserError(Exception):
    """Something a user can mend: what is wrong, where, and what to do, in one line."""
