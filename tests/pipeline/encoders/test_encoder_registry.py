from dataclasses import replace
from pathlib import Path

import pytest

from dmlm.pipeline.codebooks.building import BuildCodebookConfig, build_codebook
from dmlm.pipeline.encoders import Precision, WindowMode
from dmlm.pipeline.encoders.mfcc import MfccEncoder
from dmlm.pipeline.encoders.registry import absolute_encoder, choose_precision, family_of, open_encoder
from dmlm.pipeline.encoders.whisper import WhisperEncoder
from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.samples import Waveform
from dmlm.pipeline.tokenizers.registry import load_tokenizers

HF_WHISPER = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 128}
HF_HUBERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def write_whisper(directory: Path) -> Path:
    from transformers import WhisperConfig, WhisperModel

    config = WhisperConfig(**HF_WHISPER, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32)
    WhisperModel(config).save_pretrained(directory)
    return directory


def write_hubert(directory: Path) -> Path:
    from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

    HubertModel(HubertConfig(**HF_HUBERT, conv_dim=(16,) * 7)).save_pretrained(directory)
    Wav2Vec2FeatureExtractor().save_pretrained(directory)
    return directory


def test_a_name_without_a_family_is_a_whisper(tiny_en_path: Path) -> None:
    for name in ("whisper:tiny.en", "tiny.en", str(tiny_en_path), str(tiny_en_path.parent)):
        assert family_of(name) == "whisper"
    encoder = open_encoder(str(tiny_en_path), layer=2, window=WindowMode.PADDED, device="cpu")
    assert isinstance(encoder, WhisperEncoder)
    assert (encoder.layer, encoder.window) == (2, WindowMode.PADDED)


def test_mfcc_is_opened_by_its_bare_name() -> None:
    assert isinstance(open_encoder("mfcc", layer="auto", device="cpu"), MfccEncoder)


def test_unknown_family_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"hubbert is no family.*wavlm.*did you mean 'hubert'"):
        open_encoder("hubbert:base", layer=None)


@pytest.mark.parametrize("name", ["mfcc", "hubert:base", "wavlm:base", "wav2vec2:base"])
def test_only_whisper_can_be_padded(name: str) -> None:
    with pytest.raises(ConfigError, match="no windows to pad"):
        open_encoder(name, layer=None, window=WindowMode.PADDED)


def test_only_whisper_computes_in_bfloat16() -> None:
    with pytest.raises(ConfigError, match="mfcc computes in float32"):
        open_encoder("mfcc", layer=None, precision=Precision.BFLOAT16)
    assert choose_precision("auto", "whisper:tiny.en", "cpu") is Precision.FLOAT32


def test_paths_become_absolute_and_names_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mine.pt", "hubert", "mfcc", "a:b"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert absolute_encoder("mine.pt") == f"whisper:{tmp_path / 'mine.pt'}"
    assert absolute_encoder("hubert:mine.pt") == f"hubert:{tmp_path / 'mine.pt'}"
    assert absolute_encoder("a:b") == f"whisper:{tmp_path / 'a:b'}"
    for name in ("whisper:tiny.en", "tiny.en", "hubert:facebook/hubert-base-ls960", "mfcc"):
        assert absolute_encoder(name) == name


@pytest.mark.parametrize("family", ["mfcc", "hubert", "whisper"])
def test_codebook_of_any_encoder_gives_units_again_from_its_folder(
    family: str, speech: list[Waveform], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import soundfile

    chapter = tmp_path / "LibriSpeech" / "train-tiny" / "1" / "2"
    chapter.mkdir(parents=True)
    for index, waveform in enumerate(speech):
        soundfile.write(chapter / f"1-2-{index:04d}.flac", waveform, 16_000)
    (chapter / "1-2.trans.txt").write_text("".join(f"1-2-{i:04d} HELLO\n" for i in range(len(speech))))
    writers = {"hubert": write_hubert, "whisper": write_whisper}
    if family in writers:
        writers[family](tmp_path / "weights")
    monkeypatch.chdir(tmp_path)
    config = BuildCodebookConfig(
        root=tmp_path,
        out_dir=tmp_path / "codebook",
        encoder=f"{family}:weights" if family in writers else family,
        num_clusters=8,
        text_tokenizer="bpe:256",
        device="cpu",
    )
    build_codebook(config)
    monkeypatch.chdir(tmp_path.parent)  # the folder names its weights by an absolute path
    tokenizer = load_tokenizers(tmp_path / "codebook", "cpu").speech
    assert tokenizer is not None
    assert tokenizer.fingerprint["encoder"] == family
    for waveform, units in zip(speech, tokenizer.encode(speech), strict=True):
        assert abs(len(units) - len(waveform) / 320) <= 1.5
        assert 0 <= units.min() <= units.max() < 8
    monkeypatch.chdir(tmp_path)
    assert build_codebook(config).was_there
    with pytest.raises(ConfigError, match="num_clusters 8, not 9"):
        build_codebook(replace(config, num_clusters=9))
