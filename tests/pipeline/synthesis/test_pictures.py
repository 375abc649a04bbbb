import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmlm.pipeline.synthesis.pictures import WIDTH, draw_scene, write_pictures
from dmlm.pipeline.synthesis.scenes import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    Arrangement,
    DrawnShape,
    Scene,
    make_scene,
)


def draw(*shapes: DrawnShape, arrangement: Arrangement = Arrangement.ROW) -> np.ndarray:
    scene = Scene(shapes=shapes, background="white", arrangement=arrangement, captions=())
    data = draw_scene(scene, np.random.default_rng(0))
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def where_is(pixels: np.ndarray, colour: str) -> np.ndarray:
    return np.argwhere(np.abs(pixels - COLOURS[colour]).max(axis=-1) < 40)


@pytest.mark.parametrize("colour", COLOURS)
def test_a_shape_has_the_colour_of_its_caption(colour: str) -> None:
    share = len(where_is(draw(DrawnShape("large", colour, "square")), colour)) / WIDTH**2
    assert 0.05 < share < 0.4


def test_shapes_look_different() -> None:
    pictures = [draw(DrawnShape("large", "blue", shape)) for shape in SHAPES]
    for index, first in enumerate(pictures):
        for second in pictures[:index]:
            assert np.mean(np.abs(first - second).max(axis=-1) > 60) > 0.01


def test_a_small_shape_is_smaller() -> None:
    small, large = (
        len(where_is(draw(DrawnShape(size, "red", "cross")), "red")) for size in ("small", "large")
    )
    assert small < 0.6 * large


@pytest.mark.parametrize(("arrangement", "axis"), [(Arrangement.ROW, 1), (Arrangement.COLUMN, 0)])
def test_shapes_stand_in_the_order_of_the_caption(arrangement: Arrangement, axis: int) -> None:
    shapes = [DrawnShape("large", colour, "circle") for colour in ("red", "green", "blue")]
    pixels = draw(*shapes, arrangement=arrangement)
    centres = [where_is(pixels, colour).mean(axis=0)[axis] for colour in ("red", "green", "blue")]
    assert centres == sorted(centres)
    assert centres[2] - centres[0] > WIDTH / 3


def test_captions_name_every_shape_and_differ() -> None:
    rng = np.random.default_rng(0)
    for scene in (make_scene(rng) for _ in range(200)):
        assert len(set(scene.captions)) == 3
        for shape in scene.shapes:
            name = f"{shape.size} {shape.colour} {shape.shape}"
            assert all(name in caption for caption in scene.captions)


def test_colours_can_be_told_from_backgrounds() -> None:
    for colour in COLOURS.values():
        for background in BACKGROUNDS.values():
            assert np.abs(np.subtract(colour, background)).max() > 60


def test_ids_are_unique_and_every_caption_has_its_image(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for split in ("train2017", "val2017"):
        write_pictures(tmp_path, split, [make_scene(rng) for _ in range(3)], seed=0)
    cards = [json.loads(path.read_bytes()) for path in sorted((tmp_path / "coco/annotations").iterdir())]
    images = [image for card in cards for image in card["images"]]
    captions = [caption for card in cards for caption in card["annotations"]]
    assert len({image["id"] for image in images}) == 6
    assert len({caption["id"] for caption in captions}) == 18
    assert {caption["image_id"] for caption in captions} == {image["id"] for image in images}
    files = {path.name for path in tmp_path.glob("coco/*/*.jpg")}
    assert files == {image["file_name"] for image in images}
