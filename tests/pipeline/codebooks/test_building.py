"""Small corpora in their true layouts: spoken sentences as LibriSpeech, drawn squares as COCO."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from dmlm.cli import run
from dmlm.pipeline.codebooks import building as codebook_building
from dmlm.pipeline.codebooks import corpus_sampling
from dmlm.pipeline.codebooks.building import (
    BuildCodebookConfig,
    CodebookReport,
    SourceShare,
    build_codebook,
    is_codebook,
)
from dmlm.pipeline.codebooks.codebook import load_codebook
from dmlm.pipeline.errors import ConfigError, CorruptInputError
from dmlm.pipeline.samples import Waveform
from dmlm.pipeline.tokenizers.registry import load_tokenizers, read_card

TRANSCRIPT = "THE QUICK BROWN FOX"


def write_librispeech(root: Path, split: str, waveforms: list[Waveform]) -> Path:
    chapter = root / "LibriSpeech" / split / "103" / "1240"
    chapter.mkdir(parents=True)
    lines = []
    for index, waveform in enumerate(waveforms):
        soundfile.write(chapter / f"103-1240-{index:04d}.flac", waveform, 16_000)
        lines.append(f"103-1240-{index:04d} {TRANSCRIPT} {split.upper()}\n")
    (chapter / "103-1240.trans.txt").write_text("".join(lines))
    return chapter


def write_coco(root: Path) -> Path:
    folder = root / "coco" / "train2017"
    folder.mkdir(parents=True)
    images, captions = [], []
    for number in range(1, 7):
        pixels = np.full((80, 100, 3), number * 20, np.uint8)
        pixels[number * 5 : number * 5 + 30, 20:60] = [200, number * 30, 0]
        Image.fromarray(pixels).save(folder / f"{number:012d}.jpg", quality=95)
        images.append({"id": number, "file_name": f"{number:012d}.jpg", "height": 80, "width": 100})
        captions += [
            {"id": number * 10 + i, "image_id": number, "caption": f"A red Square {i}."} for i in range(5)
        ]
    (root / "coco" / "annotations").mkdir()
    content = json.dumps({"images": images, "annotations": captions})
    (root / "coco" / "annotations" / "captions_train2017.json").write_text(content)
    return folder


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory, speech: list[Waveform]) -> Path:
    """Training speech and images, and a held-out split of noise with a word of its own."""
    root = tmp_path_factory.mktemp("corpora")
    write_librispeech(root, "train-clean-100", speech)
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 32_000).astype(np.float32)
    write_librispeech(root, "test-other", [noise] * 2)
    write_coco(root)
    return root


@pytest.fixture(scope="module")
def config(corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> BuildCodebookConfig:
    return BuildCodebookConfig(
        root=corpora,
        out_dir=tmp_path_factory.mktemp("built") / "codebook",
        layer=1,
        num_clusters=20,
        num_image_clusters=16,
        image_resolution=32,
        text_tokenizer="bpe:280",
        device="cpu",
    )


@pytest.fixture(scope="module")
def built(config: BuildCodebookConfig) -> CodebookReport:
    return build_codebook(config)


def test_every_modality_of_the_sources_is_fitted(
    built: CodebookReport, config: BuildCodebookConfig, speech: list[Waveform]
) -> None:
    assert not built.was_there
    assert built.num_left_out == 0
    assert built.speech is not None
    assert built.image is not None
    assert built.image.num_seen == 6 * 16  # images, not captions
    assert built.num_text_tokens > 256
    tokenizers = load_tokenizers(config.out_dir, "cpu")
    assert tokenizers.speech is not None
    assert tokenizers.image is not None
    (units,) = tokenizers.speech.encode(speech[:1])
    (tokens,) = tokenizers.image.encode([np.zeros((40, 50, 3), np.uint8)])
    assert len(units) == (len(speech[0]) // 160 + 1) // 2
    assert tokens.shape == (16,)
    assert "20 clusters" in built.table()


def test_a_setting_of_a_modality_that_the_sources_lack_is_named(
    config: BuildCodebookConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build_codebook(replace(config, sources=(SourceShare(name="coco"),), out_dir=tmp_path / "codebook"))
    unused = [message for message in caplog.messages if "has no effect" in message]
    assert [message.split()[0] for message in unused] == ["layer", "num_clusters"]
    assert unused[1].startswith("num_clusters 20 has no effect")


def test_held_out_splits_are_not_used_unless_named(
    built: CodebookReport, config: BuildCodebookConfig, speech: list[Waveform], tmp_path: Path
) -> None:
    assert built.speech is not None
    assert built.speech.num_seen == sum((len(waveform) // 160 + 1) // 2 for waveform in speech)
    named = replace(
        config,
        sources=(SourceShare(name="librispeech"),),
        splits=("test-other",),
        out_dir=tmp_path / "named",
    )
    report = build_codebook(named)
    assert report.speech is not None
    assert report.speech.num_seen == 2 * 100
    assert report.image is None


@pytest.mark.parametrize(("hours", "num_seconds"), [("0.001", 4), ("1", 5), ("1.2", 6), ("0", 8)])
def test_as_much_speech_is_seen_as_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: str, num_seconds: int
) -> None:
    monkeypatch.setattr(corpus_sampling, "MAX_UTTERANCES", 5)  # so few that they are no hour
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (8, 16_000)).astype(np.float32)
    write_librispeech(tmp_path, "train-clean-100", list(noise))
    options = ["--encoder", "mfcc", "--clusters", "4", "--text-tokenizer", "bpe:256", "--device", "cpu"]
    out = ["--root", str(tmp_path), "--out", str(tmp_path / "out")]
    assert run(["build-codebook", *options, *out, "--audio-hours", hours]) == 0
    assert load_codebook(tmp_path / "out" / "speech").statistics.num_seen == num_seconds * 49
    assert read_card(tmp_path / "out")["settings"]["max_audio_seconds"] == float(hours) * 3_600


def test_text_rule_comes_before_the_merges(built: CodebookReport, config: BuildCodebookConfig) -> None:
    text = load_tokenizers(config.out_dir).text
    assert len(text.encode(TRANSCRIPT)) == len(TRANSCRIPT)
    assert len(text.encode(TRANSCRIPT.lower())) < 0.8 * len(TRANSCRIPT)


def test_codebook_is_used_in_the_precision_of_its_fit(
    built: CodebookReport, config: BuildCodebookConfig, speech: list[Waveform], tmp_path: Path
) -> None:
    rounded = replace(config, precision="bfloat16", out_dir=tmp_path / "rounded")
    build_codebook(rounded)
    tokenizer = load_tokenizers(rounded.out_dir, "cpu").speech
    assert tokenizer is not None
    assert tokenizer.fingerprint["precision"] == "bfloat16"
    assert read_card(rounded.out_dir)["settings"]["precision"] == "bfloat16"
    assert read_card(config.out_dir)["settings"]["precision"] == "float32"  # auto, on a CPU


def test_corpus_without_training_split_is_used_whole_and_said(
    config: BuildCodebookConfig, speech: list[Waveform], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_librispeech(tmp_path, "dev-clean", speech[:1])
    with caplog.at_level(logging.WARNING):
        report = build_codebook(replace(config, root=tmp_path, out_dir=tmp_path / "out"))
    assert report.speech is not None
    assert "no training split" in caplog.text


def test_copied_codebook_works_elsewhere_and_needs_no_whisper_for_images(
    built: CodebookReport, config: BuildCodebookConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(config.out_dir, tmp_path / "copy")
    monkeypatch.setattr("dmlm.pipeline.tokenizers.kmeans.open_kmeans_tokenizer", None)
    tokenizers = load_tokenizers(copy)
    assert tokenizers.image is not None
    assert tokenizers.text.fingerprint == load_tokenizers(config.out_dir).text.fingerprint


def test_same_settings_and_data_leave_the_folder_as_it_is(
    built: CodebookReport, config: BuildCodebookConfig
) -> None:
    before = {path: path.stat().st_mtime_ns for path in config.out_dir.rglob("*")}
    again = build_codebook(config)
    assert again.was_there
    assert (again.speech, again.image, again.num_text_tokens) == (
        built.speech,
        built.image,
        built.num_text_tokens,
    )
    assert {path: path.stat().st_mtime_ns for path in config.out_dir.rglob("*")} == before


def test_other_settings_or_data_are_refused(
    built: CodebookReport, config: BuildCodebookConfig, corpora: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="num_clusters 20, not 21"):
        build_codebook(replace(config, num_clusters=21))
    other = shutil.copytree(corpora, tmp_path / "other")
    next(other.rglob("103-1240-0002.flac")).unlink()
    with pytest.raises(ConfigError, match="sample_sha256"):
        build_codebook(replace(config, root=other))


def test_build_is_reproducible(built: CodebookReport, config: BuildCodebookConfig, tmp_path: Path) -> None:
    build_codebook(replace(config, out_dir=tmp_path / "again"))
    for path in sorted(config.out_dir.rglob("*.*")):
        again = tmp_path / "again" / path.relative_to(config.out_dir)
        assert path.read_bytes() == again.read_bytes(), path.name


def test_broken_files_are_left_out_and_counted(
    config: BuildCodebookConfig, corpora: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = shutil.copytree(corpora, tmp_path / "broken")
    next((root / "LibriSpeech" / "train-clean-100").rglob("*-0001.flac")).write_bytes(b"fLaC")
    (root / "coco" / "train2017" / "000000000002.jpg").write_bytes(b"\xff\xd8")
    with caplog.at_level(logging.WARNING):
        report = build_codebook(replace(config, root=root, out_dir=tmp_path / "out"))
    assert report.num_left_out == 2
    assert "103-1240-0001" in caplog.text
    assert report.image is not None
    assert report.image.num_seen == 5 * 16


def test_failed_build_leaves_nothing(
    config: BuildCodebookConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(codebook_building, "write_card", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build_codebook(replace(config, out_dir=tmp_path / "out"))
    assert not list(tmp_path.iterdir())


def test_left_over_of_a_killed_build_is_no_codebook(config: BuildCodebookConfig, tmp_path: Path) -> None:
    killed = tmp_path / ".out.00000000.tmp" / "speech"
    killed.mkdir(parents=True)
    (killed / "old.json").touch()
    coco = replace(config, sources=(SourceShare(name="coco"),), out_dir=tmp_path / "out")
    assert build_codebook(coco).speech is None
    assert is_codebook(coco.out_dir)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.00000000.tmp", "out"]
    assert not list(coco.out_dir.rglob("old.json"))


def test_an_empty_folder_is_taken_also_through_a_link_or_with_what_a_killed_build_left(
    config: BuildCodebookConfig, tmp_path: Path
) -> None:
    (tmp_path / "disk" / ".disk.00000000.tmp" / "speech").mkdir(parents=True)
    (tmp_path / "out").symlink_to("disk")
    coco = replace(config, sources=(SourceShare(name="coco"),), out_dir=tmp_path / "out")
    assert build_codebook(coco).speech is None
    assert coco.out_dir.is_symlink()
    load_tokenizers(tmp_path / "disk")


@pytest.mark.parametrize("is_there", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_another_process_may_build_the_same_codebook_meanwhile_but_no_other(
    config: BuildCodebookConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, is_there: bool
) -> None:
    mine = replace(config, sources=(SourceShare(name="coco"),), out_dir=tmp_path / "out")
    if is_there:
        mine.out_dir.mkdir()
    write_card = codebook_building.write_card

    def write_card_late(*arguments: object) -> None:
        monkeypatch.setattr(codebook_building, "write_card", write_card)
        build_codebook(replace(mine, seed=seed))
        write_card(*arguments)

    monkeypatch.setattr(codebook_building, "write_card", write_card_late)
    if seed == mine.seed:
        assert build_codebook(mine).image is not None
    else:
        with pytest.raises(ConfigError, match="another codebook there meanwhile"):
            build_codebook(mine)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert {path.name for path in mine.out_dir.iterdir()} == {"codebook.json", "image", "text"}
    assert read_card(mine.out_dir)["settings"]["seed"] == seed
    load_tokenizers(mine.out_dir)


@pytest.mark.parametrize(
    "name", ["speech/codebook.safetensors", "text/tokenizer.json", "image/codebook.json"]
)
def test_changed_or_missing_file_is_corrupt(
    built: CodebookReport, config: BuildCodebookConfig, tmp_path: Path, name: str
) -> None:
    copy = shutil.copytree(config.out_dir, tmp_path / "copy")
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(CorruptInputError, match=Path(name).name):
        load_tokenizers(copy)
    (copy / name).unlink()
    with pytest.raises(CorruptInputError, match="missing"):
        load_tokenizers(copy)


@pytest.mark.parametrize("card", ["{", "[]", '{"files": {"../x": "0"}, "settings": {}}', '{"files": {}}'])
def test_damaged_card_is_corrupt(tmp_path: Path, card: str) -> None:
    (tmp_path / "codebook.json").write_text(card)
    with pytest.raises(CorruptInputError, match=r"codebook\.json"):
        load_tokenizers(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_tokenizer": "bpe:255"}, "256"),
        ({"text_tokenizer": "bpe:many"}, "bpe:many"),
        ({"image_resolution": 33}, "multiple of 8"),
        ({"window": "half"}, "exact, padded"),
        ({"fit": "half"}, "sample, stream"),
        ({"max_audio_seconds": -1.0}, r"max_audio_seconds -1\.0 \(--audio-hours\)"),
        ({"image_tokenizer": "dalle"}, "dalle"),
        ({"sources": (SourceShare(name="coco", share=-1.0),)}, "positive"),
        ({"sources": (SourceShare(name="ami"),)}, "ami"),
        ({"splits": ("train-other-500",)}, "train-other-500"),
        ({"num_image_clusters": 97}, "96 vectors of patch are too few for 97 .* with --image-clusters"),
        ({"layer": 9}, "layers 1 to 4"),
        ({"encoder": "whisper:nonesuch"}, "nonesuch"),
    ],
)
def test_setting_that_cannot_be_honoured_is_refused(
    config: BuildCodebookConfig, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    out_dir = tmp_path / "out"
    with pytest.raises(ConfigError, match=message):
        build_codebook(replace(config, out_dir=out_dir, **change))  # type: ignore[arg-type]
    assert not out_dir.exists()


def test_folder_of_something_else_is_not_overwritten(config: BuildCodebookConfig, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(ConfigError, match="not a codebook"):
        build_codebook(replace(config, out_dir=tmp_path))
    assert (tmp_path / "thesis.txt").exists()
