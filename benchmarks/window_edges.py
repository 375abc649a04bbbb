"""How far from a cut do Whisper's units differ, and how many differ in bfloat16?

Windows of 30 s of joined utterances are encoded whole and cut off at 20 s; units are compared by their
distance from the cut. This is why windows of long recordings share 4 s. Then the whole windows are encoded in
bfloat16, as on a GPU, and compared with float32.

    python benchmarks/window_edges.py --root DATA [--split train-clean-100] [--limit 150] [--windows 24]
"""

import argparse
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from dmlm.pipeline.codebooks.codebook import NearestCentroid
from dmlm.pipeline.codebooks.fitting import fit_codebook
from dmlm.pipeline.codebooks.inspection import draw_recordings
from dmlm.pipeline.encoders import Precision, WindowMode
from dmlm.pipeline.encoders.whisper import WhisperEncoder, open_whisper_encoder
from dmlm.pipeline.samples import Waveform
from dmlm.pipeline.sources import DEFAULT_OPTIONS

RATE_HZ, FRAMES_PER_SECOND = 16_000, 50
WINDOW_SECONDS, CUT_SECONDS = 30, 20
EDGES_SECONDS = (0, 0.1, 0.2, 0.5, 1, 2, 4, 8, 12)
LAYERS = (3, 4, None)
NUM_CLUSTERS = (100, 500)


def main(arguments: list[str] | None = None) -> None:
    options = _parse(arguments)
    recordings = draw_recordings(
        "librispeech", options.root, (options.split,), DEFAULT_OPTIONS, limit=options.limit, seed=0
    )
    waveforms = [recording.waveform for recording in recordings]
    joined = np.concatenate(waveforms)
    size = WINDOW_SECONDS * RATE_HZ
    windows = [joined[i * size : (i + 1) * size] for i in range(min(options.windows, len(joined) // size))]
    heads = " ".join(f"{a:>4g}-{b:<4g}" for a, b in pairwise(EDGES_SECONDS))
    print(f"{len(windows)} windows; share of units that differ, by seconds before the cut")
    print(f"layer    K {heads}  bfloat16")
    for layer in LAYERS:
        encoder, rounded = (_open(layer, precision) for precision in Precision)
        whole, cut = (
            _encode(encoder, windows),
            _encode(encoder, [w[: CUT_SECONDS * RATE_HZ] for w in windows]),
        )
        coarse = _encode(rounded, windows)
        frames = [item.activations_FD.numpy() for item in encoder.encode(waveforms)]
        for num_clusters in NUM_CLUSTERS:
            codebook = fit_codebook(frames, num_clusters=num_clusters, seed=0, encoder="", features={})
            nearest = NearestCentroid(codebook.centroids_KD)
            shares = _shares_by_distance([nearest(f) for f in whole], [nearest(f) for f in cut])
            flips = np.mean(
                [(nearest(a) != nearest(b)).float().mean() for a, b in zip(whole, coarse, strict=True)]
            )
            cells = " ".join(f"{share:9.3f}" for share in shares)
            print(f"{layer or 'last':>5} {num_clusters:4} {cells} {flips:9.4f}", flush=True)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Units near a cut, and in bfloat16.")
    parser.add_argument("--root", type=Path, required=True, help="folder that holds LibriSpeech")
    parser.add_argument("--split", default="train-clean-100")
    parser.add_argument("--limit", type=int, default=150, help="utterances")
    parser.add_argument("--windows", type=int, default=24)
    return parser.parse_args(arguments)


def _open(layer: int | None, precision: Precision) -> WhisperEncoder:
    return open_whisper_encoder(
        "whisper:tiny.en", layer=layer, window=WindowMode.EXACT, precision=precision, device="cpu"
    )


def _encode(encoder: WhisperEncoder, waveforms: Sequence[Waveform]) -> list[torch.Tensor]:
    return [item.activations_FD for item in encoder.encode(waveforms)]


def _shares_by_distance(whole: Sequence[torch.Tensor], cut: Sequence[torch.Tensor]) -> list[float]:
    num_frames = CUT_SECONDS * FRAMES_PER_SECOND
    differs_WF = torch.stack([a[:num_frames] != b for a, b in zip(whole, cut, strict=True)]).flip(1).float()
    edges = [round(seconds * FRAMES_PER_SECOND) for seconds in EDGES_SECONDS]
    return [float(differs_WF[:, start:stop].mean()) for start, stop in pairwise(edges)]


if __name__ == "__main__":
    main()
