"""TensorFlow Datasets by name, without TensorFlow: looked up, downloaded and prepared as ArrayRecord."""

import contextlib
import importlib
import os
import re
from typing import Any

from bert_jax.config import UserError

_NAME = re.compile(r"[A-Za-z]\w*(/[\w.+-]+)?(:[\d.*]+)?")
_RETRIES = 3  # of a download; TFDS's own ten take minutes for each file when there is no network


def find_builder(name: str, where: str) -> Any:
    """Returns the builder of NAME[/CONFIG][:VERSION]. Raises UserError, beginning with `where`, if there is none.

    Names with a namespace (huggingface:…) are refused: TFDS runs code that it downloads for them.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"{where}: not a name of a TFDS data set: write NAME, NAME/CONFIG or NAME:VERSION")
    import tensorflow_datasets as tfds  # takes seconds, and only these data sets need it

    with contextlib.suppress(ImportError):  # some text sets, wikipedia among them, register only when they are imported
        importlib.import_module(f"tensorflow_datasets.text.{re.split('[/:]', name)[0]}")
    try:
        return tfds.builder(name, file_format="array_record", data_dir=os.environ.get("TFDS_DATA_DIR"))
    except OSError as error:
        raise UserError(f"{where}: cannot be looked up ({brief(error)}): check the network") from error
    except Exception as error:  # any builder's own code; TFDS asserts that a version exists
        raise UserError(f"{where}: TFDS has no such data set ({brief(error)}): see tensorflow.org/datasets") from error


def download(builder: Any, where: str) -> None:
    """Downloads and prepares a data set unless that is done. Raises UserError, beginning with `where`."""
    from tensorflow_datasets.core.download import downloader

    before, downloader.MAX_RETRIES = downloader.MAX_RETRIES, _RETRIES
    try:
        builder.download_and_prepare()
    except Exception as error:  # any builder's own code and downloads
        remedy = f"check the network, or put a prepared copy into {builder.data_dir}"
        raise UserError(f"{where}: cannot be downloaded or prepared ({brief(error)}): {remedy}") from error
    finally:
        downloader.MAX_RETRIES = before


def brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
