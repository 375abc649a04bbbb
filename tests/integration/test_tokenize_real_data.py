"""The real corpus slices through `tokenize`: nothing is lost, and units are counted as the method says."""

from pathlib import Path

import pytest
import soundfile

from dmlm.pipeline.codebooks.building import BuildCodebookConfig, build_codebook
from dmlm.pipeline.shards import iter_samples, load_dataset_card, verify_dataset
from dmlm.pipeline.tokenization.planning import TokenizeConfig
from dmlm.pipeline.tokenization.report import TokenizeReport
from dmlm.pipeline.tokenization.running import tokenize

pytestmark = [pytest.mark.realdata, pytest.mark.slow]


@pytest.fixture(scope="module")
def codebook(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small one, fitted on a minute of all four corpora."""
    out_dir = tmp_path_factory.mktemp("real") / "codebook"
    build_codebook(
        BuildCodebookConfig(
            root=real_data,
            out_dir=out_dir,
            num_clusters=50,
            num_image_clusters=64,
            image_resolution=64,
            max_audio_seconds=60,
            limit=50,
        )
    )
    return out_dir


def run(source: str, root: Path, codebook: Path, out_dir: Path, limit: int | None = None) -> TokenizeReport:
    report = tokenize(
        TokenizeConfig(
            source=source,
            root=root,
            codebook_dir=codebook,
            out_dir=out_dir,
            limit=limit,
            samples_per_shard=30,
        )
    )
    assert report.num_in == report.num_out + report.num_skipped + report.num_quarantined
    assert verify_dataset(out_dir).num_samples == report.num_out
    return report


def test_librispeech_units_are_counted_as_the_method_says(
    real_data: Path, codebook: Path, tmp_path: Path
) -> None:
    report = run("librispeech", real_data, codebook, tmp_path / "out", limit=4)
    assert (report.num_in, report.num_out) == (24, 24)  # of six splits
    lengths = {path.stem: soundfile.info(path).frames for path in (real_data / "LibriSpeech").rglob("*.flac")}
    for sample in iter_samples(tmp_path / "out"):
        assert sample.speech_tokens is not None
        assert len(sample.speech_tokens) == -(-(lengths[sample.key] // 160) // 2)


def test_ami_segments_inside_their_recordings_come_out_and_the_rest_is_skipped(
    real_data: Path, codebook: Path, tmp_path: Path
) -> None:
    report = run("ami", real_data, codebook, tmp_path / "out")
    assert (report.num_out, report.num_quarantined) == (66, 0)
    samples = list(iter_samples(tmp_path / "out"))
    assert sum(sample.text_tokens is None for sample in samples) >= 12
    assert sum(bool(sample.overlap_seconds) for sample in samples) >= 45


def test_covost_has_both_texts_and_both_languages(real_data: Path, codebook: Path, tmp_path: Path) -> None:
    report = run("covost", real_data, codebook, tmp_path / "out", limit=13)
    assert report.num_out == 39  # of three splits
    assert load_dataset_card(tmp_path / "out").settings["lang_pair"] == "it_en"
    for sample in iter_samples(tmp_path / "out"):
        assert (sample.language, sample.translation_language) == ("it", "en")
        assert sample.text_tokens is not None
        assert sample.translation_tokens is not None


def test_coco_has_one_sample_per_caption(real_data: Path, codebook: Path, tmp_path: Path) -> None:
    report = run("coco", real_data, codebook, tmp_path / "out")
    assert (report.num_in, report.num_out) == (300, 300)
    samples = list(iter_samples(tmp_path / "out"))
    assert len({sample.image_id for sample in samples}) == 60
    assert report.num_tokens.image == 300 * (64 // 8) ** 2
