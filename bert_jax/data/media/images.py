"""One picture → an array of its pixels, float32[H, W, C] from 0 to 1: PNG and JPEG by Pillow, or an array."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from ml_collections import ConfigDict

from bert_jax.config import UserError
from bert_jax.data.media.arrays import check_numbers
from bert_jax.extras import install

PICTURES = (".png", ".jpg", ".jpeg")
_MOST_PIXELS = 1 << 26  # 67 million: a small file can claim any number of pixels, each of which takes memory


def read_picture(path: Path, image: ConfigDict, origin: str) -> Float32[np.ndarray, "H W C"]:
    """Returns the pixels of a PNG or JPEG file, at the size and with the channels that the group `image` says.

    It is turned upright as its EXIF data says; transparency is dropped. Raises UserError, which names `origin`, for a
    file that is no whole picture and for one of over 67 million pixels.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError:
        raise UserError(f"data.image: PNG and JPEG need the extra images: {install('images')}") from None
    modes = {1: "L", 3: "RGB"}
    if image.channels not in modes:
        raise UserError(
            f"image.channels is {image.channels}; {path.suffix} files have 1 (grey) or 3 (red, green, blue)"
        )
    where, height, width = f"{origin}: {path}", image.height, image.width
    try:
        with warnings.catch_warnings():
            # Pillow warns of many pixels and of odd metadata; the size is checked here, before pixels are decoded.
            warnings.simplefilter("ignore")
            with Image.open(path, formats=("PNG", "JPEG")) as opened:
                if opened.width * opened.height > _MOST_PIXELS:
                    raise UserError(
                        f"{where} has {opened.width}×{opened.height} pixels, over {_MOST_PIXELS:,}: shrink it"
                    )
                if opened.mode.startswith(("I", "F")):
                    raise UserError(f"{where} has {opened.mode} pixels of more than 8 bits: save it with 8 bits")
                picture = ImageOps.exif_transpose(opened).convert(modes[image.channels])
    except (Image.DecompressionBombError, UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError) as error:
        reason = str(error).splitlines()[0].replace(str(path), "it") if str(error) else type(error).__name__
        raise UserError(
            f"{where} is no whole PNG or JPEG ({reason[:120]}): save it again or leave out this row"
        ) from None
    if image.fit == "error" and picture.size != (width, height):
        raise UserError(
            f"{where} has {picture.height}×{picture.width} pixels, not the {height}×{width} of image.height and "
            "image.width; set image.fit=stretch or crop"
        )
    if image.fit == "crop":
        picture = ImageOps.fit(picture, (width, height), Image.Resampling.BICUBIC)
    elif picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(picture, np.float32).reshape(height, width, image.channels) / np.float32(255)


def pixels_of(array: np.ndarray, image: ConfigDict, where: str) -> Float32[np.ndarray, "H W C"]:
    """Returns an array [H, W] or [H, W, C] of pixels: bytes are divided by 255, other numbers stay as they are. Raises
    UserError unless it has just the size that the group `image` says."""
    check_numbers(array, where)
    wanted = (image.height, image.width, image.channels)
    shape = (*array.shape, 1) if array.ndim == 2 else array.shape
    if shape != wanted:
        raise UserError(
            f"{where} is {_by(array.shape)}; image.height, image.width and image.channels say {_by(wanted)}"
        )
    pixels = array.reshape(wanted).astype(np.float32)
    return pixels / np.float32(255) if array.dtype == np.uint8 else pixels


def numbers_per_channel(option: str, text: str, channels: int) -> Float32[np.ndarray, " C"]:
    """Returns one number per channel from an option: one for all, or as many, comma-separated. Raises UserError."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, channels) or not np.isfinite(numbers).all():
        raise UserError(f"{option} is {text!r}; give one number, or {channels} (image.channels), comma-separated")
    return np.broadcast_to(np.asarray(numbers, np.float32), (channels,)).copy()


def _by(shape: Any) -> str:
    return "×".join(map(str, shape)) or "one number"
