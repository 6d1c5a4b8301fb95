"""Rows of a table → vectors: the patches of a picture or of a spectrogram, or features of regions.

K vectors of F values each stand in a grid: patches in the rows and columns of a picture, or at a time and a range of
frequencies; regions, which have no order, in one column.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32
from ml_collections import ConfigDict

from bert_jax.config import UserError
from bert_jax.data.labelled.columns import value_in
from bert_jax.data.labelled.examples import Vectors
from bert_jax.data.labelled.tables import Row
from bert_jax.data.media import images, sound
from bert_jax.data.media.arrays import ARRAYS, array_of, check_numbers, file_in, read_array

KINDS = ("image", "sound", "features")
_POSITIONS = {"image": "grid", "sound": "axes", "features": "none"}


@dataclass(frozen=True)
class VectorSource:
    """Which column names what, and the shape of its vectors."""

    kind: str  # of KINDS
    column: str
    size: int  # F
    rows: int  # of the grid, at most
    columns: int
    positions: str  # grid, axes or none
    _config: ConfigDict = field(repr=False)

    @property
    def most(self) -> int:
        """The most vectors that a row has."""
        return self.rows * self.columns

    def read(self, row: Row, *, folder: str = "") -> Vectors:
        """Returns the vectors of a row, whose file lies in `folder`, by default where data.media says. Raises
        UserError, with row and file, for anything wrong with them."""
        value = value_in(row, self.column)
        if isinstance(value, str):
            path, number = file_in(row, self.column, folder or self._config.data.media)
            name = path.name if number is None else f"{path.name}#{number}"
            where, suffix = f"{row.origin}: {path}", path.suffix.lower()
            if suffix in ARRAYS:
                return self.of_array(read_array(path, number, self.kind, row.origin), where, name)
            if self.kind == "image" and suffix in images.PICTURES:
                return self._of_pixels(images.read_picture(path, self._config.image, row.origin), name)
            if self.kind == "sound" and suffix == ".wav":
                options = self._config.sound
                limits = options.sample_rate, options.mels, options.frames
                return self._of_spectrogram(sound.read_wav(path, *limits, row.origin), name)
            files = {"image": images.PICTURES, "sound": (".wav",), "features": ()}[self.kind]
            known = ", ".join((*files, *ARRAYS))
            raise UserError(f"{where}: suffix {suffix!r} is unknown in data.{self.kind}: give one of {known}")
        where = f"{row.origin}: column {self.column!r}"
        return self.of_array(value if isinstance(value, np.ndarray) else array_of(value, where), where, row.origin)

    def of_array(self, array: np.ndarray, where: str, name: str) -> Vectors:
        """Returns the vectors of an array: pixels, a spectrogram, or features [K, F]."""
        if self.kind == "image":
            return self._of_pixels(images.pixels_of(array, self._config.image, where), name)
        if self.kind == "sound":
            return self._of_spectrogram(sound.spectrogram_of(array, self._config.sound.mels, where), name)
        check_numbers(array, where)
        if array.ndim != 2 or array.shape[1] != self.size:
            shape = "×".join(map(str, array.shape)) or "one number"
            raise UserError(f"{where} is {shape}; features are regions × {self.size} (features.size)")
        if not 1 <= len(array) <= self.rows:
            raise UserError(f"{where} has {len(array)} regions; it can be 1 to {self.rows} (features.regions)")
        numbers = np.arange(1, len(array) + 1, dtype=np.int32)
        return Vectors(array.astype(np.float32), np.stack([numbers, np.ones_like(numbers)], axis=1), name)

    def blank(self) -> np.ndarray:
        """Returns an array that stands for the largest picture, sound or features: zeros."""
        config = self._config
        if self.kind == "image":
            return np.zeros((config.image.height, config.image.width, config.image.channels), np.float32)
        if self.kind == "sound":
            return np.zeros((config.sound.frames, config.sound.mels), np.float32)
        return np.zeros((self.rows, self.size), np.float32)

    def picture(self, vectors: Vectors) -> Float32[np.ndarray, "H W"] | None:
        """Returns what the model sees, for a reader: in grey from 0 to 1, a spectrogram with low notes below; None of
        features."""
        if self.kind == "features":
            return None
        image, options = self._config.image, self._config.sound
        height, width, channels = options.patch_frames, options.patch_mels, 1
        if self.kind == "image":
            height = width = image.patch_size
            channels = image.channels
        rows, columns = vectors.grid.max(axis=0)
        cut = vectors.values.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
        grey = cut.reshape(rows * height, columns * width, channels).mean(axis=-1)
        low, high = float(grey.min()), float(grey.max())
        grey = (grey - low) / max(high - low, 1e-6)
        return grey if self.kind == "image" else np.ascontiguousarray(grey.T[::-1])

    def _of_pixels(self, pixels: Float32[np.ndarray, "H W C"], name: str) -> Vectors:
        image = self._config.image
        mean, std = (
            images.numbers_per_channel(f"image.{key}", image[key], image.channels)[None, None]
            for key in ("mean", "std")
        )
        return Vectors(*patches((pixels - mean) / std, image.patch_size, image.patch_size), name)

    def _of_spectrogram(self, spectrogram: Float32[np.ndarray, "frames mels"], name: str) -> Vectors:
        """The last patch of a recording is filled up with zeros, the mean; frames over sound.frames are cut off."""
        options = self._config.sound
        kept = sound.normalised(spectrogram[: options.frames])
        padded = np.pad(kept, ((0, -len(kept) % options.patch_frames), (0, 0)))
        return Vectors(*patches(padded[:, :, None], options.patch_frames, options.patch_mels), name)


def vector_source(config: ConfigDict) -> VectorSource | None:
    """Returns where the vectors of a run come from; None if it reads text alone. Raises UserError for options that do
    not go together."""
    data, named = config.data, [kind for kind in KINDS if config.data[kind]]
    if not named:
        if data.modalities != "both":
            raise UserError(
                f"data.modalities={data.modalities} needs a column: set data.image, data.sound or data.features"
            )
        if data.media:
            raise UserError(f"data.media={data.media} needs a column: set data.image, data.sound or data.features")
        return None
    if len(named) > 1:
        raise UserError(f"data.{named[0]} and data.{named[1]} are both set: a model reads one beside its text")
    if data.modalities == "text":
        return None
    kind = named[0]
    positions = config.vectors.positions or _POSITIONS[kind]
    return VectorSource(kind, data[kind], *_SHAPES[kind](config), positions, config)


def patches(
    pixels: Float32[np.ndarray, "H W C"], height: int, width: int
) -> tuple[Float32[np.ndarray, "K F"], Int32[np.ndarray, "K 2"]]:
    """Returns the patches of an array, row by row, each as the values of its pixels in the order row, column, channel;
    and the row and column of each in the grid, from 1."""
    rows, columns, channels = pixels.shape[0] // height, pixels.shape[1] // width, pixels.shape[2]
    cut = pixels.reshape(rows, height, columns, width, channels).swapaxes(1, 2)
    grid = np.indices((rows, columns), np.int32).reshape(2, -1).T + np.int32(1)
    return np.ascontiguousarray(cut.reshape(rows * columns, -1)), grid


def _shape_of_images(config: ConfigDict) -> tuple[int, int, int]:
    image = config.image
    for key in ("height", "width"):
        if image[key] % image.patch_size:
            raise UserError(f"image.{key} {image[key]} is not a multiple of image.patch_size {image.patch_size}")
    for key in ("mean", "std"):
        numbers = images.numbers_per_channel(f"image.{key}", image[key], image.channels)
        if key == "std" and (numbers <= 0).any():
            raise UserError(f"image.std is {image.std!r}; it must be above 0")
    size = image.patch_size**2 * image.channels
    return size, image.height // image.patch_size, image.width // image.patch_size


def _shape_of_sound(config: ConfigDict) -> tuple[int, int, int]:
    options = config.sound
    for key, patch in (("frames", "patch_frames"), ("mels", "patch_mels")):
        if options[key] % options[patch]:
            raise UserError(f"sound.{key} {options[key]} is not a multiple of sound.{patch} {options[patch]}")
    size = options.patch_frames * options.patch_mels
    return size, math.ceil(options.frames / options.patch_frames), options.mels // options.patch_mels


def _shape_of_features(config: ConfigDict) -> tuple[int, int, int]:
    return config.features.size, config.features.regions, 1


_SHAPES: dict[str, Callable[[Any], tuple[int, int, int]]] = {
    "image": _shape_of_images,
    "sound": _shape_of_sound,
    "features": _shape_of_features,
}
