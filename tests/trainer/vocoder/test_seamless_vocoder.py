"""The code HiFi-GAN of transformers, true architecture, small random weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import SeamlessM4TConfig, SeamlessM4Tv2Config
from transformers.models.seamless_m4t.modeling_seamless_m4t import SeamlessM4TCodeHifiGan
from transformers.models.seamless_m4t_v2.modeling_seamless_m4t_v2 import SeamlessM4Tv2CodeHifiGan

from dmlm.pipeline.errors import ConfigError, CorruptInputError, FingerprintMismatchError
from dmlm.trainer.vocoder.synthesis import open_vocoder

SEAMLESS = {"speech_tokenizer": "seamless", "num_clusters": 10_000}
SIZES: dict[str, Any] = {
    **{"unit_embed_dim": 16, "lang_embed_dim": 4, "spkr_embed_dim": 4, "upsample_initial_channel": 32},
    **{"vocoder_num_langs": 3, "vocoder_num_spkrs": 2},
}
KINDS = {
    "seamless_m4t": (SeamlessM4TConfig, SeamlessM4TCodeHifiGan),
    "seamless_m4t_v2": (SeamlessM4Tv2Config, SeamlessM4Tv2CodeHifiGan),
}


def write_model(directory: Path, kind: str) -> Any:
    """A model folder of which only the vocoder is there, in two files, beside tensors of other parts."""
    config_kind, model_kind = KINDS[kind]
    torch.manual_seed(0)
    config = config_kind(**SIZES)
    model = model_kind(config).eval()
    state = {f"vocoder.{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    names = sorted(state)
    directory.mkdir(parents=True, exist_ok=True)
    save_file({name: state[name] for name in names[::2]}, directory / "model-00001-of-00002.safetensors")
    rest = {name: state[name] for name in names[1::2]} | {"text_decoder.x": torch.ones(2)}
    save_file(rest, directory / "model-00002-of-00002.safetensors")
    config.save_pretrained(directory)
    languages = {"vocoder_lang_code_to_id": {"arb": 0, "eng": 1, "ita": 2}}
    (directory / "generation_config.json").write_text(json.dumps(languages))
    return model


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_speech_is_that_of_transformers_for_the_collapsed_units(kind: str, tmp_path: Path) -> None:
    model = write_model(tmp_path / "seamless", kind)
    vocoder = open_vocoder(tmp_path / "seamless", SEAMLESS, "cpu")
    waveform = vocoder.speak(np.array([5, 5, 9999, 7, 7, 7], np.int32), are_runs=False, language="it")
    expected, _ = model(torch.tensor([[5, 9999, 7]]), torch.tensor([[0]]), torch.tensor([[2]]))
    assert vocoder.sampling_rate_hz == 16_000
    assert waveform.shape[0] % 320 == 0
    assert waveform.shape[0] >= 3 * 320
    assert np.array_equal(waveform, expected.flatten().numpy())
    runs = vocoder.speak(np.array([5, 9999, 7], np.int32), are_runs=True, language="it")
    assert np.array_equal(waveform, runs)
    english = vocoder.speak(np.array([5, 9999, 7], np.int32), are_runs=True)
    assert not np.array_equal(english, runs)


def test_what_it_cannot_speak_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "seamless"
    write_model(directory, "seamless_m4t_v2")
    with pytest.raises(FingerprintMismatchError, match="whisper"):
        open_vocoder(directory, {"encoder": "whisper"}, "cpu")
    vocoder = open_vocoder(directory, SEAMLESS, "cpu")
    with pytest.raises(ConfigError, match="de"):
        vocoder.speak(np.array([1], np.int32), are_runs=True, language="de")
    vocoder.check_languages([None, "it"])
    with pytest.raises(ConfigError, match="de; it speaks arb, eng, ita"):
        vocoder.check_languages(["it", "de"])
    with pytest.raises(CorruptInputError, match="10000"):
        vocoder.speak(np.array([10_000], np.int32), are_runs=True)
    assert len(vocoder.speak(np.array([], np.int32), are_runs=True)) == 0


def test_a_model_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "seamless"
    write_model(directory, "seamless_m4t")
    path = directory / "model-00001-of-00002.safetensors"
    state = load_file(path)
    save_file({name: state[name] for name in sorted(state)[1:]}, path)
    with pytest.raises(CorruptInputError, match="found nothing"):
        open_vocoder(directory, SEAMLESS, "cpu")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CorruptInputError, match="damaged"):
        open_vocoder(directory, SEAMLESS, "cpu")
