"""The code HiFi-GAN of a Seamless model: its 10,000 units -> waveform at 16 kHz, durations included.

It is read from a folder of `SeamlessM4T` or `SeamlessM4Tv2` in Hugging Face's format; only the vocoder is
loaded. The models are CC BY-NC 4.0.

Suffixes: B utterance, R run of equal units, N sample.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from dmlm.pipeline.converters.checkpoints import State, check_state, hash_state
from dmlm.pipeline.errors import ConfigError, CorruptInputError, FingerprintMismatchError
from dmlm.pipeline.samples import TokenArray, Waveform
from dmlm.pipeline.tokenizers import Fingerprint
from dmlm.pipeline.weights_terms import SEAMLESS

CONFIG, GENERATION = "config.json", "generation_config.json"
PREFIX: Final = "vocoder."
MODEL_TYPES: Final = ("seamless_m4t", "seamless_m4t_v2")
LANGUAGES: Final = {
    **{"ca": "cat", "cs": "ces", "cy": "cym", "de": "deu", "en": "eng", "es": "spa", "et": "est"},
    **{"fr": "fra", "id": "ind", "it": "ita", "ja": "jpn", "nl": "nld", "pt": "por", "ru": "rus"},
    **{"sv": "swe", "tr": "tur", "ar": "arb", "fa": "pes", "zh": "cmn"},
}
"""Codes of Seamless for ISO 639-1; any other is looked up as it is."""
SPEAKER: Final = 0


class CodeHifiGan:
    """A Seamless vocoder; a UnitVocoder."""

    waveform_maker: str = "seamless"

    def __init__(self, model: Any, language_ids: Mapping[str, int], device: torch.device) -> None:
        """Takes transformers' `SeamlessM4TCodeHifiGan` or `…v2CodeHifiGan` with its weights, on the CPU."""
        self.weights_sha256 = hash_state(model.state_dict())
        self._model = model.to(device).eval().requires_grad_(False)
        self._language_ids, self._device = language_ids, device
        self.sampling_rate_hz: int = model.config.sampling_rate

    def check_languages(self, languages: Iterable[str | None]) -> None:
        """As UnitVocoder."""
        for language in languages:
            self._language_id(language)

    @torch.inference_mode()
    def speak(self, units: TokenArray, *, are_runs: bool, language: str | None = None) -> Waveform:
        """As UnitVocoder; runs are collapsed in any case, for the durations are its own guess.

        Raises:
            ConfigError: The model does not speak the language.
        """
        if not len(units):
            return np.zeros(0, np.float32)
        num_units = self._model.unit_embedding.num_embeddings
        if not 0 <= units.min() <= units.max() < num_units:
            raise CorruptInputError(f"unit ids must be in [0, {num_units}), found {units.max()}")
        runs_R = torch.unique_consecutive(torch.from_numpy(units.astype(np.int64)))
        speaker, spoken = torch.tensor([[SPEAKER]]), torch.tensor([[self._language_id(language)]])
        arguments = (tensor.to(self._device) for tensor in (runs_R[None], speaker, spoken))
        waveform_BN, _ = self._model(*arguments)
        waveform: Waveform = waveform_BN.reshape(-1).float().cpu().numpy()
        return waveform

    def _language_id(self, language: str | None) -> int:
        code = LANGUAGES.get(language or "en", language or "en")
        if code not in self._language_ids:
            known = ", ".join(sorted(self._language_ids))
            raise ConfigError(f"this Seamless vocoder does not speak {language}; it speaks {known}")
        return self._language_ids[code]


def is_seamless_model(directory: Path) -> bool:
    """Whether the folder says that it is a Seamless model."""
    return _read_json(directory / CONFIG).get("model_type") in MODEL_TYPES


def open_code_hifigan(directory: Path, fingerprint: Fingerprint, device: torch.device) -> CodeHifiGan:
    """Vocoder of a Seamless model.

    Raises:
        FingerprintMismatchError: The units are not those of the Seamless codec.
        CorruptInputError: The model is damaged, or has no vocoder.
    """
    if fingerprint.get("speech_tokenizer") != SEAMLESS:
        raise FingerprintMismatchError(
            f"{directory} speaks the units of the Seamless codec; the model's are those of "
            f"{fingerprint.get('encoder', 'another tokenizer')}; use a vocoder of `dmlm-cli train-vocoder`"
        )
    settings = _read_json(directory / CONFIG)
    model = _build(settings)
    state = _read_vocoder(directory)
    check_state(state, model.state_dict(), directory)
    model.load_state_dict(state)
    languages = _read_json(directory / GENERATION).get("vocoder_lang_code_to_id")
    if not isinstance(languages, dict) or not languages:
        raise CorruptInputError(
            f"{directory / GENERATION}: no vocoder_lang_code_to_id; fetch the whole model"
        )
    return CodeHifiGan(model, languages, device)


def _build(settings: Mapping[str, Any]) -> Any:
    from transformers import SeamlessM4TConfig, SeamlessM4Tv2Config
    from transformers.models.seamless_m4t.modeling_seamless_m4t import SeamlessM4TCodeHifiGan
    from transformers.models.seamless_m4t_v2.modeling_seamless_m4t_v2 import SeamlessM4Tv2CodeHifiGan

    if settings["model_type"] == MODEL_TYPES[0]:
        return SeamlessM4TCodeHifiGan(SeamlessM4TConfig(**settings))
    return SeamlessM4Tv2CodeHifiGan(SeamlessM4Tv2Config(**settings))


def _read_vocoder(directory: Path) -> State:
    """Tensors of the vocoder, float32, from whichever of the files hold them."""
    from safetensors import SafetensorError, safe_open

    state: State = {}
    for path in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                names = [name for name in file.keys() if name.startswith(PREFIX)]  # noqa: SIM118 (no mapping)
                state |= {name.removeprefix(PREFIX): file.get_tensor(name).float() for name in names}
        except SafetensorError as error:
            raise CorruptInputError(f"{path}: cut off or damaged: {error}") from error
    return state


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return {}
