"""XLS-R run by fairseq2, the implementation that the Seamless codec was published with: for comparison.

Reads the same converted folder as the transformers backend; one recording at a time.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmlm.pipeline.audio import SAMPLING_RATE_HZ
from dmlm.pipeline.converters.checkpoints import State, hash_state
from dmlm.pipeline.converters.xlsr import to_huggingface_names
from dmlm.pipeline.devices import open_device
from dmlm.pipeline.encoders import SpeechEncoder
from dmlm.pipeline.encoders.wav2vec2 import MAX_WINDOW_FRAMES, FrameGrid
from dmlm.pipeline.errors import MissingDependencyError
from dmlm.pipeline.samples import Waveform
from dmlm.pipeline.tokenizers import Fingerprint


class XlsrFairseq2Encoder(SpeechEncoder):
    """The first blocks of an XLS-R."""

    sampling_rate_hz: int = SAMPLING_RATE_HZ
    batch_seconds: float = 0.0

    def __init__(self, directory: Path, *, layer: int, device: str = "auto") -> None:
        """Takes the output of block `layer`, counted from 1, of the folder that `convert_xlsr` wrote.

        Raises:
            MissingDependencyError: fairseq2 is not installed.
        """
        from safetensors.torch import load_file
        from transformers import Wav2Vec2Config

        config = Wav2Vec2Config.from_pretrained(directory, local_files_only=True)
        state = load_file(directory / "model.safetensors")
        self.layer, self.device = layer, open_device(device)
        self.width, self.num_layers = int(config.hidden_size), int(config.num_hidden_layers)
        self._sha256 = hash_state({name: tensor.float() for name, tensor in state.items()})
        self._model = _build(config, layer, state).to(self.device)
        self._grid = FrameGrid()

    @property
    def fingerprint(self) -> Fingerprint:
        """That of the same encoder in transformers, and the name of the backend."""
        return {
            "encoder": "wav2vec2",
            "encoder_sha256": self._sha256,
            "layer": self.layer,
            "normalised": False,
            "max_window_frames": MAX_WINDOW_FRAMES,
            "backend": "fairseq2",
        }

    def map_frames(
        self, waveforms: Iterable[Waveform], function: Callable[[Tensor], Tensor]
    ) -> Iterator[Tensor]:
        """Yields `function` of each recording's frames; it maps [F, D] to [F, …], each frame by itself."""
        empty = function(torch.zeros(0, self.width, device=self.device))
        for waveform in waveforms:
            windows = self._grid.split(waveform, MAX_WINDOW_FRAMES)
            yield torch.cat([empty, *(function(self._encode_window(window)) for window in windows)])

    @torch.inference_mode()
    def _encode_window(self, window: Waveform) -> Tensor:
        from fairseq2.nn import BatchLayout

        outputs: list[Tensor] = []

        def keep(_index: int, output: Tensor, *_layout: Any) -> bool:
            outputs.append(output)
            return True

        waveform = torch.tensor(window, device=self.device)[None]
        features, layout = self._model["encoder_frontend"](waveform, BatchLayout.of(waveform))
        encoder: Any = self._model["encoder"]
        # The hook sees the block's output before the norm that fairseq2 adds behind the last one.
        with encoder.register_layer_hook(keep):
            encoder(features, layout)
        return outputs[-1][0]


def _build(config: Any, layer: int, state: State) -> torch.nn.ModuleDict:
    try:
        from fairseq2.models.transformer import TransformerNormOrder
        from fairseq2.models.wav2vec2 import Wav2Vec2EncoderConfig
        from fairseq2.models.wav2vec2.factory import Wav2Vec2EncoderFactory
    except (ImportError, OSError) as error:  # OSError: libsndfile is missing
        raise MissingDependencyError(
            f"the fairseq2 backend needs fairseq2, in an environment of its own: see docs/seamless.md;"
            f' pip install "dmlm[fairseq2]" ({error})'
        ) from error
    shape = Wav2Vec2EncoderConfig(
        model_dim=config.hidden_size,
        feature_dim=config.conv_dim[-1],
        use_fbank=False,
        first_pass_dropout_p=0.0,
        layer_norm_features=False,
        feature_extractor_layer_descs=list(
            zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True)
        ),
        feature_extractor_bias=True,
        feature_extractor_layer_norm_convs=True,
        pos_encoder_type="conv",
        pos_encoder_depth=1,
        pos_conv_kernel_size=config.num_conv_pos_embeddings,
        num_pos_conv_groups=config.num_conv_pos_embedding_groups,
        use_conformer=False,
        num_encoder_layers=layer,
        num_encoder_attn_heads=config.num_attention_heads,
        ffn_inner_dim=config.intermediate_size,
        dropout_p=0.0,
        attn_dropout_p=0.0,
        layer_drop_p=0.0,
        norm_order=TransformerNormOrder.PRE,
    )
    factory = Wav2Vec2EncoderFactory(shape)
    model = torch.nn.ModuleDict(
        {"encoder_frontend": factory.create_encoder_frontend(), "encoder": factory.create_encoder()}
    )
    names = to_huggingface_names(model.state_dict())
    model.load_state_dict({ours: state[theirs] for ours, theirs in names.items()})
    return model.eval().requires_grad_(False)
