"""Image tokens that need no download: a k-means codebook over 8 × 8 patches, and back to pixels.

Suffixes: P patch (raster order), D 8 · 8 · 3 values in [0, 1], R row of patches, C column of patches.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from dmlm.pipeline.codebooks.codebook import Codebook, NearestCentroid, Vectors
from dmlm.pipeline.errors import ConfigError, CorruptInputError, FingerprintMismatchError
from dmlm.pipeline.images import TRANSPARENCY
from dmlm.pipeline.samples import Modality, Pixels, TokenArray
from dmlm.pipeline.tokenizers import Fingerprint
from dmlm.pipeline.vocabulary import check_ids

PATCH_PIXELS = 8
ENCODER = "patch"


def patch_features(resolution: int) -> Fingerprint:
    """What patches depend on.

    Raises:
        ConfigError: `resolution` is not a positive multiple of 8.
    """
    if resolution < PATCH_PIXELS or resolution % PATCH_PIXELS:
        raise ConfigError(f"image resolution {resolution}: must be a multiple of {PATCH_PIXELS}")
    return {"encoder": ENCODER, "resolution": resolution, "patch_pixels": PATCH_PIXELS}


def image_to_patches(image: Pixels, resolution: int) -> Vectors:
    """Patches [P, D] of the central square, resized to `resolution` by antialiased bicubic filtering."""
    from PIL import Image

    height, width, _ = image.shape
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    square = Image.fromarray(image).resize(
        (resolution, resolution), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side)
    )
    num_rows = resolution // PATCH_PIXELS
    grid = np.asarray(square).reshape(num_rows, PATCH_PIXELS, num_rows, PATCH_PIXELS, 3)
    patches_PD = grid.transpose(0, 2, 1, 3, 4).reshape(num_rows * num_rows, -1)
    return patches_PD.astype(np.float32) / np.float32(255)


class PatchTokenizer:
    """Images to the ids of their patches' nearest centroids; an ImageTokenizer."""

    def __init__(self, codebook: Codebook) -> None:
        """Takes the resolution from the codebook.

        Raises:
            FingerprintMismatchError: The codebook is not one of such patches.
        """
        resolution = codebook.features.get("resolution")
        width = PATCH_PIXELS * PATCH_PIXELS * 3
        if not isinstance(resolution, int) or codebook.features != patch_features(resolution):
            raise FingerprintMismatchError(
                f"not a codebook of image patches, but of {dict(codebook.features)}"
            )
        if codebook.centroids_KD.shape[1] != width:
            raise CorruptInputError(
                f"centroids of image patches must be {width} wide, found {codebook.centroids_KD.shape[1]}"
            )
        self._resolution, self._codebook = resolution, codebook
        self._quantise = NearestCentroid(codebook.centroids_KD)

    @property
    def num_tokens(self) -> int:
        """Clusters of the codebook."""
        return self._codebook.num_clusters

    @property
    def fingerprint(self) -> Fingerprint:
        """Patch size, resolution and the codebook's sha256."""
        return {
            **self._codebook.features,
            "transparency": TRANSPARENCY,
            "num_clusters": self.num_tokens,
            "codebook_sha256": self._codebook.sha256,
        }

    def encode(self, images: Iterable[Pixels]) -> Iterator[TokenArray]:
        """Yields (resolution / 8)² tokens of each image, in raster order."""
        import torch

        for image in images:
            patches_PD = torch.from_numpy(image_to_patches(image, self._resolution))
            yield self._quantise(patches_PD).numpy().astype(np.int32)

    def decode(self, tokens: TokenArray) -> Pixels:
        """Square image put together from the tokens' centroids.

        Raises:
            CorruptInputError: Not one token per patch, or an id out of range.
        """
        num_rows = self._resolution // PATCH_PIXELS
        if tokens.shape != (num_rows * num_rows,):
            raise CorruptInputError(f"an image has {num_rows * num_rows} tokens, not {tokens.size}")
        check_ids(tokens, self.num_tokens, Modality.IMAGE)
        patches_PD = self._codebook.centroids_KD[tokens]
        grid = patches_PD.reshape(num_rows, num_rows, PATCH_PIXELS, PATCH_PIXELS, 3).transpose(0, 2, 1, 3, 4)
        pixels = grid.reshape(self._resolution, self._resolution, 3)
        return np.clip(np.rint(pixels * 255), 0, 255).astype(np.uint8)
