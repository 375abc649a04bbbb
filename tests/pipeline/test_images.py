import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dmlm.pipeline.errors import DmlmError, ImageError
from dmlm.pipeline.images import load_image

ORIENTATION_TAG = 0x0112


def half_red_half_blue():
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16, 0] = 255
    pixels[:, 16:, 2] = 255
    return Image.fromarray(pixels)


def png_header(width, height):
    """A PNG that claims a size and holds nothing."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    )


@pytest.mark.parametrize("name", ["a.png", "a.webp"])
def test_lossless_image_comes_back_exactly(tmp_path, name):
    image = half_red_half_blue()
    image.save(tmp_path / name, lossless=True)
    pixels = load_image(tmp_path / name)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (16, 32, 3)
    assert np.array_equal(pixels, np.asarray(image))
    assert pixels.flags.writeable


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_jpeg_of_any_mode_becomes_rgb(tmp_path, mode):
    Image.new(mode, (8, 8)).save(tmp_path / "a.jpg")
    assert load_image(tmp_path / "a.jpg").shape == (8, 8, 3)


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = 6  # turn by 90 degrees clockwise to look at it
    half_red_half_blue().save(tmp_path / "a.jpg", exif=exif, quality=100, subsampling=0)
    pixels = load_image(tmp_path / "a.jpg")
    assert pixels.shape == (32, 16, 3)
    assert pixels[4, 8, 0] > 200
    assert pixels[28, 8, 2] > 200


@pytest.mark.parametrize(
    ("mode", "colour", "seen"),
    [
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 255), (255, 0, 0)),
        ("LA", (0, 51), (204, 204, 204)),
        ("P", 0, (255, 255, 255)),
    ],
)
def test_transparent_image_lies_on_white(tmp_path, mode, colour, seen):
    image = Image.new(mode, (8, 8), colour)
    image.save(tmp_path / "a.png", **({"transparency": 0} if mode == "P" else {}))
    assert (load_image(tmp_path / "a.png") == seen).all()


def cut_jpeg(path):
    half_red_half_blue().save(path)
    path.write_bytes(path.read_bytes()[:-100])


BROKEN = {
    "missing": (lambda path: None, "no such file"),
    "empty": (lambda path: path.touch(), "cannot be decoded"),
    "no image": (
        lambda path: path.write_bytes(b"this is no image"),
        r"a\.jpg: cannot be decoded \(cannot identify image file\)$",
    ),
    "cut off": (cut_jpeg, "(?i)truncated"),
    "pillow's warning": (lambda path: path.write_bytes(png_header(9_500, 9_500)), "limit 89478485"),
    "pillow's error": (lambda path: path.write_bytes(png_header(65_000, 65_000)), "exceeds limit"),
    "gif": (lambda path: half_red_half_blue().save(path, format="GIF"), "cannot be decoded"),
    "grey of 16 bits": (
        lambda path: Image.fromarray(np.full((4, 4), 999, np.uint16)).save(path, format="PNG"),
        "grey of more than 8 bits",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_image_is_an_image_error_that_names_the_file(tmp_path, case):
    make, message = BROKEN[case]
    path = tmp_path / "a.jpg"
    make(path)
    with pytest.raises(ImageError, match=message) as raised:
        load_image(path)
    assert str(raised.value).startswith(str(path))


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
@settings(max_examples=70, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_image_raises_nothing_but_our_own_errors(tmp_path, name, data):
    path = tmp_path / name
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = 6
    half_red_half_blue().save(path, exif=exif)
    content = bytearray(path.read_bytes())
    for offset in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=5)):
        content[offset] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with suppress(DmlmError):
        assert load_image(path).shape[2] == 3
