"""Files of named tensors: safetensors, and PyTorch's pickles as far as they hold nothing else."""

import json
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from bert_jax.config import UserError
from bert_jax.convert.foreign_json import read_json

DTYPES = {  # of safetensors
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


def open_tensors(folder: Path) -> dict[str, Callable[[], np.ndarray]]:
    """Readers of all tensors in a folder. Safetensors are memory-mapped: nothing is read before it is asked for."""
    single, sharded = folder / "model.safetensors", folder / "model.safetensors.index.json"
    pickled, pickled_shards = folder / "pytorch_model.bin", folder / "pytorch_model.bin.index.json"
    if single.is_file():
        return _open_safetensors(single)
    if sharded.is_file():
        return _open_shards(sharded, _open_safetensors)
    if pickled.is_file():
        return _open_pickle(pickled)
    if pickled_shards.is_file():
        return _open_shards(pickled_shards, _open_pickle)
    raise UserError(f"{folder} has no weights: neither {single.name} nor {sharded.name} nor {pickled.name}")


def _open_shards(index: Path, open_file: Callable[[Path], dict]) -> dict[str, Callable[[], np.ndarray]]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} has no weight_map; fetch it again")
    for name, file in weight_map.items():
        # Shards lie beside their index. A name from a file must not lead out of the folder.
        if not isinstance(file, str) or Path(file).name != file or not file.strip("."):
            raise UserError(
                f"{index}: weight_map puts {name} into {file!r}, which is no file of this folder; fetch it again"
            )
    shards = {file: open_file(index.parent / file) for file in sorted(set(weight_map.values()))}
    for name, file in weight_map.items():
        if name not in shards[file]:
            raise UserError(f"{index.parent / file} has no {name}, which {index.name} puts there; fetch it again")
    return {name: shards[file][name] for name, file in weight_map.items()}


def _open_safetensors(path: Path) -> dict[str, Callable[[], np.ndarray]]:
    """Each tensor is mapped by itself, and let go of: pages that were read would count as ours until the end."""
    if not path.is_file():
        raise UserError(f"{path} is missing; fetch the checkpoint again")
    try:
        with safe_open(path, framework="np") as file:  # checks that the header describes just this file
            names = list(file.keys())
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}); fetch it again") from None
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    return {name: partial(_map_tensor, path, 8 + size, name, header[name]) for name in names}


def _map_tensor(path: Path, start: int, name: str, entry: dict[str, Any]) -> np.ndarray:
    if entry["dtype"] not in DTYPES:
        raise UserError(f"{path}: {name} is of {entry['dtype']}; it can be {', '.join(DTYPES)}")
    begin, end = entry["data_offsets"]
    dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
    if begin == end:  # nothing cannot be mapped
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", start + begin, shape)


def _open_pickle(path: Path) -> dict[str, Callable[[], np.ndarray]]:
    """Only plain tensors are unpickled; needs PyTorch."""
    if not path.is_file():
        raise UserError(f"{path} is missing; fetch the checkpoint again")
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{path} is a pickle: reading it needs `pip install torch`, or save it as safetensors"
        ) from None
    try:
        with warnings.catch_warnings(action="ignore"):  # of PyTorch, about the protocol of the pickle
            # Files from before PyTorch 1.6 are no zip archives, and cannot be mapped.
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # the unpickler raises whatever the bytes lead it to
        raise UserError(
            f"{path} is damaged, or holds more than plain tensors and could run code: refused; "
            "fetch it again, or model.safetensors in its place"
        ) from error
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) and value.layout is torch.strided
        for name, value in tensors.items()
    ):
        raise UserError(f"{path} is not a file of plain tensors by name; refused")
    return {name: (lambda tensor=tensor: tensor.float().numpy()) for name, tensor in tensors.items()}
