"""Safe decoding of images: a file to upright RGB pixels, its size checked before anything is decoded."""

import struct
import warnings
from pathlib import Path

import numpy as np

from dmlm.pipeline.errors import ImageError
from dmlm.pipeline.samples import Pixels

FORMATS = ("JPEG", "PNG", "WEBP")
"""Formats that are decoded; Pillow's other decoders are never reached."""
MAX_PIXELS = 89_478_485
"""Where Pillow starts to warn of decompression bombs; here it is the end."""

_DECODER_ERRORS = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, struct.error)
"""What Pillow's decoders are known to raise on damaged files."""


def load_image(path: Path) -> Pixels:
    """Pixels of an image, height × width × 3, turned as its EXIF orientation says.

    Raises:
        ImageError: Missing, undecodable, cut off, over 89 megapixels or of more than 8 bits a channel.
    """
    from PIL import Image

    if not path.is_file():
        raise ImageError(f"{path}: no such file")
    try:
        return _decode(path)
    except (*_DECODER_ERRORS, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).replace(str(path), "").split()) or type(error).__name__
        raise ImageError(f"{path}: cannot be decoded ({reason})") from error


def _decode(path: Path) -> Pixels:
    from PIL import Image, ImageOps

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(path, formats=FORMATS)
    with image:
        if image.width * image.height > MAX_PIXELS:
            raise ImageError(f"{path}: {image.width} × {image.height} pixels, limit {MAX_PIXELS}")
        if image.mode.startswith(("I", "F")):
            raise ImageError(f"{path}: more than 8 bits a channel (mode {image.mode}); convert it")
        return np.array(ImageOps.exif_transpose(image).convert("RGB"), dtype=np.uint8)
