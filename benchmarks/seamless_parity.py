"""Do transformers and fairseq2 compute the same Seamless codec?

Both run the same random XLS-R weights over the same recordings. For every block: the largest difference
between their activations, transformers running the recordings one by one and in one padded batch, and the
share of units that differ in the batch, with 10,000 centroids scattered around the activations. Needs the
environment of docs/seamless.md and 12 GB of memory, but no pretrained weights.

    python benchmarks/seamless_parity.py [--small]
"""

import argparse
import platform
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from dmlm.pipeline.codebooks.codebook import NearestCentroid
from dmlm.pipeline.converters.xlsr import xlsr_1b_config
from dmlm.pipeline.encoders import SpeechEncoder
from dmlm.pipeline.encoders.wav2vec2 import Wav2Vec2Encoder, load_wav2vec2
from dmlm.pipeline.encoders.xlsr_fairseq2 import XlsrFairseq2Encoder
from dmlm.pipeline.samples import Waveform
from dmlm.pipeline.tokenizers.seamless import NUM_UNITS, normalise_evenly

SMALL = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128, "conv_dim": [32] * 7}
SHAPES = {
    "small": (xlsr_1b_config(num_hidden_layers=35, **SMALL), range(1, 36)),
    "35 blocks of the true shape": (xlsr_1b_config(num_hidden_layers=35), (1, 12, 24, 35)),
}
RECORDING_SAMPLES = (16_000, 35_201, 80_000)
BATCH_SECONDS = 60.0
SCATTER = 0.5
"""Of the centroids around frames, in standard deviations of the frames."""


def main(arguments: list[str] | None = None) -> None:
    options = _parse(arguments)
    torch.manual_seed(0)
    packages = ("torch", "transformers", "fairseq2", "numpy")
    print(f"Python {platform.python_version()},", ", ".join(f"{name} {version(name)}" for name in packages))
    for title, (config, layers) in SHAPES.items():
        if options.small and title != "small":
            continue
        print(f"\n{title}\nblock  one by one  in a batch  mean |activation|  units that differ")
        with TemporaryDirectory() as scratch:
            save_random_model(config, Path(scratch))
            for layer in layers:
                alone, batched, theirs = frames_after(layer, Path(scratch))
                one_by_one, in_batch = ((ours - theirs).abs().max() for ours in (alone, batched))
                print(
                    f"{layer:5d}  {one_by_one:10.1e}  {in_batch:10.1e}  {theirs.abs().mean():17.3f}"
                    f"  {share_of_flips(batched, theirs):17.2%}",
                    flush=True,
                )


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The Seamless codec of transformers beside fairseq2's.")
    parser.add_argument("--small", action="store_true", help="without the true shape, which takes 12 GB")
    return parser.parse_args(arguments)


def save_random_model(config: Wav2Vec2Config, directory: Path) -> None:
    model = Wav2Vec2Model(config)
    for parameter in model.parameters():
        # Fresh biases and norms are zeros and ones, which would hide a mistake.
        parameter.data += 0.02 * torch.randn_like(parameter)
    model.save_pretrained(directory)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(directory)


def frames_after(layer: int, directory: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Frames [F, D] behind a block: of transformers one by one and in a batch, and of fairseq2."""
    rng = np.random.default_rng(0)
    waveforms = [rng.standard_normal(length).astype(np.float32) * 0.1 for length in RECORDING_SAMPLES]
    model, _ = load_wav2vec2(str(directory))
    encoder = Wav2Vec2Encoder(model, layer=layer, device="cpu")
    encoder.batch_seconds = 0
    alone = frames_of(encoder, waveforms)
    encoder.batch_seconds = BATCH_SECONDS
    batched = frames_of(encoder, waveforms)
    return alone, batched, frames_of(XlsrFairseq2Encoder(directory, layer=layer, device="cpu"), waveforms)


def frames_of(encoder: SpeechEncoder, waveforms: list[Waveform]) -> Tensor:
    return torch.cat([a.activations_FD for a in encoder.encode(map(normalise_evenly, waveforms))])


def share_of_flips(ours: Tensor, theirs: Tensor) -> float:
    around_KD = theirs[torch.randint(len(theirs), (NUM_UNITS,))]
    centroids_KD = around_KD + SCATTER * theirs.std(dim=0) * torch.randn_like(around_KD)
    nearest = NearestCentroid(centroids_KD.numpy())
    return float((nearest(ours) != nearest(theirs)).float().mean())


if __name__ == "__main__":
    main()
