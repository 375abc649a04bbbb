"""`tokenize` on small corpora in their true layouts, with Whisper tiny.en and a codebook fitted on them."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile

from dmlm.pipeline.codebooks.building import BuildCodebookConfig, SourceShare, build_codebook
from dmlm.pipeline.errors import (
    BadSampleBudgetError,
    ConfigError,
    CorruptInputError,
    ShardCorruptError,
)
from dmlm.pipeline.shards import iter_samples, load_dataset_card, verify_dataset
from dmlm.pipeline.tokenization.planning import TokenizeConfig
from dmlm.pipeline.tokenization.running import tokenize
from dmlm.pipeline.tokenizers.registry import load_tokenizers


def flac(root: Path, number: int) -> Path:
    return root / "LibriSpeech" / "train-tiny" / "7" / "9" / f"7-9-{number:04d}.flac"


def test_every_utterance_becomes_a_sample_with_one_unit_per_encoder_frame(
    tiny_corpora: Path, tiny_dataset: Path
) -> None:
    samples = list(iter_samples(tiny_dataset))
    assert [sample.key for sample in samples] == [f"7-9-{number:04d}" for number in range(8)]
    text = load_tokenizers(tiny_corpora / "codebook").text
    for number, sample in enumerate(samples):
        num_audio_samples = soundfile.info(flac(tiny_corpora, number)).frames
        assert sample.duration_seconds == num_audio_samples / 16_000
        assert sample.speech_tokens is not None
        assert len(sample.speech_tokens) == -(-(num_audio_samples // 160) // 2)
        if number < 7:
            assert sample.text == f"UTTERANCE NUMBER {number}"
            assert sample.text_tokens is not None
            assert text.decode(sample.text_tokens) == f"utterance number {number}"
        else:
            assert sample.text is None
            assert sample.text_tokens is None
    assert verify_dataset(tiny_dataset).num_shards == 3


def test_report_adds_up_and_has_its_stable_names(tiny_dataset: Path) -> None:
    report = json.loads((tiny_dataset / "report.json").read_text())
    assert set(report) == {
        *("num_in", "num_out", "num_skipped", "num_quarantined", "num_tokens"),
        *("audio_seconds", "new_audio_seconds", "seconds"),
    }
    assert (report["num_in"], report["num_out"]) == (8, 8)
    seconds = math.fsum(sample.duration_seconds or 0.0 for sample in iter_samples(tiny_dataset))
    assert report["audio_seconds"] == seconds > 37
    assert report["num_tokens"]["speech"] == sum(len(s.speech_tokens) for s in iter_samples(tiny_dataset))


def test_units_are_those_of_the_tokenizer_alone(tiny_corpora: Path, tiny_dataset: Path) -> None:
    tokenizer = load_tokenizers(tiny_corpora / "codebook", "cpu").speech
    assert tokenizer is not None
    waves = [soundfile.read(flac(tiny_corpora, number), dtype="float32")[0] for number in range(3)]
    units = list(tokenizer.encode(iter(waves)))
    for expected, sample in zip(units, iter_samples(tiny_dataset), strict=False):
        np.testing.assert_array_equal(sample.speech_tokens, expected)


def test_captions_of_an_image_stay_in_one_shard_and_share_its_tokens(
    settings: Callable[..., TokenizeConfig], tiny_corpora: Path, tmp_path: Path
) -> None:
    report = tokenize(settings(tiny_corpora, tmp_path / "out", "coco", samples_per_shard=7))
    assert (report.num_in, report.num_out) == (12, 12)
    card = load_dataset_card(tmp_path / "out")
    assert [shard.num_samples for shard in card.shards] == [6, 6]
    assert (card.vocabulary.num_speech, card.vocabulary.num_image) == (0, 16)
    samples = list(iter_samples(tmp_path / "out"))
    assert [s.image_id for s in samples] == [str(i // 3 + 1) for i in range(12)]
    for first, second in pairwise(samples):
        same_image = first.image_id == second.image_id
        assert np.array_equal(first.image_tokens, second.image_tokens) == same_image
    assert sorted(path.name for path in (tmp_path / "out" / "codebook").iterdir()) == [
        "codebook.json",
        "image",
        "text",
    ]
    verify_dataset(tmp_path / "out")


def test_same_bytes_wherever_corpus_and_output_lie(
    settings: Callable[..., TokenizeConfig],
    content: Callable[[Path], dict[str, bytes]],
    tiny_dataset: Path,
    root: Path,
    tmp_path: Path,
) -> None:
    tokenize(replace(settings(root, tmp_path / "again"), root=root / "LibriSpeech"))
    assert content(tmp_path / "again") == content(tiny_dataset)


def test_no_path_of_the_machine_is_in_the_data_set(
    settings: Callable[..., TokenizeConfig],
    content: Callable[[Path], dict[str, bytes]],
    root: Path,
    tmp_path: Path,
) -> None:
    flac(root, 1).write_bytes(b"no audio")
    tokenize(settings(root, tmp_path / "out"))
    for name, data in content(tmp_path / "out").items():
        assert str(tmp_path).encode() not in data, name


def test_data_set_carries_a_codebook_that_can_be_used_without_the_first(tiny_dataset: Path) -> None:
    tokenizers = load_tokenizers(tiny_dataset / "codebook")
    card = load_dataset_card(tiny_dataset)
    assert tokenizers.image is None
    assert tokenizers.speech is not None
    assert {**tokenizers.speech.fingerprint}.items() <= {**card.fingerprints["speech"]}.items()
    assert tokenizers.text.num_tokens == card.vocabulary.num_text


def test_limit_takes_the_first_items(
    settings: Callable[..., TokenizeConfig], tiny_corpora: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    assert tokenize(settings(tiny_corpora, tmp_path / "out", limit=2)).num_in == 2
    keys = [sample.key for sample in iter_samples(tmp_path / "out")]
    assert keys == [sample.key for sample in iter_samples(tiny_dataset)][:2]


def test_limit_takes_some_of_each_split(
    settings: Callable[..., TokenizeConfig], root: Path, tmp_path: Path
) -> None:
    held_out = root / "LibriSpeech" / "dev-tiny" / "3" / "4"
    held_out.mkdir(parents=True)
    for number in range(3):
        shutil.copy(flac(root, 0), held_out / f"3-4-{number:04d}.flac")
    tokenize(settings(root, tmp_path / "out", limit=2))
    splits = [sample.split for sample in iter_samples(tmp_path / "out")]
    assert splits == ["dev-tiny", "dev-tiny", "train-tiny", "train-tiny"]


def break_files(root: Path) -> dict[str, bytes]:
    """Breaks five utterances in five ways; returns what they were."""
    before = {str(number): flac(root, number).read_bytes() for number in range(5)}
    flac(root, 0).write_bytes(b"")
    flac(root, 1).write_bytes(before["1"][: len(before["1"]) // 2])
    soundfile.write(flac(root, 2), np.zeros(0), 16_000)
    soundfile.write(flac(root, 3), np.zeros((1600, 8)), 16_000)
    flac(root, 4).write_bytes(before["4"].replace(b"fLaC", b"LLaC"))
    return before


def test_broken_files_are_quarantined_one_by_one(
    settings: Callable[..., TokenizeConfig], root: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    break_files(root)
    report = tokenize(settings(root, tmp_path / "out"))
    assert (report.num_in, report.num_out, report.num_skipped, report.num_quarantined) == (8, 3, 0, 5)
    lines = (tmp_path / "out" / "ledger.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert [entry["key"] for entry in entries] == [f"7-9-{number:04d}" for number in range(5)]
    for entry in entries:
        assert (entry["outcome"], entry["stage"], entry["error"]) == ("quarantined", "audio", "AudioError")
        assert entry["reason"].startswith(f"{entry['key']}.flac: ")
    assert [s.key for s in iter_samples(tmp_path / "out")] == [s.key for s in iter_samples(tiny_dataset)][5:]
    verify_dataset(tmp_path / "out")


def test_over_budget_nothing_is_published_and_repair_goes_on_from_finished_shards(
    settings: Callable[..., TokenizeConfig], root: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    out_dir = tmp_path / "out"
    good = flac(root, 7).read_bytes()
    before = break_files(root)
    flac(root, 7).write_bytes(b"x")
    with pytest.raises(BadSampleBudgetError, match=r"6 bad samples .* 7-9-0007\.flac: cannot be decoded"):
        tokenize(settings(root, out_dir))
    with pytest.raises(ShardCorruptError, match="not a finished data set"):
        verify_dataset(out_dir)
    assert sorted(path.name for path in out_dir.glob("*.tar")) == [
        "librispeech-000000.tar",
        "librispeech-000001.tar",
    ]
    flac(root, 7).write_bytes(good)
    for number in (3, 4):
        flac(root, number).write_bytes(before[str(number)])
    first_written = (out_dir / "librispeech-000000.tar").stat().st_mtime_ns
    report = tokenize(settings(root, out_dir))
    assert (report.num_out, report.num_quarantined) == (5, 3)
    assert (out_dir / "librispeech-000000.tar").stat().st_mtime_ns == first_written
    second = "librispeech-000001.tar"
    assert (out_dir / second).read_bytes() == (tiny_dataset / second).read_bytes()
    verify_dataset(out_dir)


def test_a_second_run_does_not_forget_the_broken_files_of_the_first(
    settings: Callable[..., TokenizeConfig], root: Path, tmp_path: Path
) -> None:
    break_files(root)
    flac(root, 7).write_bytes(b"x")
    for _ in range(2):  # the first two of three shards are finished by the first run
        with pytest.raises(BadSampleBudgetError, match="6 bad samples"):
            tokenize(settings(root, tmp_path / "out"))


def test_a_data_set_without_a_sample_has_no_tokens_to_report(
    settings: Callable[..., TokenizeConfig], root: Path, tmp_path: Path
) -> None:
    flac(root, 0).write_bytes(b"no audio")
    report = tokenize(settings(root, tmp_path / "out", limit=1))
    assert report.table().splitlines()[1].startswith("no tokens, ")
    assert verify_dataset(tmp_path / "out").summary().endswith("0 samples, 0.0 MB, no tokens")


def test_broken_image_costs_its_own_captions_only(
    settings: Callable[..., TokenizeConfig], root: Path, tmp_path: Path
) -> None:
    path = root / "coco" / "train2017" / "000000000002.jpg"
    path.write_bytes(path.read_bytes()[:100])
    report = tokenize(settings(root, tmp_path / "out", "coco"))
    assert (report.num_in, report.num_out, report.num_quarantined) == (12, 9, 3)
    assert {sample.image_id for sample in iter_samples(tmp_path / "out")} == {"1", "3", "4"}


def test_missing_or_partial_codebook_is_named(
    settings: Callable[..., TokenizeConfig], root: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="none: no codebook; run `dmlm-cli build-codebook"):
        tokenize(settings(root, tmp_path / "out", codebook_dir=tmp_path / "none"))
    build_codebook(
        BuildCodebookConfig(
            root=root,
            out_dir=tmp_path / "images",
            sources=(SourceShare(name="coco"),),
            num_image_clusters=4,
            image_resolution=16,
            text_tokenizer="bpe:256",
        )
    )
    with pytest.raises(ConfigError, match="the codebook has no speech part"):
        tokenize(settings(root, tmp_path / "out", codebook_dir=tmp_path / "images"))
    centroids = root / "codebook" / "speech" / "codebook.safetensors"
    centroids.write_bytes(centroids.read_bytes()[:-4] + b"abcd")
    with pytest.raises(CorruptInputError, match="build the codebook again"):
        tokenize(settings(root, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_settings_that_make_no_sense_are_refused(
    settings: Callable[..., TokenizeConfig], tiny_corpora: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="samples_per_shard is 0"):
        settings(tiny_corpora, tmp_path / "out", samples_per_shard=0)
