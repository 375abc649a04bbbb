"""Whisper's audio encoder: 16 kHz waveforms -> Activations, any layer, 50 frames a second.

The modules and the log-mel front end are openai-whisper's own; only the order of calls is ours, so
that a layer can be taken out early and windows of several lengths can share a batch.

Suffixes: B batch of one, M mel band, T mel frame, F encoder frame of a window, N of all windows of a batch,
W those of them that are wanted, D width, H head.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from whisper.audio import HOP_LENGTH, N_FFT, N_SAMPLES, SAMPLE_RATE, log_mel_spectrogram
from whisper.model import AudioEncoder

from dmlm.pipeline.converters.whisper import WhisperEncoderWeights, load_whisper_weights
from dmlm.pipeline.devices import open_device
from dmlm.pipeline.encoders import AUTO, Layer, Precision, SpeechEncoder, WindowMode
from dmlm.pipeline.encoders.batching import map_windows, overlapping_windows, seams
from dmlm.pipeline.encoders.weights import find_whisper_weights
from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.samples import Waveform
from dmlm.pipeline.tokenizers import Fingerprint

READ_AHEAD_SECONDS = 120
DEFAULT_BATCH_SECONDS = 30.0
FRAME_SAMPLES = 2 * HOP_LENGTH
NUM_SHARED_FRAMES = 200
"""Of consecutive windows of a long recording: 4 s. Units settle within 2 s of an edge (docs/codebooks.md)."""


def count_frames(num_samples: int) -> int:
    """Encoder frames of a recording of `num_samples` at 16 kHz: one per started 20 ms."""
    return (num_samples // int(HOP_LENGTH) + 1) // 2


class WhisperEncoder(SpeechEncoder):
    """The audio encoder of a Whisper model, up to and including one layer."""

    sampling_rate_hz: int = SAMPLE_RATE

    def __init__(
        self,
        weights: WhisperEncoderWeights,
        *,
        layer: Layer = None,
        window: WindowMode = WindowMode.EXACT,
        precision: Precision = Precision.FLOAT32,
        device: str = "auto",
        batch_seconds: float = DEFAULT_BATCH_SECONDS,
    ) -> None:
        """Takes the output of block `layer`, counted from 1; None: after the final layer norm.

        `auto` is the last block but one: units of the final norm tell where in a window a sound is, hardly
        which sound it is (docs/codebooks.md).

        `batch_seconds` is the most audio, padding included, that goes through at once; single
        windows may be longer. Results depend on it by rounding only. `precision` is that of the
        convolutions and matrix products; log-mel spectrograms and layer norms stay in float32.

        Raises:
            ConfigError: The model has no such layer.
        """
        if layer == AUTO:
            layer = max(1, weights.num_layers - 1)
        if layer is not None and not 1 <= layer <= weights.num_layers:
            raise ConfigError(f"layer {layer}: this Whisper has layers 1 to {weights.num_layers}, or `last`")
        self.width, self.num_layers = weights.width, weights.num_layers
        self.layer, self.window = layer, window
        self.precision, self.batch_seconds = precision, batch_seconds
        self.device = open_device(device)
        self._num_mels, self._sha256 = weights.num_mels, weights.sha256
        self._encoder = _build(weights, layer, precision).to(self.device)

    @property
    def fingerprint(self) -> Fingerprint:
        """Everything that the activations depend on, rounding aside."""
        return {
            "encoder": "whisper",
            "encoder_sha256": self._sha256,
            "layer": "last" if self.layer is None else self.layer,
            "window": str(self.window),
            "shared_frames": NUM_SHARED_FRAMES,
            "precision": str(self.precision),
        }

    def map_frames(
        self, waveforms: Iterable[Waveform], function: Callable[[Tensor], Tensor]
    ) -> Iterator[Tensor]:
        """Yields `function` of each recording's frames, applied to whole batches.

        `function` maps [F, D] to [F, …], each frame by itself. Only what it returns is kept, so a
        quantiser keeps the activations themselves from piling up.
        """

        def encode(windows: list[Waveform]) -> list[Tensor]:
            frames = self._encode_batch(windows)
            return list(torch.split(function(torch.cat(frames)), [len(frames_FD) for frames_FD in frames]))

        empty = function(torch.zeros(0, self.width, device=self.device))
        for parts in map_windows(
            waveforms,
            _split,
            encode,
            read_ahead_samples=READ_AHEAD_SECONDS * SAMPLE_RATE,
            batch_samples=int(self.batch_seconds * SAMPLE_RATE),
            count_samples=self._count_samples,
        ):
            kept = zip(parts, seams(len(parts), NUM_SHARED_FRAMES), strict=True)
            yield torch.cat([empty, *(frames_FX[part] for frames_FX, part in kept)])

    def _count_samples(self, window: Waveform) -> int:
        return N_SAMPLES if self.window is WindowMode.PADDED else len(window)

    @torch.inference_mode()
    def _encode_batch(self, windows: list[Waveform]) -> list[Tensor]:
        """Activations [F, D] of each window, cut to its true length."""
        if self.window is WindowMode.PADDED:
            mels = [self._log_mel(window, N_SAMPLES) for window in windows]
        else:
            mels = [self._log_mel(window, N_FFT)[:, : len(window) // HOP_LENGTH] for window in windows]
        return self._forward(mels, [count_frames(len(window)) for window in windows])

    def _log_mel(self, window: Waveform, num_samples: int) -> Tensor:
        """Log-mel spectrogram [M, T] of the window, padded with zeros to at least `num_samples`."""
        waveform = torch.tensor(window, device=self.device)
        waveform = F.pad(waveform, (0, max(0, num_samples - len(window))))
        mel_MT: Tensor = log_mel_spectrogram(waveform, self._num_mels)
        return mel_MT

    def _forward(self, mels: list[Tensor], num_wanted: list[int]) -> list[Tensor]:
        """The first `num_wanted` activations [F, D] of each spectrogram [M, T].

        The frames of all windows lie behind each other, so that none is padded and no window sees another.
        """
        inputs = [self._convolve(mel_MT) for mel_MT in mels]
        num_frames = [len(x_FD) for x_FD in inputs]
        x_ND = torch.cat(inputs)
        *blocks, last = self._encoder.blocks
        for block in blocks:
            x_ND = _run_block(block, x_ND, num_frames, num_frames)
        # Frames of silence are looked at by the others until the end, but not wanted themselves.
        x_ND = _run_block(last, x_ND, num_frames, num_wanted)
        if self.layer is None:
            x_ND = self._encoder.ln_post(x_ND)
        return list(torch.split(x_ND, num_wanted))

    def _convolve(self, mel_MT: Tensor) -> Tensor:
        """Input [F, D] of the first block: F is half of T, rounded up."""
        encoder = self._encoder
        x_BDT = F.gelu(encoder.conv1(mel_MT[None].to(encoder.conv1.weight.dtype)))
        x_FD: Tensor = F.gelu(encoder.conv2(x_BDT))[0].T
        x_FD += encoder.positional_embedding[: len(x_FD)]
        return x_FD


def open_whisper_encoder(
    name: str,
    *,
    layer: Layer,
    window: WindowMode,
    precision: Precision = Precision.FLOAT32,
    device: str = "auto",
) -> WhisperEncoder:
    """Encoder by name or path, such as `whisper:tiny.en`.

    Raises:
        ConfigError: Its weights cannot be found, or it has no such layer.
        CorruptInputError: Its weights are damaged.
    """
    weights = load_whisper_weights(find_whisper_weights(name))
    return WhisperEncoder(weights, layer=layer, window=window, precision=precision, device=device)


def _split(waveform: Waveform) -> list[Waveform]:
    """Windows of up to 30 s; none of a recording of less than one mel frame, which has nothing to encode."""
    if len(waveform) < HOP_LENGTH:
        return []
    return overlapping_windows(waveform, N_SAMPLES, NUM_SHARED_FRAMES * FRAME_SAMPLES)


def _build(weights: WhisperEncoderWeights, layer: int | None, precision: Precision) -> Any:
    shape = (weights.num_mels, weights.num_positions, weights.width, weights.num_heads, weights.num_layers)
    with torch.device("meta"):
        encoder = AudioEncoder(*shape)
    encoder.load_state_dict(weights.state, assign=True)
    encoder.blocks = encoder.blocks[:layer]
    for module in encoder.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv1d):
            module.to(getattr(torch, precision))
    return encoder.eval().requires_grad_(False)


def _run_block(block: Any, x_ND: Tensor, num_frames: list[int], num_wanted: list[int]) -> Tensor:
    """One transformer block over windows of `num_frames` each; gives the first `num_wanted` of each."""
    normed_ND = block.attn_ln(x_ND)
    wanted_WD = _take(normed_ND, num_frames, num_wanted)
    mixed_WD = _attend(block.attn, wanted_WD, normed_ND, num_wanted, num_frames)
    x_WD: Tensor = _take(x_ND, num_frames, num_wanted) + mixed_WD
    x_WD += block.mlp(block.mlp_ln(x_WD))
    return x_WD


def _take(x_ND: Tensor, num_frames: list[int], num_wanted: list[int]) -> Tensor:
    """The first `num_wanted` frames of each window."""
    if num_wanted == num_frames:
        return x_ND
    parts = zip(torch.split(x_ND, num_frames), num_wanted, strict=True)
    return torch.cat([x_FD[:number] for x_FD, number in parts])


def _attend(
    attention: Any, x_WD: Tensor, context_ND: Tensor, num_wanted: list[int], num_frames: list[int]
) -> Tensor:
    """openai-whisper's attention from the frames wanted to all frames of the same window."""
    projected = (
        (attention.query(x_WD), num_wanted),
        (attention.key(context_ND), num_frames),
        (attention.value(context_ND), num_frames),
    )
    # A batch of one: without that dimension torch does not take its flash kernel.
    heads = [
        torch.split(x_ND.unflatten(1, (attention.n_head, -1)).transpose(0, 1)[None], lengths, dim=2)
        for x_ND, lengths in projected
    ]
    mixed = [F.scaled_dot_product_attention(*qkv_BHFD) for qkv_BHFD in zip(*heads, strict=True)]
    out_WD: Tensor = attention.out(torch.cat([x_BHFD[0].transpose(0, 1).flatten(1) for x_BHFD in mixed]))
    return out_WD
