from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from dmlm.pipeline.encoders.dvae import Decoder, Encoder
from dmlm.pipeline.errors import ConfigError, CorruptInputError
from dmlm.pipeline.samples import Pixels
from dmlm.pipeline.tokenizers import dalle
from dmlm.pipeline.tokenizers.dalle import DalleTokenizer, map_pixels, open_dalle_tokenizer, prepare_pixels

WIDTH, NUM_CODES = 8, 8192


def draw(seed: int, height: int = 140, width: int = 200) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow dVAE with random weights and all 8,192 codes."""
    directory = tmp_path_factory.mktemp("dalle")
    torch.manual_seed(0)
    save_file(Encoder(WIDTH, NUM_CODES).state_dict(), directory / "encoder.safetensors")
    save_file(Decoder(WIDTH, NUM_CODES).state_dict(), directory / "decoder.safetensors")
    return directory


@pytest.fixture(scope="module")
def tokenizer(weights: Path) -> DalleTokenizer:
    return open_dalle_tokenizer(weights, resolution=128, device="cpu")


@pytest.mark.parametrize(("resolution", "num_tokens"), [(256, 1024), (128, 256), (112, 196)])
def test_one_code_for_eight_by_eight_pixels_and_back(weights: Path, resolution: int, num_tokens: int) -> None:
    tokenizer = open_dalle_tokenizer(weights, resolution=resolution, device="cpu")
    (tokens,) = tokenizer.encode([draw(0)])
    assert tokens.shape == (num_tokens,)
    assert tokens.dtype == np.int32
    assert tokenizer.num_tokens == 8192
    assert 0 <= tokens.min() <= tokens.max() < 8192
    pixels = tokenizer.decode(tokens)
    assert pixels.shape == (resolution, resolution, 3)
    assert pixels.dtype == np.uint8


def test_tokens_do_not_depend_on_other_images(tokenizer: DalleTokenizer) -> None:
    images = [draw(seed) for seed in range(4)]
    together = list(tokenizer.encode(images))
    for image, tokens in zip(images, together, strict=True):
        assert np.array_equal(next(tokenizer.encode([image])), tokens)
    assert len({tokens.tobytes() for tokens in together}) == 4


def test_a_batch_as_a_gpu_takes_it_gives_the_same_codes(tokenizer: DalleTokenizer) -> None:
    pixels_BHWC = np.stack([prepare_pixels(draw(seed), 128) for seed in range(4)])
    together = np.stack(tokenizer._encode_batch(pixels_BHWC))
    alone = np.stack(list(tokenizer.encode(draw(seed) for seed in range(4))))
    assert (together == alone).mean() >= 0.999


def test_codes_are_in_raster_order(tokenizer: DalleTokenizer) -> None:
    plain = np.full((128, 128, 3), 90, np.uint8)
    marked = plain.copy()
    marked[8:24, 112:128] = 255  # rows 1 and 2, columns 14 and 15
    one, other = (tokens.reshape(16, 16) for tokens in tokenizer.encode([plain, marked]))
    rows, columns = np.nonzero(one != other)
    assert rows.size
    assert (rows.mean() < 6, columns.mean() > 10) == (True, True)


def test_images_are_read_one_by_one_on_a_cpu(tokenizer: DalleTokenizer) -> None:
    def images() -> object:
        yield draw(0)
        raise LookupError("read ahead")

    tokens = tokenizer.encode(images())  # type: ignore[arg-type]
    assert next(tokens).shape == (256,)
    with pytest.raises(LookupError):
        next(tokens)


@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (257, 256), (640, 480), (481, 639), (50, 70)])
@pytest.mark.parametrize("resolution", [256, 112])
def test_pixels_are_prepared_as_in_the_reference_notebook(shape: tuple[int, int], resolution: int) -> None:
    image = draw(1, *shape)
    scale = resolution / min(shape)
    height, width = round(scale * shape[0]), round(scale * shape[1])
    resized = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))
    top, left = round((height - resolution) / 2), round((width - resolution) / 2)
    expected = resized[top : top + resolution, left : left + resolution]
    found = prepare_pixels(image, resolution)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (7000, 2), (8, 8)])
def test_odd_shapes_are_prepared_without_making_a_huge_image(shape: tuple[int, int]) -> None:
    assert prepare_pixels(np.full((*shape, 3), 77, np.uint8), 256).tolist() == [[[77] * 3] * 256] * 256


def test_pixels_are_mapped_between_a_tenth_and_nine_tenths() -> None:
    mapped = map_pixels(torch.tensor([0, 255], dtype=torch.uint8))
    assert torch.allclose(mapped, torch.tensor([0.1, 0.9]))


def test_decoding_undoes_the_mapping_of_pixels() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    statistics_HWC = torch.logit(map_pixels(levels)).repeat(6, 1).T[None]
    assert torch.equal(dalle._to_pixels(statistics_HWC)[0, :, 0], levels)


def test_wrong_tokens_cannot_be_decoded(tokenizer: DalleTokenizer) -> None:
    for tokens in (np.zeros(255, np.int32), np.full(256, 8192, np.int32), np.full(256, -1, np.int32)):
        with pytest.raises(CorruptInputError):
            tokenizer.decode(tokens)


@pytest.mark.parametrize("resolution", [0, 8, 64, 255, 512])
def test_other_resolutions_are_refused(weights: Path, resolution: int) -> None:
    with pytest.raises(ConfigError, match="256, 128 or 112"):
        open_dalle_tokenizer(weights, resolution=resolution, device="cpu")


def test_fingerprint_tells_resolutions_and_weights_apart(weights: Path, tmp_path: Path) -> None:
    save_file(Encoder(WIDTH, NUM_CODES).state_dict(), tmp_path / "encoder.safetensors")
    prints = [
        open_dalle_tokenizer(directory, resolution=resolution, device="cpu").fingerprint
        for directory, resolution in ((weights, 128), (weights, 128), (weights, 256), (tmp_path, 128))
    ]
    assert prints[0] == prints[1]
    assert prints[0]["resolution"] != prints[2]["resolution"]
    assert prints[0]["encoder_sha256"] != prints[3]["encoder_sha256"]
    assert {"resize", "map_pixels_eps"} <= prints[0].keys()


def test_encoding_needs_no_decoder(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "encoder.safetensors").symlink_to(weights / "encoder.safetensors")
    tokenizer = open_dalle_tokenizer(tmp_path, resolution=112, device="cpu")
    (tokens,) = tokenizer.encode([draw(0)])
    with pytest.raises(ConfigError, match=r"decoder\.pkl"):
        tokenizer.decode(tokens)


@torch.inference_mode()
def test_codes_and_pixels_equal_those_of_the_reference_package(tmp_path: Path) -> None:
    dall_e = pytest.importorskip(
        "dall_e", reason="needs `pip install --no-deps dall-e==0.1` and attrs, requests"
    )
    torch.manual_seed(1)
    encoder, decoder = dall_e.Encoder(n_hid=64), dall_e.Decoder(n_hid=64)
    torch.save(encoder, tmp_path / "encoder.pkl")
    torch.save(decoder, tmp_path / "decoder.pkl")
    tokenizer = open_dalle_tokenizer(tmp_path, resolution=256, device="cpu")
    (tokens,) = tokenizer.encode([draw(2, 300, 400)])
    unit_pixels = (
        torch.from_numpy(prepare_pixels(draw(2, 300, 400), 256)).permute(2, 0, 1)[None].float() / 255
    )
    codes = encoder(dall_e.map_pixels(unit_pixels)).argmax(1)
    assert (tokens == codes.flatten().numpy()).mean() >= 0.999
    one_hot = torch.nn.functional.one_hot(codes, 8192).permute(0, 3, 1, 2).float()
    pixels = dall_e.unmap_pixels(torch.sigmoid(decoder(one_hot)[:, :3]))[0].permute(1, 2, 0) * 255
    assert np.abs(tokenizer.decode(codes.flatten().int().numpy()) - pixels.numpy()).max() <= 1
