"""What the sources read in the real corpus slices, against counts made without them (shell, README)."""

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from dmlm.pipeline.audio import recording_seconds
from dmlm.pipeline.samples import ImageCaption, Skipped, SourceItem, TextLine, Utterance
from dmlm.pipeline.sources import open_source

pytestmark = pytest.mark.realdata

ReadItems = Callable[[str], list[SourceItem]]


@pytest.fixture(scope="module")
def read_items(real_data: Path) -> ReadItems:
    """Function that reads all items of a source."""

    def read(source: str) -> list[SourceItem]:
        root = real_data / "text" if source == "text" else real_data
        return list(open_source(source, root).iter_items())

    return read


def count(items: Iterable[SourceItem]) -> dict[str, int]:
    return dict(Counter(item.split for item in items))


def count_words(items: Iterable[SourceItem], field: str = "text") -> dict[str, int]:
    words: Counter[str] = Counter()
    for item in items:
        words[item.split] += len((getattr(item, field) or "").split())
    return dict(words)


def count_minutes(items: Iterable[Utterance]) -> float:
    paths = {item.audio_path for item in items}
    return sum(map(recording_seconds, paths)) / 60


def test_librispeech(read_items: ReadItems) -> None:
    """`find -name '*.flac' | wc -l`, and the words of `*.trans.txt` less one key a line."""
    items = read_items("librispeech")
    assert all(isinstance(item, Utterance) for item in items)
    num_utterances = {"dev-clean": 4, "test-clean": 4, "test-ivr": 93, "test-other": 50}
    num_utterances |= {"train-clean-100": 150, "train-ivr": 389}
    assert count(items) == num_utterances
    assert count(item for item in items if item.text) == num_utterances | {"train-clean-100": 1}
    words = {"dev-clean": 102 - 4, "test-clean": 62 - 4, "test-ivr": 446 - 93, "test-other": 1095 - 50}
    assert count_words(items) == words | {"train-clean-100": 35 - 1, "train-ivr": 2190 - 389}
    ivr = [item for item in items if item.split.endswith("-ivr")]
    assert count_minutes(ivr) == pytest.approx(16.5, abs=0.05)
    assert len({item.speaker for item in items if item.split == "train-clean-100"}) == 150
    assert len({item.key for item in items}) == len(items) == 690


def test_ami(read_items: ReadItems) -> None:
    """8,476 `<segment `s in the XML, 263 of them in ES2011a, whose audio is not there."""
    items = read_items("ami")
    good = [item for item in items if isinstance(item, Utterance)]
    skipped = [item for item in items if isinstance(item, Skipped)]
    assert len(items) == len(good) + len(skipped) == 8_476
    assert count(good) == {"train": 66}
    assert count(skipped) == {"dev": 263, "train": 8_213 - 66}
    assert {item.recording_id for item in skipped if item.split == "dev"} == {"ES2011a"}
    assert len({item.recording_id for item in good}) <= 10
    assert max(item.end_seconds or 0 for item in good) <= 30
    assert sum(not item.text for item in good) == 12
    assert sum(bool(item.overlap_seconds) for item in good) == 51
    assert count_minutes(good) == pytest.approx(10 * 0.5, abs=0.01)


def test_covost(read_items: ReadItems) -> None:
    """Rows of `covost_v2.it_en.tsv` by their third column; words of `sentence` and `translation`."""
    items = read_items("covost")
    assert all(isinstance(item, Utterance) for item in items)
    assert count(items) == {"train": 386, "dev": 43, "test": 96}
    assert all(item.text and item.translation for item in items)
    assert count_words(items) == {"train": 2_641, "dev": 220, "test": 445}
    assert count_words(items, "translation") == {"train": 2_524, "dev": 224, "test": 404}
    assert {(item.language, item.translation_language) for item in items} == {("it", "en")}
    assert count_minutes(items) == pytest.approx(21.8, abs=0.05)
    assert len({item.audio_path for item in items}) == 525


def test_coco(read_items: ReadItems) -> None:
    """Five captions of each of 20 and 40 images; words of `caption`."""
    items = read_items("coco")
    assert all(isinstance(item, ImageCaption) for item in items)
    assert count(items) == {"train2017": 5 * 20, "val2017": 5 * 40}
    images = {(item.split, item.image_id) for item in items}
    assert Counter(split for split, _ in images) == {"train2017": 20, "val2017": 40}
    assert len({item.key for item in items}) == 300
    assert count_words(items) == {"train2017": 1_081, "val2017": 2_087}
    assert all(item.text and item.image_path.is_file() for item in items)


def test_text(read_items: ReadItems) -> None:
    """`wc -lw`."""
    items = read_items("text")
    assert all(isinstance(item, TextLine) for item in items)
    assert count(items) == {"librispeech-dev-clean": 2_699, "librispeech-test-clean": 2_616}
    assert count_words(items) == {"librispeech-dev-clean": 54_304, "librispeech-test-clean": 52_518}
