"""The sample's files against those of the real corpora: same names, same fields."""

import json
import xml.etree.ElementTree as ET
from collections import defaultdict
from pathlib import Path

import pytest
import soundfile

from dmlm.pipeline.synthesis.reports import SampleReport

pytestmark = pytest.mark.realdata


def attributes_by_tag(paths: list[Path]) -> dict[str, set[str]]:
    attributes = defaultdict(set)
    for path in paths:
        for element in ET.parse(path).getroot().iter():
            attributes[element.tag] |= set(element.attrib)
    return attributes


@pytest.mark.parametrize("kind", ["words", "segments", "corpusResources"])
def test_meeting_annotations_use_the_tags_and_attributes_of_ami(
    kind: str, small_sample: SampleReport, real_data: Path
) -> None:
    folder = Path("ami/ami_public_manual_1.6.2") / kind
    pattern = "meetings.xml" if kind == "corpusResources" else "*.xml"
    ours, theirs = (
        attributes_by_tag(sorted((root / folder).glob(pattern))) for root in (small_sample.out_dir, real_data)
    )
    assert ours
    for tag, attributes in ours.items():
        assert attributes <= theirs[tag], tag


@pytest.mark.parametrize("table", ["covost_v2.it_en", "train", "dev", "test", "validated"])
def test_tables_have_the_columns_of_covost(table: str, small_sample: SampleReport, real_data: Path) -> None:
    ours, theirs = (
        (root / "covost" / "it" / f"{table}.tsv").read_text().splitlines()[0]
        for root in (small_sample.out_dir, real_data)
    )
    assert ours == theirs


def test_captions_have_the_fields_of_coco(small_sample: SampleReport, real_data: Path) -> None:
    ours, theirs = (
        json.loads((root / "coco" / "annotations" / "captions_val2017.json").read_bytes())
        for root in (small_sample.out_dir, real_data)
    )
    assert ours.keys() == theirs.keys()
    assert ours["annotations"][0].keys() == theirs["annotations"][0].keys()
    assert ours["images"][0].keys() <= theirs["images"][0].keys()


@pytest.mark.parametrize(
    "pattern", ["LibriSpeech/*/*/*/*.flac", "ami/amicorpus/*/audio/*.wav", "covost/it/clips/*.mp3"]
)
def test_audio_has_the_format_of_the_real_one(
    pattern: str, small_sample: SampleReport, real_data: Path
) -> None:
    ours, theirs = (soundfile.info(next(root.glob(pattern))) for root in (small_sample.out_dir, real_data))
    for field in ("samplerate", "channels", "format", "subtype"):
        assert getattr(ours, field) == getattr(theirs, field)


def test_speakers_are_listed_like_librispeech(small_sample: SampleReport, real_data: Path) -> None:
    for root in (small_sample.out_dir, real_data):
        rows = [
            line.split("|")
            for line in (root / "LibriSpeech" / "SPEAKERS.TXT").read_text().splitlines()
            if not line.startswith(";")
        ]
        assert rows
        assert all(row[0].strip().isdigit() and row[1].strip() in {"M", "F"} for row in rows)
        assert all(len(row) >= 5 and float(row[3]) > 0 for row in rows)
