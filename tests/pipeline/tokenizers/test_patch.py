import numpy as np
import pytest
from PIL import Image

from dmlm.pipeline.codebooks.codebook import Codebook
from dmlm.pipeline.codebooks.fitting import fit_codebook
from dmlm.pipeline.errors import ConfigError, CorruptInputError, FingerprintMismatchError
from dmlm.pipeline.samples import Pixels
from dmlm.pipeline.tokenizers.patch import ENCODER, PatchTokenizer, image_to_patches, patch_features

RESOLUTION = 64


def draw(seed: int, height: int = 90, width: int = 120) -> Pixels:
    """Coloured rectangles on a slope of grey."""
    rng = np.random.default_rng(seed)
    slope = np.linspace(0, 200, width)[None, :, None]
    image = np.broadcast_to(slope, (height, width, 3)).astype(np.uint8).copy()
    for _ in range(6):
        top, left = rng.integers(0, height - 20), rng.integers(0, width - 20)
        image[top : top + 25, left : left + 25] = rng.integers(0, 256, 3)
    return image


def fit(num_clusters: int = 64, resolution: int = RESOLUTION) -> Codebook:
    return fit_codebook(
        (image_to_patches(draw(seed), resolution) for seed in range(20)),
        num_clusters=num_clusters,
        seed=0,
        encoder=ENCODER,
        features=patch_features(resolution),
    )


def square(image: Pixels) -> Pixels:
    left = (image.shape[1] - image.shape[0]) // 2
    cropped = Image.fromarray(image[:, left : left + image.shape[0]])
    return np.asarray(cropped.resize((RESOLUTION, RESOLUTION), Image.Resampling.BICUBIC))


def error(one: Pixels, other: Pixels) -> float:
    return float(np.square(one.astype(float) - other).mean())


def test_decoded_image_is_nearer_than_the_mean_image() -> None:
    tokenizer = PatchTokenizer(fit(num_clusters=256))
    mean = np.mean([square(draw(seed)) for seed in range(20)], axis=0)
    for seed, share in ((3, 0.2), (100, 0.5)):  # one of the fit, one that is new
        original = square(draw(seed))
        (tokens,) = tokenizer.encode([draw(seed)])
        assert error(tokenizer.decode(tokens), original) < share * error(mean, original)


def test_tokens_are_in_raster_order() -> None:
    image = np.zeros((RESOLUTION, RESOLUTION, 3), np.uint8)
    image[8:16, 24:32] = 255  # second row, fourth column of patches
    patches_PD = image_to_patches(image, RESOLUTION)
    assert patches_PD.shape == (64, 192)
    assert np.flatnonzero(patches_PD.sum(axis=1)).tolist() == [8 + 3]
    assert patches_PD.max() == 1.0


def test_centroids_come_back_as_their_own_tokens() -> None:
    tokenizer = PatchTokenizer(fit(num_clusters=16))
    tokens = np.arange(64, dtype=np.int32) % 16
    (again,) = tokenizer.encode([tokenizer.decode(tokens)])
    assert np.array_equal(again, tokens)


def test_image_is_cropped_to_its_centre() -> None:
    wide = np.zeros((64, 192, 3), np.uint8)
    wide[:, 64:128] = 200
    tall = np.ascontiguousarray(wide.transpose(1, 0, 2))
    assert np.allclose(image_to_patches(wide, RESOLUTION), 200 / 255)
    assert np.allclose(image_to_patches(tall, RESOLUTION), 200 / 255)


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 500, 3), (700, 3, 3), (8, 8, 3)])
def test_odd_shapes_give_the_same_number_of_tokens(shape: tuple[int, ...]) -> None:
    tokenizer = PatchTokenizer(fit(num_clusters=8))
    (tokens,) = tokenizer.encode([np.zeros(shape, np.uint8)])
    assert tokens.shape == (64,)
    assert tokens.dtype == np.int32


def test_wrong_tokens_cannot_be_decoded() -> None:
    tokenizer = PatchTokenizer(fit(num_clusters=8))
    for tokens in (np.zeros(63, np.int32), np.full(64, 8, np.int32), np.full(64, -1, np.int32)):
        with pytest.raises(CorruptInputError):
            tokenizer.decode(tokens)


def test_codebook_of_something_else_is_refused() -> None:
    speech = fit_codebook(
        [np.random.default_rng(0).random((9, 192), np.float32)],
        num_clusters=2,
        seed=0,
        encoder="whisper:tiny.en",
        features={"encoder": "whisper"},
    )
    with pytest.raises(FingerprintMismatchError, match="whisper"):
        PatchTokenizer(speech)


@pytest.mark.parametrize("resolution", [0, 4, 100, -8])
def test_resolution_must_be_whole_patches(resolution: int) -> None:
    with pytest.raises(ConfigError, match="multiple of 8"):
        patch_features(resolution)


def test_fingerprint_tells_resolutions_and_codebooks_apart() -> None:
    prints = [PatchTokenizer(fit(8, RESOLUTION)).fingerprint, PatchTokenizer(fit(8, 32)).fingerprint]
    assert prints[0]["resolution"] == 64
    assert prints[0]["codebook_sha256"] != prints[1]["codebook_sha256"]
