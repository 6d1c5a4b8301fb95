"""TensorFlow Datasets by name, without TensorFlow: looked up, downloaded and prepared as ArrayRecord."""

import contextlib
import importlib
import os
import re
from typing import Any

from bert_jax.config import UserError


def find_builder(name: str, where: str) -> Any:
    """The builder of NAME[/CONFIG][:VERSION]. UserError, beginning with `where`, if there is none or no network."""
    import tensorflow_datasets as tfds  # takes seconds, and only these data sets need it

    with contextlib.suppress(ImportError):  # some text sets, wikipedia among them, register only when they are imported
        importlib.import_module(f"tensorflow_datasets.text.{re.split('[/:]', name)[0]}")
    try:
        return tfds.builder(name, file_format="array_record", data_dir=os.environ.get("TFDS_DATA_DIR"))
    except (tfds.core.DatasetNotFoundError, ValueError, AttributeError, ImportError) as error:
        raise UserError(f"{where}: TFDS has no such data set ({brief(error)}): see tensorflow.org/datasets") from error
    except OSError as error:
        raise UserError(f"{where}: cannot be looked up ({brief(error)}): check the network") from error


def download(builder: Any, where: str) -> None:
    """Does nothing where a prepared copy lies; UserError, beginning with `where`, if it cannot be had."""
    try:
        builder.download_and_prepare()
    except Exception as error:  # any builder's own code and downloads
        raise UserError(
            f"{where}: cannot be downloaded or prepared ({brief(error)}): check the network, or put a prepared copy "
            f"into {builder.data_dir}"
        ) from error


def brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
