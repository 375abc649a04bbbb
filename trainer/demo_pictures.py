"""A sheet of held-out images, each above the picture that its tokens decode to."""

from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np

from dmlm.pipeline.images import load_image
from dmlm.pipeline.samples import ImageCaption
from dmlm.pipeline.shards import CODEBOOK_NAME, iter_samples
from dmlm.pipeline.sources import open_source
from dmlm.pipeline.tokenizers.registry import load_tokenizers

NUM_IMAGES: Final = 8
TILE_PIXELS: Final = 160
GAP_PIXELS: Final = 8


def write_reconstructions(shard_dir: Path, root: Path, path: Path, split: str = "val2017") -> Path:
    """Writes a PNG: images of a split of COCO on top, below each what the tokens in the shards kept of it.

    Args:
        shard_dir: Data set of the images' tokens.
        root: Where the images are.
        path: PNG to write.
        split: Of the images.
    """
    from PIL import Image

    tokenizer = load_tokenizers(shard_dir / CODEBOOK_NAME).image
    if tokenizer is None:
        raise ValueError(f"{shard_dir} holds no images")
    items = open_source("coco", root, (split,)).iter_items()
    image_paths = {item.image_id: item.image_path for item in items if isinstance(item, ImageCaption)}
    tokens = {
        sample.image_id: sample.image_tokens
        for sample in iter_samples(shard_dir)
        if sample.image_id in image_paths and sample.image_tokens is not None
    }
    sheet = Image.new("RGB", _corner(min(NUM_IMAGES, len(tokens)), 2), "white")
    for column, (image_id, codes) in enumerate(islice(tokens.items(), NUM_IMAGES)):
        pictures = (load_image(image_paths[str(image_id)]), tokenizer.decode(codes))
        for row, pixels in enumerate(pictures):
            tile = Image.fromarray(_square(pixels)).resize((TILE_PIXELS, TILE_PIXELS))
            sheet.paste(tile, _corner(column, row))
    sheet.save(path)
    return path


def _corner(column: int, row: int) -> tuple[int, int]:
    step = TILE_PIXELS + GAP_PIXELS
    return GAP_PIXELS + column * step, GAP_PIXELS + row * step


def _square(pixels: np.ndarray) -> np.ndarray:
    """The middle square, which is what the tokenizer sees."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]
