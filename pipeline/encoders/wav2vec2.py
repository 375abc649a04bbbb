"""wav2vec 2.0, HuBERT, WavLM and XLS-R: 16 kHz waveforms -> Activations, any layer, 50 frames a second.

The modules are transformers'; only the order of calls is ours. The convolutions see one window at a time,
because the group norm of some models averages over time; the transformer takes padded batches with a mask.
So an activation does not depend on what shares the batch.

Suffixes: B window of a batch, C channel, F frame, D width.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dmlm.pipeline.audio import SAMPLING_RATE_HZ
from dmlm.pipeline.converters.checkpoints import hash_state
from dmlm.pipeline.devices import open_device
from dmlm.pipeline.encoders import SpeechEncoder
from dmlm.pipeline.encoders.batching import map_windows
from dmlm.pipeline.errors import ConfigError, CorruptInputError
from dmlm.pipeline.samples import Waveform
from dmlm.pipeline.tokenizers import Fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FAMILIES = ("wav2vec2", "hubert", "wavlm")
"""Model types of transformers that share one anatomy; XLS-R is a wav2vec2."""
MAX_WINDOW_FRAMES = 3_000
"""A minute. Longer recordings are cut; LibriSpeech's longest has 35 seconds."""
READ_AHEAD_SECONDS = 900
DEFAULT_BATCH_SECONDS = 30.0

_UNUSED = "masked_spec_embed"
"""Only training uses it; many checkpoints lack it."""


@dataclass(frozen=True, slots=True)
class FrameGrid:
    """Which samples each frame is computed from: `span` samples, from every `hop`-th on."""

    hop: int = 320
    span: int = 400

    def count_frames(self, num_samples: int) -> int:
        """Frames of a recording: at least one, unless it is empty."""
        return max(1, (num_samples - self.span) // self.hop + 1) if num_samples else 0

    def split(self, waveform: Waveform, max_frames: int) -> list[Waveform]:
        """The fewest windows of at most `max_frames`, equally long; each frame is in exactly one.

        What is shorter than a frame is filled up with zeros.
        """
        num_frames = self.count_frames(len(waveform))
        num_windows = -(-num_frames // max_frames)
        starts = [num_frames * index // num_windows for index in range(num_windows)]
        # What is left behind the last frame counts for the group norm.
        stops = [*(self.hop * (start - 1) + self.span for start in starts[1:]), len(waveform)]
        windows = [waveform[self.hop * start : stop] for start, stop in zip(starts, stops, strict=False)]
        return [np.pad(window, (0, max(0, self.span - len(window)))) for window in windows]


class Wav2Vec2Encoder(SpeechEncoder):
    """A model of the wav2vec 2.0 kind, up to and including one layer."""

    sampling_rate_hz: int = SAMPLING_RATE_HZ

    def __init__(
        self,
        model: "PreTrainedModel",
        *,
        layer: int | None = None,
        do_normalize: bool = False,
        device: str = "auto",
        batch_seconds: float = DEFAULT_BATCH_SECONDS,
    ) -> None:
        """Takes over `model` and keeps of it what leads to the output of block `layer`.

        Args:
            model: Of transformers, without a head.
            layer: Counted from 1; None: the last one, after the final norm if the model has one.
            do_normalize: Whether recordings are brought to zero mean and unit variance.
            device: `auto`, `cpu`, `cuda` or `cuda:N`.
            batch_seconds: Most audio, padding included, that goes through at once; single windows may
                be longer. Results depend on it by rounding only.

        Raises:
            ConfigError: The model has no such layer.
        """
        config = model.config
        if layer is not None and not 1 <= layer <= config.num_hidden_layers:
            raise ConfigError(
                f"layer {layer}: this {config.model_type} has layers 1 to {config.num_hidden_layers}"
                f", or `last`"
            )
        self.layer, self.batch_seconds, self.device = layer, batch_seconds, open_device(device)
        self.width, self.num_layers = int(config.hidden_size), int(config.num_hidden_layers)
        self._do_normalize, self._grid = do_normalize, _grid_of(config)
        self._family = str(config.model_type)
        self._sha256 = hash_state(_used_state(model))
        self._model: Any = _cut_off(model, layer).eval().requires_grad_(False).to(self.device)

    @property
    def fingerprint(self) -> Fingerprint:
        """Everything that the activations depend on, rounding aside."""
        return {
            "encoder": self._family,
            "encoder_sha256": self._sha256,
            "layer": "last" if self.layer is None else self.layer,
            "normalised": self._do_normalize,
            "max_window_frames": MAX_WINDOW_FRAMES,
        }

    def map_frames(
        self, waveforms: Iterable[Waveform], function: Callable[[Tensor], Tensor]
    ) -> Iterator[Tensor]:
        """Yields `function` of each recording's frames, applied to whole batches.

        `function` maps [F, D] to [F, …], each frame by itself.
        """

        def encode(windows: list[Waveform]) -> list[Tensor]:
            frames = self._encode_batch(windows)
            return list(torch.split(function(torch.cat(frames)), [len(frames_FD) for frames_FD in frames]))

        empty = function(torch.zeros(0, self.width, device=self.device))
        for parts in map_windows(
            map(normalise, waveforms) if self._do_normalize else waveforms,
            lambda waveform: self._grid.split(waveform, MAX_WINDOW_FRAMES),
            encode,
            read_ahead_samples=READ_AHEAD_SECONDS * SAMPLING_RATE_HZ,
            batch_samples=int(self.batch_seconds * SAMPLING_RATE_HZ),
        ):
            yield torch.cat([empty, *parts])

    @torch.inference_mode()
    def _encode_batch(self, windows: list[Waveform]) -> list[Tensor]:
        """Activations [F, D] of each window."""
        features = [self._extract_features(window) for window in windows]
        num_frames = [len(features_FD) for features_FD in features]
        inside_BF = None
        if min(num_frames) < max(num_frames):
            inside_BF = pad_sequence([torch.ones(n, dtype=torch.bool) for n in num_frames], batch_first=True)
            inside_BF = inside_BF.to(self.device)
        features_BFD = pad_sequence(features, batch_first=True)
        output_BFD = self._model.encoder(features_BFD, attention_mask=inside_BF).last_hidden_state
        return [frames_FD[:n] for frames_FD, n in zip(output_BFD, num_frames, strict=True)]

    def _extract_features(self, window: Waveform) -> Tensor:
        """Input [F, D] of the transformer."""
        waveform = torch.tensor(window, device=self.device)
        channels_BCF = self._model.feature_extractor(waveform[None])
        features = self._model.feature_projection(channels_BCF.transpose(1, 2))
        # HuBERT gives the projection alone, the others also what was projected.
        features_BFD: Tensor = features if isinstance(features, Tensor) else features[0]
        return features_BFD[0]


def normalise(waveform: Waveform) -> Waveform:
    """The waveform at zero mean and unit variance, as transformers' Wav2Vec2FeatureExtractor does it."""
    return (waveform - waveform.mean()) / np.sqrt(waveform.var() + 1e-7) if len(waveform) else waveform


def open_wav2vec2_encoder(name: str, *, layer: int | None, device: str = "auto") -> Wav2Vec2Encoder:
    """Encoder of a Hugging Face folder or name, such as `hubert:facebook/hubert-base-ls960`.

    Names are looked up in the user's Hugging Face cache only: nothing is downloaded.

    Raises:
        ConfigError: It cannot be found, is of another family, or has no such layer.
        CorruptInputError: Its weights are damaged or incomplete.
    """
    family, _, rest = name.partition(":")
    families, place = ((family,), rest) if family in FAMILIES else (FAMILIES, name)
    path = Path(place).expanduser()
    model, do_normalize = load_wav2vec2(str(path) if path.exists() else place, families)
    return Wav2Vec2Encoder(model, layer=layer, do_normalize=do_normalize, device=device)


def load_wav2vec2(place: str, families: tuple[str, ...] = FAMILIES) -> tuple["PreTrainedModel", bool]:
    """Model of a Hugging Face folder or cached name, in float32, and whether its input is normalised.

    Raises:
        ConfigError: It cannot be found or is of another family.
        CorruptInputError: Its weights are damaged or incomplete.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoFeatureExtractor

    try:
        config = AutoConfig.from_pretrained(place, local_files_only=True, trust_remote_code=False)
        if config.model_type not in families:
            raise ConfigError(f"encoder {place}: is a {config.model_type}, not a {' or '.join(families)}")
        extractor = AutoFeatureExtractor.from_pretrained(
            place, local_files_only=True, trust_remote_code=False
        )
        model, missing = _load_model(place)
    except SafetensorError as error:
        raise CorruptInputError(f"encoder {place}: damaged weights ({error}); fetch them again") from error
    except (OSError, ValueError, LookupError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"encoder {place}: no folder or cached name with config.json, preprocessor_config.json and"
            f" safetensors weights ({reason}); fetch it first: hf download {place}"
        ) from error
    if missing:
        raise CorruptInputError(f"encoder {place}: the weights lack {min(missing)}; fetch them again")
    if extractor.sampling_rate != SAMPLING_RATE_HZ:
        raise ConfigError(f"encoder {place}: works at {extractor.sampling_rate} Hz, not {SAMPLING_RATE_HZ}")
    return model, bool(extractor.do_normalize)


def _load_model(place: str) -> tuple["PreTrainedModel", set[str]]:
    """The model without a head, and the names of tensors that the weights lack."""
    from transformers import AutoModel
    from transformers.utils import logging

    verbosity, shows_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    # Tensors of heads that are left unread are no news.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, report = AutoModel.from_pretrained(
            place,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
    finally:
        logging.set_verbosity(verbosity)
        if shows_bars:
            logging.enable_progress_bar()
    return model, set(report["missing_keys"]) - {_UNUSED}


def _grid_of(config: Any) -> FrameGrid:
    hop, span = 1, 1
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        span += (kernel - 1) * hop
        hop *= stride
    return FrameGrid(hop, span)


def _used_state(model: "PreTrainedModel") -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if name != _UNUSED}


def _cut_off(model: Any, layer: int | None) -> Any:
    """The model without the blocks behind `layer`, and without the norm behind the last block."""
    if layer is not None:
        model.encoder.layers = model.encoder.layers[:layer]
        if model.config.do_stable_layer_norm:
            model.encoder.layer_norm = torch.nn.Identity()
    return model
