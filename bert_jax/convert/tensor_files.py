"""Files of named tensors: safetensors, and PyTorch's pickles as far as they hold nothing else."""

import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from bert_jax.config import UserError
from bert_jax.data.text.json_files import read_object

DTYPES = ("F64", "F32", "F16", "BF16")  # of safetensors
Readers = dict[str, Callable[[], np.ndarray]]


def open_tensors(folder: Path) -> Readers:
    """Returns readers of all tensors in a folder. Safetensors are mapped: nothing is read before it is asked for."""
    for name, open_file in (("model.safetensors", _open_safetensors), ("pytorch_model.bin", _open_pickle)):
        if (folder / name).is_file():
            return open_file(folder / name)
        if (folder / f"{name}.index.json").is_file():
            return _open_shards(folder / f"{name}.index.json", open_file)
    raise UserError(f"{folder} has no weights: neither model.safetensors nor pytorch_model.bin, in one file or shards")


def _open_shards(index: Path, open_file: Callable[[Path], Readers]) -> Readers:
    weight_map = read_object(index, "fetch it again").get("weight_map", dict, default={})
    if not weight_map:
        raise UserError(f"{index} has no weight_map; fetch it again")
    for name, file in weight_map.items():
        # Shards lie beside their index. A name from a file must not lead out of the folder.
        if not isinstance(file, str) or Path(file).name != file or not file.strip("."):
            raise UserError(
                f"{index}: weight_map puts {name} into {file!r}, which is no file of this folder; fetch it again"
            )
        if not (index.parent / file).is_file():
            raise UserError(f"{index.parent / file} is missing; fetch the checkpoint again")
    shards = {file: open_file(index.parent / file) for file in sorted(set(weight_map.values()))}
    for name, file in weight_map.items():
        if name not in shards[file]:
            raise UserError(f"{index.parent / file} has no {name}, which {index.name} puts there; fetch it again")
    return {name: shards[file][name] for name, file in weight_map.items()}


def _open_safetensors(path: Path) -> Readers:
    try:
        with safe_open(path, framework="np") as file:  # checks that the header describes just this file
            names = list(file.keys())
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}); fetch it again") from None
    return {name: partial(_read_tensor, path, name) for name in names}


def _read_tensor(path: Path, name: str) -> np.ndarray:
    """Opens the file for this tensor alone: pages that were read would count as ours until the file is closed."""
    with safe_open(path, framework="np") as file:
        dtype = file.get_slice(name).get_dtype()
        if dtype not in DTYPES:
            raise UserError(f"{path}: {name} is of {dtype}; it can be {', '.join(DTYPES)}")
        return file.get_tensor(name)


def _open_pickle(path: Path) -> Readers:
    """Unpickles nothing but plain tensors; needs PyTorch."""
    try:
        import torch
    except ImportError:
        remedy = "`pip install torch`, or save it as safetensors"
        raise UserError(f"{path} is a pickle: reading it needs {remedy}") from None
    try:
        with warnings.catch_warnings(action="ignore"):  # of PyTorch, about the protocol of the pickle
            # Files from before PyTorch 1.6 are no zip archives, and cannot be mapped.
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # the unpickler raises whatever the bytes lead it to
        raise UserError(
            f"{path} is damaged, or holds more than plain tensors and could run code: refused; "
            "fetch it again, or model.safetensors in its place"
        ) from error
    pairs = tensors.items() if isinstance(tensors, dict) else [(None, None)]
    is_plain = (isinstance(x, torch.Tensor) and x.layout is torch.strided and isinstance(n, str) for n, x in pairs)
    if not all(is_plain):
        raise UserError(f"{path} is not a file of plain tensors by name; refused")
    return {name: (lambda tensor=tensor: tensor.float().numpy()) for name, tensor in tensors.items()}
