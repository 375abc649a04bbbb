"""Whisper's audio encoder: 16 kHz waveforms -> Activations, any layer, 50 frames a second.

The modules and the log-mel front end are openai-whisper's own; only the order of calls is ours, so
that a layer can be taken out early and windows of several lengths can share a batch.

Suffixes: B window of a batch, M mel band, T mel frame, F encoder frame, D width, H head.
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
from dmlm.pipeline.encoders import WindowMode
from dmlm.pipeline.encoders.batching import plan_batches, read_ahead, split_windows
from dmlm.pipeline.encoders.weights import find_whisper_weights
from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.samples import Activations, Waveform
from dmlm.pipeline.tokenizers import Fingerprint

READ_AHEAD_SECONDS = 900
DEFAULT_BATCH_SECONDS = 30.0


def count_frames(num_samples: int) -> int:
    """Encoder frames of a recording of `num_samples` at 16 kHz: one per started 20 ms."""
    return (num_samples // int(HOP_LENGTH) + 1) // 2


class WhisperEncoder:
    """The audio encoder of a Whisper model, up to and including one layer."""

    sampling_rate_hz: int = SAMPLE_RATE

    def __init__(
        self,
        weights: WhisperEncoderWeights,
        *,
        layer: int | None = None,
        window: WindowMode = WindowMode.EXACT,
        device: str = "auto",
        batch_seconds: float = DEFAULT_BATCH_SECONDS,
    ) -> None:
        """Takes the output of block `layer`, counted from 1; None: after the final layer norm.

        `batch_seconds` is the most audio, padding included, that goes through at once; single
        windows may be longer. Results depend on it by rounding only.

        Raises:
            ConfigError: The model has no such layer.
        """
        if layer is not None and not 1 <= layer <= weights.num_layers:
            raise ConfigError(f"layer {layer}: this Whisper has layers 1 to {weights.num_layers}, or `last`")
        self.width, self.layer, self.window = weights.width, layer, window
        self.batch_seconds = batch_seconds
        self.device = open_device(device)
        self._num_mels, self._sha256 = weights.num_mels, weights.sha256
        self._encoder = _build(weights, layer).to(self.device)

    @property
    def fingerprint(self) -> Fingerprint:
        """Everything that the activations depend on, rounding aside."""
        return {
            "encoder": "whisper",
            "encoder_sha256": self._sha256,
            "layer": "last" if self.layer is None else self.layer,
            "window": str(self.window),
        }

    def encode(self, waveforms: Iterable[Waveform]) -> Iterator[Activations]:
        """Yields the activations of each recording, `count_frames` of them, in the order given."""
        for activations_FD in self.map_frames(waveforms, lambda activations_FD: activations_FD):
            yield Activations(activations_FD)

    def map_frames(
        self, waveforms: Iterable[Waveform], function: Callable[[Tensor], Tensor]
    ) -> Iterator[Tensor]:
        """Yields `function` of each recording's frames, applied to whole batches.

        `function` maps [F, D] to [F, …], each frame by itself. Only what it returns is kept, so a
        quantiser keeps the activations themselves from piling up.
        """
        for chunk in read_ahead(waveforms, READ_AHEAD_SECONDS * SAMPLE_RATE):
            # A tail of less than one mel frame has nothing to encode.
            windows = [
                [window for window in split_windows(waveform, N_SAMPLES) if len(window) >= HOP_LENGTH]
                for waveform in chunk
            ]
            results = iter(self._map_windows([w for parts in windows for w in parts], function))
            empty = function(torch.zeros(0, self.width, device=self.device))
            for parts in windows:
                yield torch.cat([empty, *(next(results) for _ in parts)])

    def _map_windows(self, windows: list[Waveform], function: Callable[[Tensor], Tensor]) -> list[Tensor]:
        lengths = [N_SAMPLES if self.window is WindowMode.PADDED else len(window) for window in windows]
        results: dict[int, Tensor] = {}
        for batch in plan_batches(lengths, int(self.batch_seconds * SAMPLE_RATE)):
            frames = self._encode_batch([windows[index] for index in batch])
            values = torch.split(function(torch.cat(frames)), [len(frames_FD) for frames_FD in frames])
            results |= zip(batch, values, strict=True)
        return [results[index] for index in range(len(windows))]

    @torch.inference_mode()
    def _encode_batch(self, windows: list[Waveform]) -> list[Tensor]:
        """Activations [F, D] of each window, cut to its true length."""
        if self.window is WindowMode.PADDED:
            mels = [self._log_mel(window, N_SAMPLES) for window in windows]
        else:
            mels = [self._log_mel(window, N_FFT)[:, : len(window) // HOP_LENGTH] for window in windows]
        activations_BFD = self._forward(mels)
        num_frames = [count_frames(len(window)) for window in windows]
        return [frames_FD[:n] for frames_FD, n in zip(activations_BFD, num_frames, strict=True)]

    def _log_mel(self, window: Waveform, num_samples: int) -> Tensor:
        """Log-mel spectrogram [M, T] of the window, padded with zeros to at least `num_samples`."""
        waveform = torch.tensor(window, device=self.device)
        waveform = F.pad(waveform, (0, max(0, num_samples - len(window))))
        mel_MT: Tensor = log_mel_spectrogram(waveform, self._num_mels)
        return mel_MT

    def _forward(self, mels: list[Tensor]) -> Tensor:
        """Activations [B, F, D] of spectrograms [M, T], F being half of the longest T, rounded up."""
        num_steps = [mel_MT.shape[1] for mel_MT in mels]
        mel_BMT = torch.stack([F.pad(mel_MT, (0, max(num_steps) - mel_MT.shape[1])) for mel_MT in mels])
        inside_BT = _inside(num_steps, self.device)
        encoder = self._encoder
        x_BDT = F.gelu(encoder.conv1(mel_BMT))
        if inside_BT is not None:
            # The second convolution must see zeros behind the end, as it does in a batch of one.
            x_BDT = x_BDT * inside_BT[:, None]
        x_BFD: Tensor = F.gelu(encoder.conv2(x_BDT)).transpose(1, 2)
        x_BFD = x_BFD + encoder.positional_embedding[: x_BFD.shape[1]]
        inside_BF = None if inside_BT is None else inside_BT[:, ::2]
        for block in encoder.blocks:
            x_BFD = x_BFD + _attend(block.attn, block.attn_ln(x_BFD), inside_BF)
            x_BFD = x_BFD + block.mlp(block.mlp_ln(x_BFD))
        if self.layer is None:
            x_BFD = encoder.ln_post(x_BFD)
        return x_BFD


def open_whisper_encoder(
    name: str, *, layer: int | None, window: WindowMode, device: str = "auto"
) -> WhisperEncoder:
    """Encoder by name or path, such as `whisper:tiny.en`.

    Raises:
        ConfigError: Its weights cannot be found, or it has no such layer.
        CorruptInputError: Its weights are damaged.
    """
    weights = load_whisper_weights(find_whisper_weights(name))
    return WhisperEncoder(weights, layer=layer, window=window, device=device)


def _build(weights: WhisperEncoderWeights, layer: int | None) -> Any:
    shape = (weights.num_mels, weights.num_positions, weights.width, weights.num_heads, weights.num_layers)
    with torch.device("meta"):
        encoder = AudioEncoder(*shape)
    encoder.load_state_dict(weights.state, assign=True)
    encoder.blocks = encoder.blocks[:layer]
    return encoder.eval().requires_grad_(False)


def _inside(num_steps: list[int], device: torch.device) -> Tensor | None:
    """Mask [B, T], True inside each window; None when all are equally long."""
    if min(num_steps) == max(num_steps):
        return None
    steps_T = torch.arange(max(num_steps), device=device)
    return steps_T < torch.tensor(num_steps, device=device)[:, None]


def _attend(attention: Any, x_BFD: Tensor, inside_BF: Tensor | None) -> Tensor:
    """openai-whisper's attention with a mask over keys (its own `mask` means causal)."""
    num_windows, num_frames, width = x_BFD.shape
    query_BHFD, key_BHFD, value_BHFD = (
        project(x_BFD).view(num_windows, num_frames, attention.n_head, -1).transpose(1, 2)
        for project in (attention.query, attention.key, attention.value)
    )
    mask = None if inside_BF is None else inside_BF[:, None, None]
    mixed_BHFD = F.scaled_dot_product_attention(query_BHFD, key_BHFD, value_BHFD, attn_mask=mask)
    out_BFD: Tensor = attention.out(mixed_BHFD.transpose(1, 2).reshape(num_windows, num_frames, width))
    return out_BFD
