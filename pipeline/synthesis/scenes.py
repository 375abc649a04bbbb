"""Drawn scenes: one or two coloured shapes, side by side or one below the other, and captions that name them.

They hold no more than the codes of 64 patches can: a third shape would be one or two patches wide, and stars
and diamonds look like crosses and circles there.
"""

from dataclasses import astuple, dataclass
from enum import StrEnum
from typing import TypeVar

import numpy as np

Choice = TypeVar("Choice")

COLOURS = {
    "red": (205, 40, 40),
    "green": (40, 150, 60),
    "blue": (45, 80, 200),
    "yellow": (240, 210, 50),
}
BACKGROUNDS = {
    "white": (245, 245, 245),
    "gray": (150, 150, 150),
    "black": (20, 20, 20),
}
SHAPES = ("circle", "square", "triangle", "cross")
SIZES = {"small": 0.6, "large": 1.0}
NUM_CAPTIONS = 3


class Arrangement(StrEnum):
    """How the shapes of a scene stand to each other."""

    ROW = "row"
    COLUMN = "column"


@dataclass(frozen=True, slots=True)
class DrawnShape:
    """One shape of a scene."""

    size: str
    colour: str
    shape: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What is to be drawn: shapes from left to right or from top to bottom."""

    shapes: tuple[DrawnShape, ...]
    background: str
    arrangement: Arrangement
    captions: tuple[str, ...]

    @property
    def combination(self) -> tuple[str, ...]:
        """Background and shapes in any order: what a held-out scene shares with no training scene."""
        return (self.background, *sorted(" ".join(astuple(shape)) for shape in self.shapes))


LIST_CAPTIONS = (
    "{shapes} on a {background} background.",
    "A {background} picture with {shapes}.",
    "A drawing of {shapes} in front of a {background} wall.",
    "On a {background} page somebody has drawn {shapes}.",
    "The {background} image shows {shapes}.",
)
ORDER_CAPTIONS = {
    Arrangement.ROW: ("From left to right there is {shapes}.", "{shapes}, side by side on {background}."),
    Arrangement.COLUMN: (
        "From top to bottom there is {shapes}.",
        "{shapes}, one below the other on {background}.",
    ),
}


def make_scene(rng: np.random.Generator) -> Scene:
    """A scene of one or two shapes with captions in different wordings."""
    num_shapes = int(rng.choice((1, 2), p=(0.4, 0.6)))
    shapes = tuple(
        DrawnShape(_pick(tuple(SIZES), rng), _pick(tuple(COLOURS), rng), _pick(SHAPES, rng))
        for _ in range(num_shapes)
    )
    background = _pick(tuple(BACKGROUNDS), rng)
    arrangement = _pick(tuple(Arrangement), rng)
    wordings = LIST_CAPTIONS if num_shapes == 1 else LIST_CAPTIONS + ORDER_CAPTIONS[arrangement]
    chosen = rng.permutation(len(wordings))[:NUM_CAPTIONS]
    return Scene(
        shapes=shapes,
        background=background,
        arrangement=arrangement,
        captions=tuple(_caption(wordings[index], shapes, background) for index in chosen),
    )


def _caption(wording: str, shapes: tuple[DrawnShape, ...], background: str) -> str:
    names = [f"a {shape.size} {shape.colour} {shape.shape}" for shape in shapes]
    listed = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
    caption = wording.format(shapes=listed, background=background)
    return caption[0].upper() + caption[1:]


def _pick(choices: tuple[Choice, ...], rng: np.random.Generator) -> Choice:
    return choices[rng.integers(len(choices))]
