"""Tokenizers that need no fit, in a codebook folder and in place of a part of one.

The Seamless codec here is the real class on small random weights: 1 GB of true ones cannot be had offline.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from dmlm.pipeline.codebooks.building import BuildCodebookConfig, build_codebook
from dmlm.pipeline.encoders.wav2vec2 import Wav2Vec2Encoder
from dmlm.pipeline.errors import ConfigError, CorruptInputError, FingerprintMismatchError
from dmlm.pipeline.samples import Waveform
from dmlm.pipeline.shards import load_dataset_card, verify_dataset
from dmlm.pipeline.shards.reading import iter_samples
from dmlm.pipeline.tokenization.planning import TokenizeConfig
from dmlm.pipeline.tokenization.report import TokenizeReport
from dmlm.pipeline.tokenization.running import tokenize
from dmlm.pipeline.tokenizers import pretrained
from dmlm.pipeline.tokenizers.choosing import TokenizerChoice
from dmlm.pipeline.tokenizers.registry import load_tokenizers
from dmlm.pipeline.tokenizers.seamless import SeamlessTokenizer
from dmlm.pipeline.weights_terms import SEAMLESS, TERMS, copy_terms, write_terms

NUM_UNITS = 30
SMALL = Wav2Vec2Config(
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=64,
    conv_dim=(16,) * 7,
    do_stable_layer_norm=True,
    feat_extract_norm="layer",
)


def open_small_codec(directory: Path, *, device: str, backend: str) -> SeamlessTokenizer:
    """The codec on the weights of a seed that `directory` holds."""
    torch.manual_seed(int((directory / "seed").read_text()))
    encoder = Wav2Vec2Encoder(Wav2Vec2Model(SMALL), layer=2, device=device)
    centroids_KD = np.random.default_rng(0).standard_normal((NUM_UNITS, 32)).astype(np.float32)
    return SeamlessTokenizer(encoder, centroids_KD, "0" * 64)


@pytest.fixture(autouse=True)
def small_codec(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    pretrained._open_seamless.cache_clear()
    monkeypatch.setattr("dmlm.pipeline.tokenizers.seamless.open_seamless_tokenizer", open_small_codec)
    yield
    pretrained._open_seamless.cache_clear()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "seed").write_text("1")
    return folder


@pytest.fixture
def root(speech: list[Waveform], tmp_path: Path) -> Path:
    chapter = tmp_path / "root" / "LibriSpeech" / "train-tiny" / "1" / "2"
    chapter.mkdir(parents=True)
    for index, waveform in enumerate(speech):
        soundfile.write(chapter / f"1-2-{index:04d}.flac", waveform, 16_000)
    (chapter / "1-2.trans.txt").write_text("".join(f"1-2-{i:04d} HELLO\n" for i in range(len(speech))))
    return tmp_path / "root"


def tokenize_librispeech(
    root: Path, out_dir: Path, codebook_dir: Path | None = None, **choice: str | None
) -> TokenizeReport:
    config = TokenizeConfig(
        source="librispeech",
        root=root,
        out_dir=out_dir,
        codebook_dir=codebook_dir,
        choice=TokenizerChoice(**choice),
        device="cpu",
    )
    return tokenize(config)


def test_data_set_without_a_codebook_names_its_tokenizers(
    root: Path, weights: Path, speech: list[Waveform], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out_dir = tmp_path / "out"
    tokenize_librispeech(root, out_dir, speech=f"seamless:{weights}", text="bpe:256")
    assert verify_dataset(out_dir).num_samples == len(speech)
    card = load_dataset_card(out_dir)
    assert card.licence.startswith("CC BY 4.0; speech tokens made with Seamless weights (CC BY-NC 4.0")
    assert "not for commercial use" in caplog.text
    assert card.vocabulary.num_speech == NUM_UNITS
    tokenizers = load_tokenizers(out_dir / "codebook", "cpu")
    assert tokenizers.speech is not None
    assert tokenizers.image is None
    waveforms = [soundfile.read(path, dtype="float32")[0] for path in sorted(root.rglob("*.flac"))]
    for sample, units in zip(iter_samples(out_dir), tokenizers.speech.encode(waveforms), strict=True):
        assert np.array_equal(sample.speech_tokens, units)
    assert not list((out_dir / "codebook").rglob("*.safetensors"))  # named, not copied


@pytest.mark.parametrize("has_terms", [True, False])
def test_licence_beside_the_weights_goes_along_with_what_is_fitted_on_them(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, *, has_terms: bool
) -> None:
    Wav2Vec2Model(SMALL).save_pretrained(tmp_path / "xlsr")
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(tmp_path / "xlsr")
    if has_terms:
        write_terms(tmp_path / "xlsr", TERMS[SEAMLESS])
    build = BuildCodebookConfig(
        root=root,
        out_dir=tmp_path / "codebook",
        encoder=f"wav2vec2:{tmp_path / 'xlsr'}",
        layer=2,
        num_clusters=5,
        text_tokenizer="bpe:256",
        device="cpu",
    )
    build_codebook(build)
    tokenize_librispeech(root, tmp_path / "out", tmp_path / "codebook")
    terms = "; speech tokens made with Seamless weights (CC BY-NC 4.0, not for commercial use)"
    assert load_dataset_card(tmp_path / "out").licence == "CC BY 4.0" + (terms if has_terms else "")
    assert ("that binds whatever is trained on them" in caplog.text) == has_terms
    shutil.rmtree(tmp_path / "xlsr")  # the data set may go where the weights are not
    assert (pretrained.read_terms(tmp_path / "out" / "codebook" / "speech") is not None) == has_terms


def test_licence_in_the_working_directory_is_not_that_of_an_encoder_without_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mfcc").mkdir()
    write_terms(tmp_path / "mfcc", TERMS[SEAMLESS])
    copy_terms("mfcc", tmp_path / "codebook")
    assert pretrained.read_terms(tmp_path / "codebook") is None


def test_chosen_part_takes_the_place_of_the_codebooks(root: Path, weights: Path, tmp_path: Path) -> None:
    build = BuildCodebookConfig(
        root=root, out_dir=tmp_path / "mfcc", encoder="mfcc", num_clusters=5, text_tokenizer="bpe:260"
    )
    build_codebook(build)
    tokenize_librispeech(root, tmp_path / "a", tmp_path / "mfcc")
    tokenize_librispeech(root, tmp_path / "b", tmp_path / "mfcc", speech=f"seamless:{weights}")
    tokenize_librispeech(root, tmp_path / "c", tmp_path / "mfcc", text="bpe:256")
    a, b, c = (load_dataset_card(tmp_path / name) for name in "abc")
    assert a.fingerprints["text"] == b.fingerprints["text"] != c.fingerprints["text"]
    assert a.fingerprints["speech"] == c.fingerprints["speech"] != b.fingerprints["speech"]
    assert (a.licence, c.licence) == ("CC BY 4.0", "CC BY 4.0")
    assert not (tmp_path / "b" / "codebook" / "speech" / "codebook.safetensors").exists()


def test_run_again_finds_its_data_set_complete(root: Path, weights: Path, tmp_path: Path) -> None:
    run = partial(tokenize_librispeech, root, tmp_path / "out", speech=f"seamless:{weights}", text="bpe:256")
    run()
    before = {path: path.read_bytes() for path in sorted((tmp_path / "out").iterdir()) if path.is_file()}
    assert run().num_out == 3
    assert {path: path.read_bytes() for path in before} == before


def test_build_codebook_names_what_needs_no_fit(root: Path, weights: Path, tmp_path: Path) -> None:
    config = BuildCodebookConfig(
        root=root,
        out_dir=tmp_path / "codebook",
        speech_tokenizer=f"seamless:{weights}",
        text_tokenizer="bpe:260",
        device="cpu",
    )
    assert f"seamless:{weights}, not fitted here; its weights: CC BY-NC 4.0" in build_codebook(config).table()
    assert build_codebook(config).was_there
    part = json.loads((tmp_path / "codebook" / "speech" / "pretrained.json").read_bytes())
    assert part["name"] == f"seamless:{weights}"
    for name, value in {"layer": 3, "num_clusters": 9, "encoder": "mfcc"}.items():
        with pytest.raises(ConfigError, match=f"{name} {value}: seamless.* needs no fit"):
            build_codebook(replace(config, **{name: value}))
    tokenize_librispeech(root, tmp_path / "out", tmp_path / "codebook")


def test_fitted_units_have_no_other_backend(root: Path, tmp_path: Path) -> None:
    build_codebook(BuildCodebookConfig(root=root, out_dir=tmp_path / "mfcc", encoder="mfcc", num_clusters=4))
    with pytest.raises(ConfigError, match="only the Seamless codec has it"):
        _ = load_tokenizers(tmp_path / "mfcc", "cpu", "fairseq2").speech


def test_other_weights_at_the_same_place_are_refused(root: Path, weights: Path, tmp_path: Path) -> None:
    tokenize_librispeech(root, tmp_path / "out", speech=f"seamless:{weights}", text="bpe:256")
    (weights / "seed").write_text("2")
    pretrained._open_seamless.cache_clear()
    with pytest.raises(FingerprintMismatchError, match="encoder_sha256"):
        _ = load_tokenizers(tmp_path / "out" / "codebook", "cpu").speech


def test_damaged_part_is_corrupt(tmp_path: Path) -> None:
    for content in ("{", "[]", '{"name": 3}', '{"name": "pickle:x"}', '{"name": "dalle", "run": "rm"}'):
        (tmp_path / "pretrained.json").write_text(content)
        with pytest.raises(CorruptInputError, match=r"pretrained\.json"):
            pretrained.read_part(tmp_path)
    (tmp_path / "pretrained.json").unlink()
    for content in ("{", "[]", "{}", '{"modality": "smell"}', '{"modality": "speech"}'):
        (tmp_path / "terms.json").write_text(content)
        with pytest.raises(CorruptInputError, match=r"terms\.json"):
            pretrained.read_terms(tmp_path)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"speech": "kmeans"}, "must be seamless"),
        ({"speech": "dalle"}, "must be seamless"),
        ({"image": "patch"}, "must be dalle"),
        ({"image_resolution": 256}, "belongs to --image-tokenizer"),
        ({"text": "bpe:400"}, "only bpe:256"),
    ],
)
def test_choice_that_cannot_be_honoured_is_refused_at_once(choice: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TokenizerChoice(**choice)


def test_missing_weights_name_the_folder_looked_at(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(ConfigError, match="cache/dmlm/seamless"):
        tokenize_librispeech(root, tmp_path / "out", speech="seamless", text="bpe:256")
    with pytest.raises(ConfigError, match=r"no folder .*/none"):
        tokenize_librispeech(root, tmp_path / "out", speech=f"seamless:{tmp_path}/none", text="bpe:256")
    with pytest.raises(ConfigError, match="no text tokenizer"):
        tokenize_librispeech(root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_that_moved_into_the_cache_are_found_by_what_names_them(
    root: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tokenize_librispeech(root, tmp_path / "out", speech=f"seamless:{weights}", text="bpe:256")
    tokenizers = load_tokenizers(tmp_path / "out" / "codebook", "cpu")
    (tmp_path / "cache" / "dmlm").mkdir(parents=True)
    weights.rename(tmp_path / "cache" / "dmlm" / "seamless")
    assert tokenizers.speech is not None


def test_weights_are_found_in_the_cache(
    root: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache" / "dmlm").mkdir(parents=True)
    weights.rename(tmp_path / "cache" / "dmlm" / "seamless")
    report = tokenize_librispeech(root, tmp_path / "out", speech="seamless", text="bpe:256")
    assert report.num_out == 3
