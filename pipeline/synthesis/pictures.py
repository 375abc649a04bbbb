"""Captioned pictures in COCO 2017's layout: train2017/, val2017/ and annotations/captions_*2017.json."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dmlm.pipeline.progress import track
from dmlm.pipeline.randomness import generator_for
from dmlm.pipeline.storage import write_bytes, write_json
from dmlm.pipeline.synthesis.scenes import BACKGROUNDS, COLOURS, SIZES, Arrangement, DrawnShape, Scene

if TYPE_CHECKING:
    import numpy as np
    from PIL.ImageDraw import ImageDraw

SPLITS = ("train2017", "val2017")
WIDTH = 128
"""Side of a picture in pixels."""
OVERSAMPLING = 4
"""Shapes are drawn this much larger and scaled down, for smooth edges."""
FIRST_IMAGE_ID = {"train2017": 900_001, "val2017": 950_001}

Point = tuple[float, float]


def write_pictures(root: Path, split: str, scenes: Sequence[Scene], seed: int) -> None:
    """Draws the scenes into `root`/coco/`split` and writes their captions."""
    corpus = root / "coco"
    first = FIRST_IMAGE_ID[split]
    for image_id, scene in track(
        list(enumerate(scenes, first)), f"COCO layout, {split}", len(scenes), "images"
    ):
        rng = generator_for(seed, "sample", "picture", image_id)
        write_bytes(corpus / split / _file_name(image_id), draw_scene(scene, rng))
    write_json(corpus / "annotations" / f"captions_{split}.json", _annotations(scenes, first))


def draw_scene(scene: Scene, rng: "np.random.Generator") -> bytes:
    """JPEG of a scene; `rng` moves the shapes a little."""
    from PIL import Image, ImageDraw

    side = WIDTH * OVERSAMPLING
    image = Image.new("RGB", (side, side), BACKGROUNDS[scene.background])
    draw = ImageDraw.Draw(image)
    cell = side / len(scene.shapes)
    for index, shape in enumerate(scene.shapes):
        along, across = (index + 0.5) * cell, side / 2
        shift_x, shift_y = (rng.uniform(-0.05, 0.05, 2) * side).tolist()
        x, y = (along, across) if scene.arrangement is Arrangement.ROW else (across, along)
        radius = 0.42 * SIZES[shape.size] * min(cell, side / 2)
        _draw_shape(draw, shape, (x + shift_x, y + shift_y), radius)
    buffer = io.BytesIO()
    image.resize((WIDTH, WIDTH), Image.Resampling.BOX).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _draw_shape(draw: "ImageDraw", shape: DrawnShape, centre: Point, radius: float) -> None:
    colour, (x, y) = COLOURS[shape.colour], centre
    if shape.shape == "circle":
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    else:
        draw.polygon([(x + radius * dx, y + radius * dy) for dx, dy in OUTLINES[shape.shape]], fill=colour)


_ARM = 0.33
OUTLINES: dict[str, tuple[Point, ...]] = {
    "square": ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
    "triangle": ((0, -0.95), (0.95, 0.8), (-0.95, 0.8)),
    "cross": (
        *((-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM)),
        *((_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM)),
    ),
}
"""Corners of each shape within the unit circle, y downwards."""


def _annotations(scenes: Sequence[Scene], first_image_id: int) -> dict[str, object]:
    images = [
        {"license": 1, "file_name": _file_name(image_id), "height": WIDTH, "width": WIDTH, "id": image_id}
        for image_id in range(first_image_id, first_image_id + len(scenes))
    ]
    captions = [
        {"image_id": image_id, "id": 10 * image_id + number, "caption": caption}
        for image_id, scene in enumerate(scenes, first_image_id)
        for number, caption in enumerate(scene.captions)
    ]
    return {
        "info": {"description": "Synthetic sample of dmlm in the layout of COCO 2017", "year": 2017},
        "licenses": [{"id": 1, "name": "Drawn by dmlm, no rights reserved", "url": ""}],
        "images": images,
        "annotations": captions,
    }


def _file_name(image_id: int) -> str:
    return f"{image_id:012d}.jpg"
