"""Image tokens of DALL-E: 8,192 codes of a discrete VAE, one for 8 × 8 pixels, and back to pixels.

Images are prepared as in the notebook of the reference package: the shorter side is resized to the
resolution by Lanczos filtering, the centre is cut out, and pixels are mapped into [0.1, 0.9]. Smaller images,
which the notebook refuses, are enlarged.

Suffixes: B image, H row, W column, C channel.
"""

from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from dmlm.pipeline.converters.checkpoints import State, hash_state
from dmlm.pipeline.converters.dalle import load_dalle_decoder, load_dalle_encoder
from dmlm.pipeline.devices import open_device
from dmlm.pipeline.encoders.dvae import DOWNSAMPLING, Decoder, Encoder
from dmlm.pipeline.errors import ConfigError, CorruptInputError
from dmlm.pipeline.images import TRANSPARENCY
from dmlm.pipeline.samples import Modality, Pixels, TokenArray
from dmlm.pipeline.tokenizers import Fingerprint
from dmlm.pipeline.vocabulary import check_ids

RESOLUTIONS: Final = (256, 128, 112)
MAP_PIXELS_EPS: Final = 0.1
GPU_BATCH: Final = 32
MAX_ASPECT: Final = 16
"""What is further out cannot reach the central square; a line of pixels would become a huge image."""


class DalleTokenizer:
    """Images to (resolution / 8)² codes; an ImageTokenizer."""

    def __init__(
        self, encoder: Encoder, state: State, directory: Path, *, resolution: int, device: str = "auto"
    ) -> None:
        """Takes a loaded encoder, its weights and the folder of the decoder, which is read when it is needed.

        Raises:
            ConfigError: The resolution is none of 256, 128 and 112, or there is no such device.
        """
        if resolution not in RESOLUTIONS:
            raise ConfigError(f"image resolution {resolution}: the dVAE takes 256, 128 or 112")
        self._resolution, self._directory = resolution, directory
        self._device = open_device(device)
        self._num_codes = state["blocks.output.conv.w"].shape[0]
        self._sha256 = hash_state(state)
        self._encoder = encoder.to(self._device)

    @property
    def num_tokens(self) -> int:
        """8,192."""
        return self._num_codes

    @property
    def fingerprint(self) -> Fingerprint:
        """Resolution, preparation of the pixels and the encoder's sha256."""
        return {
            "encoder": "dalle",
            "encoder_sha256": self._sha256,
            "resolution": self._resolution,
            "transparency": TRANSPARENCY,
            "resize": "shorter side, lanczos, centre crop",
            "map_pixels_eps": MAP_PIXELS_EPS,
        }

    def encode(self, images: Iterable[Pixels]) -> Iterator[TokenArray]:
        """Yields (resolution / 8)² codes of each image, in raster order.

        A GPU takes batches; a CPU is as fast with single images, which makes them independent to the bit.
        """
        images, size = iter(images), GPU_BATCH if self._device.type == "cuda" else 1
        while batch := [prepare_pixels(image, self._resolution) for image in islice(images, size)]:
            yield from self._encode_batch(np.stack(batch))

    def decode(self, tokens: TokenArray) -> Pixels:
        """Square image that the codes stand for: the mean of the decoder's distribution.

        Raises:
            ConfigError: The decoder's weights are not in the folder.
            CorruptInputError: Not one code for 8 × 8 pixels, or an id out of range.
        """
        side = self._resolution // DOWNSAMPLING
        if tokens.shape != (side * side,):
            raise CorruptInputError(f"an image has {side * side} tokens, not {tokens.size}")
        check_ids(tokens, self.num_tokens, Modality.IMAGE)
        codes_BHW = torch.tensor(tokens, dtype=torch.long, device=self._device).view(1, side, side)
        return _to_pixels(self._decode(codes_BHW)[0]).cpu().numpy()

    @torch.inference_mode()
    def _encode_batch(self, pixels_BHWC: Pixels) -> list[TokenArray]:
        x_BHWC = map_pixels(torch.from_numpy(pixels_BHWC).to(self._device))
        codes_BHW = self._encoder(x_BHWC).argmax(-1)
        return list(codes_BHW.flatten(1).to(torch.int32).cpu().numpy())

    @torch.inference_mode()
    def _decode(self, codes_BHW: Tensor) -> Tensor:
        statistics_BHWC: Tensor = self._decoder(codes_BHW)
        return statistics_BHWC

    @cached_property
    def _decoder(self) -> Decoder:
        return load_dalle_decoder(self._directory).to(self._device)


def open_dalle_tokenizer(directory: Path, *, resolution: int, device: str = "auto") -> DalleTokenizer:
    """Tokenizer from a folder with `encoder.safetensors` or `encoder.pkl`, and the same for the decoder.

    A `.pkl` file is converted once; the `.safetensors` file is written beside it.

    Raises:
        ConfigError: The encoder's weights are missing, or the resolution is none of 256, 128 and 112.
        CorruptInputError: The weights are damaged or not those of DALL-E's dVAE.
    """
    encoder, state = load_dalle_encoder(directory)
    return DalleTokenizer(encoder, state, directory, resolution=resolution, device=device)


def prepare_pixels(image: Pixels, resolution: int) -> Pixels:
    """The central square of the image whose shorter side was resized to `resolution`."""
    from PIL import Image

    short = min(image.shape[:2])
    picture = Image.fromarray(_centre(image, MAX_ASPECT * short, MAX_ASPECT * short))
    scale = resolution / short
    size = (round(scale * picture.width), round(scale * picture.height))
    return _centre(np.array(picture.resize(size, Image.Resampling.LANCZOS)), resolution, resolution)


def _centre(image: Pixels, max_height: int, max_width: int) -> Pixels:
    height, width, _ = image.shape
    top, left = round(max(0, height - max_height) / 2), round(max(0, width - max_width) / 2)
    return image[top : top + max_height, left : left + max_width]


def map_pixels(pixels: Tensor) -> Tensor:
    """Bytes to float32 in [0.1, 0.9], which keeps the logit-Laplace distribution away from its ends."""
    return (1 - 2 * MAP_PIXELS_EPS) * (pixels.float() / 255) + MAP_PIXELS_EPS


def _to_pixels(statistics_HWC: Tensor) -> Tensor:
    mean_HWC = torch.sigmoid(statistics_HWC[..., :3])
    unmapped_HWC = ((mean_HWC - MAP_PIXELS_EPS) / (1 - 2 * MAP_PIXELS_EPS)).clamp(0, 1)
    return (255 * unmapped_HWC).round().to(torch.uint8)
