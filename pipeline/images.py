"""Safe decoding of images: a file to upright RGB pixels, its size checked before anything is decoded."""

import struct
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dmlm.pipeline.errors import ImageError
from dmlm.pipeline.samples import Pixels

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP")
"""Formats that are decoded; Pillow's other decoders are never reached."""
MAX_PIXELS = 89_478_485
"""Where Pillow starts to warn of decompression bombs; here it is the end."""
MAX_EXPANSION = 200
"""Decoded bytes per byte of the file, for images of more than `MIN_EXPANDED_BYTES`."""
MIN_EXPANDED_BYTES = 16 << 20
"""One colour expands a thousandfold in PNG; where little comes out that is harmless."""

TRANSPARENCY = "on white"
"""What shows where an image is transparent; part of what its tokens depend on."""

_DECODER_ERRORS = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, struct.error)
"""What Pillow's decoders are known to raise on damaged files."""


def load_image(path: Path) -> Pixels:
    """Pixels of an image, height × width × 3, turned as its EXIF orientation says.

    White shows through where it is transparent. Of colours of 16 bits, and of grey with alpha, the upper 8
    are taken.

    Raises:
        ImageError: Missing, undecodable, cut off, over a limit or grey of more than 8 bits without alpha.
    """
    from PIL import Image

    if not path.is_file():
        raise ImageError(f"{path}: no such file")
    try:
        return _decode(path)
    except (*_DECODER_ERRORS, Image.DecompressionBombError) as error:
        reason = (
            " ".join(str(error).replace(f" {str(path)!r}", "").split()).rstrip(":") or type(error).__name__
        )
        raise ImageError(f"{path}: cannot be decoded ({reason})") from error


def _decode(path: Path) -> Pixels:
    from PIL import Image, ImageOps

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(path, formats=FORMATS)
    with image:
        _check_size(path, image.width, image.height)
        if image.mode.startswith(("I", "F")):
            raise ImageError(
                f"{path}: grey of more than 8 bits without alpha (mode {image.mode}); convert it"
            )
        ImageOps.exif_transpose(image, in_place=True)
        return np.array(_to_rgb(image), dtype=np.uint8)


def _to_rgb(image: "Image.Image") -> "Image.Image":
    from PIL import Image

    if image.has_transparency_data:  # what is hidden may have any colour
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image if image.mode == "RGB" else image.convert("RGB")


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(f"{path}: {width} × {height} pixels, limit {MAX_PIXELS}")
    num_bytes = path.stat().st_size
    if 3 * width * height > max(MIN_EXPANDED_BYTES, MAX_EXPANSION * num_bytes):
        raise ImageError(
            f"{path}: {num_bytes} bytes claim to hold {width} × {height} pixels; limit {MAX_EXPANSION}-fold"
        )
