import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile

from dmlm.cli import run
from dmlm.pipeline.codebooks.building import BuildCodebookConfig, SourceShare, build_codebook
from dmlm.pipeline.codebooks.codebook import Codebook, FitStatistics
from dmlm.pipeline.codebooks.inspection import InspectCodebookConfig, held_out_splits, inspect_codebook
from dmlm.pipeline.codebooks.measuring import Recording, measure_codebooks
from dmlm.pipeline.codebooks.page import render_inspection
from dmlm.pipeline.converters.whisper import WhisperEncoderWeights
from dmlm.pipeline.encoders import WindowMode
from dmlm.pipeline.encoders.mfcc import open_mfcc_encoder
from dmlm.pipeline.encoders.whisper import WhisperEncoder
from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.samples import Waveform
from dmlm.pipeline.sources import DEFAULT_OPTIONS

TEXTS = ("aba", "cab", "bca", "abcabc", "cc", "ba")
TONES_HZ = {"a": 300.0, "b": 900.0, "c": 2500.0}


def sing(text: str) -> Waveform:
    """Every letter is a tone of 0.2 s."""
    time = np.arange(3200) / 16_000
    noise = np.random.default_rng(len(text)).normal(0, 0.01, 3200 * len(text))
    tones = np.concatenate([np.sin(2 * np.pi * TONES_HZ[letter] * time) for letter in text])
    return (0.5 * tones + noise).astype(np.float32)


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `jsonl` source with a training and a development split."""
    folder = tmp_path_factory.mktemp("songs")
    lines = []
    for split in ("train", "dev"):
        for text in TEXTS:
            name = f"{split}-{text}"
            soundfile.write(folder / f"{name}.wav", sing(text), 16_000)
            lines.append({"key": name, "audio": f"{name}.wav", "text": text, "split": split})
    (folder / "songs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.fixture(scope="module")
def codebook_dir(songs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("built") / "codebook"
    config = BuildCodebookConfig(
        root=songs,
        out_dir=directory,
        sources=(SourceShare(name="jsonl"),),
        encoder="mfcc",
        num_clusters=8,
        text_tokenizer="bpe:256",
    )
    build_codebook(config)
    return directory


def config_of(codebook_dir: Path, songs: Path, limit: int = 100) -> InspectCodebookConfig:
    return InspectCodebookConfig(codebook_dir=codebook_dir, source="jsonl", root=songs, limit=limit)


def test_tones_are_judged_as_units_that_tell_the_letter(codebook_dir: Path, songs: Path) -> None:
    report = inspect_codebook(config_of(codebook_dir, songs))
    quality = report.quality
    assert report.splits == ("dev",)
    assert quality.num_recordings == len(TEXTS)
    assert quality.audio_seconds == pytest.approx(0.2 * sum(map(len, TEXTS)))
    assert sum(quality.counts) == sum(length * runs for length, runs in enumerate(quality.run_counts))
    assert quality.collapsed_tokens_per_second < quality.tokens_per_second <= 50
    assert 0 < quality.relative_error < 1
    assert 0 < quality.unexplained_variance < 0.5
    assert quality.window_agreement is None
    assert quality.letters is not None
    assert quality.letters.purity > 0.95 > 0.8 > quality.letters.purity_by_chance
    assert quality.letters.information > 0.9 > 0.6 > quality.letters.information_by_chance


def test_same_seed_draws_the_same_utterances(codebook_dir: Path, songs: Path) -> None:
    first, second = (inspect_codebook(config_of(codebook_dir, songs, limit=3)) for _ in range(2))
    assert first == second
    assert first.quality.num_recordings == 3


def test_development_splits_come_before_test_splits_and_training(songs: Path, tmp_path: Path) -> None:
    assert held_out_splits("jsonl", songs, None, DEFAULT_OPTIONS) == ("dev",)
    assert held_out_splits("jsonl", songs, ["train"], DEFAULT_OPTIONS) == ("train",)
    rows = [{"text": "x", "split": name} for name in ("train", "test-clean", "test-other")]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert held_out_splits("jsonl", tmp_path, None, DEFAULT_OPTIONS) == ("test-clean", "test-other")


def test_source_without_speech_is_a_config_error(codebook_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "dev.jsonl").write_text('{"text": "only text"}\n')
    with pytest.raises(ConfigError, match="jsonl dev: no readable speech"):
        inspect_codebook(config_of(codebook_dir, tmp_path))


def make_codebook(centroids_KD: np.ndarray, inertia: float = 2.0, variance: float = 8.0) -> Codebook:
    statistics = FitStatistics(
        seed=0, num_seen=0, num_kept=0, inertia=inertia, variance=variance, num_used=0, perplexity=1.0
    )
    return Codebook(
        centroids_KD=centroids_KD.astype(np.float32), encoder="mfcc", features={}, statistics=statistics
    )


def test_codebooks_measured_together_equal_slow_errors_of_each() -> None:
    encoder = open_mfcc_encoder("mfcc", layer=None, device="cpu")
    recordings = [Recording(sing(text), "") for text in TEXTS[:3]]
    frames_FD = np.concatenate(
        [item.activations_FD.numpy() for item in encoder.encode(r.waveform for r in recordings)]
    ).astype(np.float64)
    rng = np.random.default_rng(0)
    codebooks = [make_codebook(frames_FD[rng.integers(0, len(frames_FD), k)] + 1) for k in (3, 5)]
    for codebook, quality in zip(codebooks, measure_codebooks(encoder, codebooks, recordings), strict=True):
        distances_FK = np.linalg.norm(frames_FD[:, None] - codebook.centroids_KD[None], axis=2)
        nearest = distances_FK.argmin(axis=1)
        assert quality.counts == tuple(np.bincount(nearest, minlength=codebook.num_clusters))
        errors, norms = distances_FK.min(axis=1), np.linalg.norm(frames_FD, axis=1)
        assert quality.relative_error == pytest.approx(errors.mean() / norms.mean(), rel=1e-4)
        assert quality.unexplained_variance == pytest.approx((errors**2).mean() / 8, rel=1e-4)
        assert quality.error_growth == pytest.approx((errors**2).mean() / 2, rel=1e-4)
        assert quality.letters is None


def test_window_modes_are_compared_frame_by_frame(tiny_en: WhisperEncoderWeights) -> None:
    exact, padded = (WhisperEncoder(tiny_en, layer=2, window=window, device="cpu") for window in WindowMode)
    recordings = [Recording(sing("abc"), "abc")]
    units = []
    frames_FD = next(iter(exact.encode([recordings[0].waveform]))).activations_FD.numpy()
    codebook = make_codebook(frames_FD[::4])
    for encoder in (exact, padded):
        other_FD = next(iter(encoder.encode([recordings[0].waveform]))).activations_FD.numpy()
        units.append(np.linalg.norm(other_FD[:, None] - codebook.centroids_KD[None], axis=2).argmin(axis=1))
    (quality,) = measure_codebooks(exact, [codebook], recordings, padded)
    assert quality.window_agreement == pytest.approx((units[0] == units[1]).mean(), abs=0.04)
    (same,) = measure_codebooks(exact, [codebook], recordings, exact)
    assert same.window_agreement == 1


def test_local_features_do_not_care_when_a_recording_begins() -> None:
    encoder = open_mfcc_encoder("mfcc", layer=None, device="cpu")
    waveform = np.concatenate([sing(text) for text in TEXTS[:6]])
    (frames,) = encoder.encode([waveform])
    codebook = make_codebook(frames.activations_FD.numpy()[::9])
    (quality,) = measure_codebooks(encoder, [codebook], [Recording(waveform, "")])
    assert quality.shift_agreement == pytest.approx(1, abs=0.02)


def test_units_of_whispers_final_norm_tell_places_and_those_of_layer_3_hardly(
    tiny_en: WhisperEncoderWeights, speech: list[Waveform]
) -> None:
    agreements = []
    for layer in (3, None):
        encoder = WhisperEncoder(tiny_en, layer=layer, device="cpu")
        frames_FD = np.concatenate([item.activations_FD.numpy() for item in encoder.encode(speech)])
        codebook = make_codebook(frames_FD[::7])
        (quality,) = measure_codebooks(encoder, [codebook], [Recording(waveform, "") for waveform in speech])
        agreements.append(quality.shift_agreement)
    of_layer_3, of_norm = agreements
    assert of_layer_3 > of_norm + 0.2


def test_recordings_of_a_second_have_no_later_beginning() -> None:
    encoder = open_mfcc_encoder("mfcc", layer=None, device="cpu")
    codebook = make_codebook(np.eye(2, 39))
    (quality,) = measure_codebooks(encoder, [codebook], [Recording(np.ones(16_000, np.float32), "")])
    assert quality.shift_agreement is None


class _Balanced(HTMLParser):
    """Fails on a tag that is not closed, and keeps all texts and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href"}]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_command_writes_json_and_one_self_contained_page(
    codebook_dir: Path, songs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in codebook_dir.rglob("*") if path.is_file()}
    paths = ["--codebook", str(codebook_dir), "--root", str(songs)]
    results = ["--out", str(tmp_path / "q.json"), "--html", str(tmp_path / "q.html")]
    assert run(["inspect", "--source", "jsonl", *paths, *results]) == 0
    table = capsys.readouterr().out
    assert "mfcc" in table
    assert "letter purity" in table
    quality = json.loads((tmp_path / "q.json").read_text())["quality"]
    assert f"{quality['perplexity']:.1f}" in table
    page = _Balanced()
    page.feed((tmp_path / "q.html").read_text())
    assert page.open == page.addresses == []
    assert page.tags.count("svg") == 3
    assert "script" not in page.tags
    assert f"{quality['perplexity']:.1f}" in page.texts
    assert before == {path: path.read_bytes() for path in codebook_dir.rglob("*") if path.is_file()}


def test_page_escapes_what_comes_from_outside(codebook_dir: Path, songs: Path) -> None:
    from dataclasses import replace

    report = inspect_codebook(config_of(codebook_dir, songs, limit=2))
    content = render_inspection(replace(report, encoder="<b>", splits=("<script>&",)))
    assert "<b>" not in content
    assert "<script>" not in content
    assert "&lt;script&gt;&amp;" in content
