"""Row A: recordings to units with Whisper tiny.en and K 500, dmlm beside loops of openai-whisper.

dmlm goes from files to a shard on disk, as `tokenize` does. The loops go from the same files, decoded alike,
to units in memory, one recording after the other: openai-whisper's encoder and numpy's nearest centroid. The
padded loop gives every recording 30 s, as openai-whisper does; the unpadded one its true length, which gives
the units of the window mode `exact`. `share beyond encoder` is the part of dmlm's time that encoding decoded
audio does not account for: 0 when decoding and writing hide behind it. The share of bare sgemm counts the
operations of true frames in convolutions, projections and attention.

    python benchmarks/speech_tokens.py [--data librispeech,ami,ami-all] [--limit 50] [--rounds 5]
                                       [--clusters 500]
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from recordings import LENGTH_DECILES, open_recordings
from rows import SGEMM_OPERATIONS, Row, make_sgemm, time_sides
from whisper.audio import HOP_LENGTH, log_mel_spectrogram, pad_or_trim
from whisper.model import AudioEncoder

from dmlm.pipeline.audio import load_utterance
from dmlm.pipeline.codebooks.codebook import Codebook
from dmlm.pipeline.codebooks.fitting import fit_codebook
from dmlm.pipeline.converters.whisper import WhisperEncoderWeights, load_whisper_weights
from dmlm.pipeline.encoders import WindowMode
from dmlm.pipeline.encoders.weights import find_whisper_weights
from dmlm.pipeline.encoders.whisper import WhisperEncoder, count_frames
from dmlm.pipeline.samples import Sample, TokenArray, Utterance, Waveform
from dmlm.pipeline.shards import write_shard
from dmlm.pipeline.tokenization.item_encoding import ItemEncoder
from dmlm.pipeline.tokenization.shard_tasks import ShardTask
from dmlm.pipeline.tokenizers.kmeans import KMeansTokenizer
from dmlm.pipeline.tokenizers.text import train_bpe

ENCODER = "whisper:tiny.en"
TARGETS = {"librispeech": 3.0, "ami": 8.0, "ami-all": None}
PADDED_DATA, PADDED_TARGET = "librispeech", 1.0


class Loop:
    """openai-whisper's encoder and numpy's argmin, one recording at a time."""

    def __init__(self, weights: WhisperEncoderWeights, codebook: Codebook, window: WindowMode) -> None:
        shape = (weights.num_mels, weights.num_positions, weights.width, weights.num_heads)
        self._encoder = AudioEncoder(*shape, weights.num_layers).eval()
        self._encoder.load_state_dict(weights.state)
        self._positions_FD = self._encoder.positional_embedding
        self._centroids_KD, self._window = codebook.centroids_KD, window
        self._squares_K = np.square(self._centroids_KD).sum(axis=1)

    @torch.inference_mode()
    def __call__(self, waveform: Waveform) -> TokenArray:
        """Units of one recording."""
        num_frames = count_frames(len(waveform))
        if self._window is WindowMode.PADDED:
            waveform = pad_or_trim(waveform)
        mel_MT = log_mel_spectrogram(waveform)
        # The encoder refuses all but 30 s by the length of this table.
        self._encoder.positional_embedding = self._positions_FD[: count_frames(len(waveform))]
        frames_FD = self._encoder(mel_MT[None])[0, :num_frames].numpy()
        return np.argmin(self._squares_K - 2 * frames_FD @ self._centroids_KD.T, axis=1).astype(np.int32)


@dataclass(frozen=True, kw_only=True)
class Dmlm:
    """The real path of `tokenize`, in one window mode."""

    encoder: ItemEncoder
    task: ShardTask
    out_dir: Path

    def __call__(self) -> list[TokenArray]:
        """From files to a shard; its units."""
        samples = self.encode()
        self.write(samples)
        return [sample.speech_tokens for sample in samples if sample.speech_tokens is not None]

    def encode(self) -> list[Sample]:
        """From files to samples."""
        results = self.encoder.encode(self.task, lambda: None)
        return [result for result in results if isinstance(result, Sample)]

    def write(self, samples: Sequence[Sample]) -> None:
        """From samples to a shard."""
        vocabulary = self.encoder.vocabulary
        write_shard(
            self.out_dir, self.task.name, samples, vocabulary, task_sha256="", num_in=len(self.task.items)
        )


def main(arguments: list[str] | None = None) -> None:
    options = _parse(arguments)
    torch.set_num_threads(options.threads)
    weights = load_whisper_weights(find_whisper_weights(ENCODER))
    for name in options.data.split(","):
        with TemporaryDirectory() as scratch:
            _compare(name, weights, options, Path(scratch))


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Row A: recordings to units.")
    parser.add_argument("--data", default=",".join(LENGTH_DECILES), help="kinds of recordings, by comma")
    parser.add_argument("--limit", type=int, default=50, help="recordings of each kind")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clusters", type=int, default=500)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args(arguments)


def _compare(name: str, weights: WhisperEncoderWeights, options: argparse.Namespace, scratch: Path) -> None:
    items = open_recordings(name, options.limit, scratch)
    waveforms = [load_utterance(item) for item in items]
    codebook = _fit(weights, waveforms, options.clusters)
    exact, tokenizer = _open(WindowMode.EXACT, weights, codebook, items, scratch)
    loops = {window: Loop(weights, codebook, window) for window in WindowMode}
    samples = exact.encode()
    units: dict[str, list[TokenArray]] = {}

    def run_loop(window: WindowMode) -> None:
        units[f"{window} loop"] = [loops[window](load_utterance(item)) for item in items]

    runs: dict[str, Callable[[], object]] = {
        "exact": lambda: units.update({"exact": exact()}),
        "exact loop": lambda: run_loop(WindowMode.EXACT),
        "padded loop": lambda: run_loop(WindowMode.PADDED),
        "encode": lambda: list(tokenizer.encode(waveforms)),
        "decode": lambda: [load_utterance(item) for item in items],
        "write": lambda: exact.write(samples),
        "sgemm": make_sgemm(),
    }
    if name == PADDED_DATA:
        padded, _ = _open(WindowMode.PADDED, weights, codebook, items, scratch)
        runs["padded"] = lambda: units.update({"padded": padded()})
    seconds = time_sides(runs, options.rounds)
    _report(name, weights, waveforms, seconds, units)


def _fit(weights: WhisperEncoderWeights, waveforms: Sequence[Waveform], num_clusters: int) -> Codebook:
    encoder = WhisperEncoder(weights, window=WindowMode.EXACT, device="cpu")
    frames = (activations.activations_FD.numpy() for activations in encoder.encode(waveforms))
    return fit_codebook(
        frames, num_clusters=num_clusters, seed=0, encoder=ENCODER, features=encoder.fingerprint
    )


def _open(
    window: WindowMode,
    weights: WhisperEncoderWeights,
    codebook: Codebook,
    items: Sequence[Utterance],
    scratch: Path,
) -> tuple[Dmlm, KMeansTokenizer]:
    encoder = WhisperEncoder(weights, window=window, device="cpu")
    # One set of centroids for both window modes: all that matters is that both sides have the same.
    tokenizer = KMeansTokenizer(encoder, replace(codebook, features=encoder.fingerprint))
    item_encoder = ItemEncoder(speech=tokenizer, image=None, text=train_bpe([], 256), text_rule="lower")
    task = ShardTask(name=f"bench-{window}-000000", items=tuple(items))
    return Dmlm(encoder=item_encoder, task=task, out_dir=scratch), tokenizer


def _report(
    name: str,
    weights: WhisperEncoderWeights,
    waveforms: Sequence[Waveform],
    seconds: Mapping[str, float],
    units: Mapping[str, list[TokenArray]],
) -> None:
    audio_seconds = sum(len(waveform) for waveform in waveforms) / 16_000
    rates = {side: audio_seconds / value for side, value in seconds.items()}
    sgemm = SGEMM_OPERATIONS / seconds["sgemm"]
    num_operations = sum(_count_operations(len(waveform), weights) for waveform in waveforms)
    details: dict[str, Any] = {
        "unpadded loop": rates["exact loop"],
        "same units as unpadded loop": _share_of_equal(units["exact"], units["exact loop"]),
        "share of sgemm, encoder": num_operations / seconds["encode"] / sgemm,
        "seconds": {side: seconds[side] for side in ("exact", "encode", "decode", "write")},
        "share beyond encoder": 1 - seconds["encode"] / seconds["exact"],
        "mean recording, seconds": audio_seconds / len(waveforms),
        "recordings": len(waveforms),
    }
    _row(f"A-{name}", f"audio -> units, lengths of {name}, exact", rates, "exact", TARGETS[name], details)
    if "padded" in units:
        same = {"same units": _share_of_equal(units["padded"], units["padded loop"])}
        _row("A-padded", f"audio -> units, lengths of {name}, padded", rates, "padded", PADDED_TARGET, same)


def _row(
    name: str,
    title: str,
    rates: Mapping[str, float],
    side: str,
    target: float | None,
    details: Mapping[str, Any],
) -> None:
    Row(
        name=name,
        title=title,
        dmlm=rates[side],
        peers={"padded openai-whisper loop": rates["padded loop"]},
        unit="audio-seconds/s",
        target=target,
        details=details,
    ).print()


def _share_of_equal(ours: Sequence[TokenArray], theirs: Sequence[TokenArray]) -> float:
    return float(np.mean(np.concatenate(ours) == np.concatenate(theirs)))


def _count_operations(num_samples: int, weights: WhisperEncoderWeights) -> float:
    """Floating-point operations of the encoder's matrix products for one recording without padding."""
    num_steps, num_frames, width = num_samples // HOP_LENGTH, count_frames(num_samples), weights.width
    convolutions = 3 * width * (num_steps * weights.num_mels + num_frames * width)
    block = num_frames * 12 * width**2 + 2 * num_frames**2 * width
    return 2.0 * (convolutions + weights.num_layers * block)


if __name__ == "__main__":
    main()
