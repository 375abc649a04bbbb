import hashlib
import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from dmlm.pipeline.errors import ConfigError, MissingDependencyError
from dmlm.pipeline.samples import ImageCaption, Skipped, Utterance
from dmlm.pipeline.sources.registry import open_source
from dmlm.pipeline.synthesis.corpora import SampleConfig, write_sample_corpora
from dmlm.pipeline.synthesis.readings import is_word_string
from dmlm.pipeline.synthesis.reports import SampleReport
from dmlm.pipeline.synthesis.speech import EnglishVoice
from dmlm.pipeline.synthesis.texts import draw_texts


def checksums(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def config_of(report: SampleReport, **changes: object) -> SampleConfig:
    settings = {"out_dir": report.out_dir, "seed": 3, "limit": 6, "num_workers": 2, **changes}
    return SampleConfig(**settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def one_worker_sample(small_sample: SampleReport, tmp_path_factory: pytest.TempPathFactory) -> SampleReport:
    out_dir = tmp_path_factory.mktemp("samples") / "again"
    return write_sample_corpora(config_of(small_sample, out_dir=out_dir, num_workers=1))


def test_files_do_not_depend_on_the_number_of_workers(
    small_sample: SampleReport, one_worker_sample: SampleReport
) -> None:
    assert checksums(small_sample.out_dir) == checksums(one_worker_sample.out_dir)


def test_another_seed_gives_another_sample(small_sample: SampleReport, tmp_path: Path) -> None:
    write_sample_corpora(config_of(small_sample, out_dir=tmp_path / "other", seed=4, limit=1))
    ours, others = (
        {digest for name, digest in checksums(folder).items() if name.endswith(("flac", "mp3", "wav", "jpg"))}
        for folder in (small_sample.out_dir, tmp_path / "other")
    )
    assert ours.isdisjoint(others)


def test_complete_sample_is_not_made_again(
    small_sample: SampleReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "hibari", None)
    again = write_sample_corpora(config_of(small_sample))
    assert again.already_complete
    assert again.splits == small_sample.splits
    assert "nothing to do" in again.table()


@pytest.mark.parametrize("changes", [{"seed": 4}, {"limit": 7}])
def test_sample_of_other_settings_is_refused(small_sample: SampleReport, changes: dict[str, object]) -> None:
    before = checksums(small_sample.out_dir)
    with pytest.raises(ConfigError, match="other settings"):
        write_sample_corpora(config_of(small_sample, **changes))
    assert checksums(small_sample.out_dir) == before


def test_folder_with_other_files_is_refused_and_left_alone(
    small_sample: SampleReport, tmp_path: Path
) -> None:
    (tmp_path / "LibriSpeech").mkdir()
    (tmp_path / "LibriSpeech" / "SPEAKERS.TXT").write_text("the real ones")
    with pytest.raises(ConfigError, match="new folder"):
        write_sample_corpora(config_of(small_sample, out_dir=tmp_path))
    assert list(checksums(tmp_path)) == ["LibriSpeech/SPEAKERS.TXT"]


def test_interrupted_sample_is_not_complete_and_a_rerun_finishes_it(
    small_sample: SampleReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out_dir = tmp_path / "interrupted"
    speak, num_spoken = EnglishVoice.speak, 0

    def interrupted(*arguments: object) -> object:
        nonlocal num_spoken
        num_spoken += 1
        if num_spoken == 4:
            raise KeyboardInterrupt
        return speak(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(EnglishVoice, "speak", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_sample_corpora(config_of(small_sample, out_dir=out_dir, num_workers=1))
    assert not (out_dir / "sample.json").exists()
    assert num_spoken < 10
    with pytest.raises(ConfigError, match="other settings"):
        write_sample_corpora(config_of(small_sample, out_dir=out_dir, seed=9))
    assert not write_sample_corpora(config_of(small_sample, out_dir=out_dir)).already_complete
    assert checksums(out_dir) == checksums(small_sample.out_dir)


def test_missing_italian_voice_is_found_before_the_long_work(
    small_sample: SampleReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(MissingDependencyError):
        write_sample_corpora(config_of(small_sample, out_dir=tmp_path / "out"))
    assert not (tmp_path / "out" / "LibriSpeech").exists()


def test_damaged_card_is_named(tmp_path: Path) -> None:
    (tmp_path / "sample.json").write_text("{")
    with pytest.raises(ConfigError, match=r"sample\.json is damaged"):
        write_sample_corpora(SampleConfig(out_dir=tmp_path))


@pytest.mark.parametrize("changes", [{"limit": 0}, {"num_workers": 0}])
def test_impossible_settings_are_refused(tmp_path: Path, changes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        write_sample_corpora(SampleConfig(out_dir=tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_every_folder_says_that_it_is_synthetic(small_sample: SampleReport) -> None:
    folders = (".", "LibriSpeech", "ami", "covost", "coco")
    for folder in folders:
        text = (small_sample.out_dir / folder / "README.txt").read_text()
        assert text.startswith("SYNTHETIC")
        assert "seed 3" in text
        assert "hibari-tts 0." in text
    assert json.loads((small_sample.out_dir / "sample.json").read_bytes())["synthetic"] is True


def test_the_readers_find_what_the_report_counts(small_sample: SampleReport) -> None:
    counts: Counter[tuple[str, str]] = Counter()
    for name in ("librispeech", "ami", "covost", "coco"):
        for item in open_source(name, small_sample.out_dir).iter_items():
            assert isinstance(item, Utterance | ImageCaption | Skipped), item
            counts[name, item.split] += 1
    captions_per_image = 3
    assert counts == {
        (split.corpus, split.split): split.num_items * (captions_per_image if split.corpus == "coco" else 1)
        for split in small_sample.splits
    }


def test_the_table_names_every_split(small_sample: SampleReport) -> None:
    table = small_sample.table()
    assert all(split.split in table for split in small_sample.splits)
    assert f"{small_sample.audio_seconds / 60:.1f} minutes" in table


def test_transcripts_are_the_planned_texts_and_keys_tell_the_halves(small_sample: SampleReport) -> None:
    items = list(open_source("librispeech", small_sample.out_dir, ["test-sample"]).iter_items())
    spoken = {(item.text.lower(), is_word_string(item.key)) for item in items if isinstance(item, Utterance)}
    planned = {(reading.text, reading.is_word_string) for reading in draw_texts(3).test.readings[:6]}
    assert spoken == planned
    assert sum(kind for _, kind in spoken) == 3


def test_last_segment_of_a_meeting_is_skipped_and_laughter_has_no_words(small_sample: SampleReport) -> None:
    items = list(open_source("ami", small_sample.out_dir, ["test"]).iter_items())
    assert sum(isinstance(item, Skipped) for item in items) == 1
    texts = [item.text for item in items if isinstance(item, Utterance)]
    assert texts.count(None) == 1
    assert any("<disfmarker>" in text for text in texts if text)
