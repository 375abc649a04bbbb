"""Row G: images to tokens, dmlm beside the reference package `dall_e`, one image at a time.

Both use the same random weights of the true size and the same pixels; the share of equal codes is given.
Rounds alternate between the sides. The share of bare sgemm counts the operations of the convolutions as
written, 272 GFLOP for 256 × 256 pixels: Winograd's algorithm needs fewer, so the share may exceed 1.

    pip install --no-deps dall-e==0.1 && pip install attrs requests
    python benchmarks/image_tokens.py [--resolution 256] [--images 2] [--rounds 5] [--width 256] [--threads 2]
"""

import argparse
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from rows import SGEMM_OPERATIONS, Row, make_sgemm, time_sides
from torch import nn

from dmlm.pipeline.encoders.dvae import Encoder
from dmlm.pipeline.samples import Pixels, TokenArray
from dmlm.pipeline.tokenizers.dalle import DalleTokenizer, map_pixels, open_dalle_tokenizer, prepare_pixels

TRUE_RESOLUTION = 256


def main(arguments: list[str] | None = None) -> None:
    options = _parse(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    from dall_e import Encoder as ReferenceEncoder

    reference = ReferenceEncoder(n_hid=options.width)
    images = _draw_images(options.images, options.resolution)
    with TemporaryDirectory() as directory:
        tokenizer = _open(reference.state_dict(), Path(directory), options.resolution)
    results: dict[str, list[TokenArray]] = {}
    sides: dict[str, Callable[[], object]] = {
        "dmlm": lambda: results.update(dmlm=list(tokenizer.encode(images))),
        "dall_e": lambda: results.update(dall_e=_encode_one_by_one(reference, images, options.resolution)),
        "sgemm": make_sgemm(),
    }
    seconds = time_sides(sides, options.rounds)
    same = float(np.mean(np.concatenate(results["dmlm"]) == np.concatenate(results["dall_e"])))
    _report(seconds, same, options)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Row G: images to tokens.")
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--width", type=int, default=256, help="of the dVAE; 256 is the true one")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args(arguments)


def _draw_images(num_images: int, resolution: int) -> list[Pixels]:
    rng = np.random.default_rng(0)
    shape = (resolution, resolution * 4 // 3, 3)
    return [rng.integers(0, 256, shape).astype(np.uint8) for _ in range(num_images)]


def _open(state: Mapping[str, torch.Tensor], directory: Path, resolution: int) -> DalleTokenizer:
    from safetensors.torch import save_file

    save_file(dict(state), directory / "encoder.safetensors")
    return open_dalle_tokenizer(directory, resolution=resolution, device="cpu")


@torch.inference_mode()
def _encode_one_by_one(encoder: nn.Module, images: Iterable[Pixels], resolution: int) -> list[TokenArray]:
    tokens = []
    for image in images:
        pixels_HWC = map_pixels(torch.from_numpy(prepare_pixels(image, resolution)))
        logits_BVHW = encoder(pixels_HWC.permute(2, 0, 1)[None].contiguous())
        tokens.append(logits_BVHW.argmax(1).flatten().numpy())
    return tokens


def _count_operations(resolution: int, width: int) -> float:
    """Floating-point operations of the convolutions for one image."""
    with torch.device("meta"):
        kernels = {name: p.shape for name, p in Encoder(width).named_parameters() if name.endswith(".w")}
    num_operations = 0.0
    for name, shape in kernels.items():
        group = int(name[len("blocks.group_")]) if "group_" in name else 4 if "output" in name else 1
        num_operations += 2 * shape.numel() * (resolution / 2 ** (group - 1)) ** 2
    return num_operations


def _report(seconds: Mapping[str, float], same: float, options: argparse.Namespace) -> None:
    rates = {name: options.images / seconds[name] for name in ("dmlm", "dall_e")}
    num_operations = _count_operations(options.resolution, options.width)
    sgemm = SGEMM_OPERATIONS / seconds["sgemm"]
    Row(
        name="G" if options.resolution == TRUE_RESOLUTION else f"G-{options.resolution}",
        title=f"image -> tokens, {options.resolution} x {options.resolution}",
        dmlm=rates["dmlm"],
        peers={"dall_e": rates["dall_e"]},
        unit="images/s",
        target=1.5,
        details={
            "same_ids": same,
            "sgemm_share": {name: rate * num_operations / sgemm for name, rate in rates.items()},
        },
    ).print()


if __name__ == "__main__":
    main()
