import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import soundfile

from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.samples import Utterance
from dmlm.pipeline.source_names import CORPUS_NAMES, SOURCE_NAMES
from dmlm.pipeline.sources import (
    SourceOptions,
    check_options,
    describe_options,
    open_source,
    read_options,
    sources_present,
)
from dmlm.pipeline.sources.registry import _MODULES, _at_speeds


@pytest.fixture
def root(tmp_path):
    for split in ("dev-clean", "train-x"):
        chapter = tmp_path / "LibriSpeech" / split / "1" / "2"
        chapter.mkdir(parents=True)
        soundfile.write(chapter / f"1-2-{split}.flac", np.zeros(1_600), 16_000)
    return tmp_path


def splits_of(source):
    return [item.split for item in source.iter_items()]


def test_each_name_opens_the_corpus_of_that_name():
    assert SOURCE_NAMES[:4] == CORPUS_NAMES == ("librispeech", "ami", "covost", "coco")
    assert [import_module(f"dmlm.pipeline.sources.{name}") for name in SOURCE_NAMES] == list(_MODULES)


def test_root_may_be_the_parent_or_the_corpus_itself(root):
    from_parent = list(open_source("librispeech", root).iter_items())
    assert len(from_parent) == 2
    assert list(open_source("librispeech", root / "LibriSpeech").iter_items()) == from_parent


def test_only_corpora_under_the_root_are_present(root):
    assert sources_present(root) == ["librispeech"]
    assert sources_present(root / "LibriSpeech") == []


def test_splits_are_sorted_or_in_the_order_given_and_never_twice(root):
    assert splits_of(open_source("librispeech", root)) == ["dev-clean", "train-x"]
    asked = open_source("librispeech", root, splits=["train-x", "dev-clean", "train-x"])
    assert asked.splits == ("train-x", "dev-clean")
    assert splits_of(asked) == ["train-x", "dev-clean"]


def test_a_limit_counts_items_of_each_split(root):
    chapter = root / "LibriSpeech" / "train-x" / "1" / "2"
    soundfile.write(chapter / "1-2-more.flac", np.zeros(1_600), 16_000)
    items = list(open_source("librispeech", root).iter_items(1))
    assert [item.key for item in items] == ["1-2-dev-clean", "1-2-more"]


def test_unknown_split_lists_those_present(root):
    with pytest.raises(
        ConfigError, match=r"no split 'test-clean' in .*LibriSpeech; there are dev-clean, train-x"
    ):
        open_source("librispeech", root, splits=["test-clean"])


def test_unknown_source_names_the_nearest(root):
    with pytest.raises(ConfigError, match=r"'librispech': one of .*; did you mean 'librispeech'"):
        open_source("librispech", root)


@pytest.mark.parametrize("name", SOURCE_NAMES)
def test_wrong_root_says_in_one_line_what_was_expected_where_and_how_to_get_it(tmp_path, name):
    with pytest.raises(ConfigError, match=f"^{name}: expected .* found no such files") as raised:
        open_source(name, tmp_path)
    assert str(tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert ("; get it: http" in str(raised.value)) == (name in CORPUS_NAMES)


def test_missing_official_split_comes_with_its_address(root):
    with pytest.raises(
        ConfigError,
        match=r"get it: https://www\.openslr\.org/resources/12/test-other\.tar\.gz \(md5 fb5a5037",
    ):
        open_source("librispeech", root, splits=["test-other"])


def test_a_split_that_nobody_has_comes_without_an_address(root):
    with pytest.raises(ConfigError, match=r"no split 'train-mine' in .*; there are [^;]*$"):
        open_source("librispeech", root, splits=["train-mine"])


def test_files_of_a_user_are_never_taken_for_a_corpus_that_is_present(root):
    (root / "notes.txt").write_text("hello")
    assert sources_present(root) == ["librispeech"]


def test_reasons_name_files_relative_to_the_corpus(root):
    annotations = root / "ami" / "ami_public_manual_1.6.2" / "segments"
    annotations.mkdir(parents=True)
    (annotations / "ES2002a.A.segments.xml").write_text(
        '<r><segment transcriber_start="0" transcriber_end="1"/></r>'
    )
    recording = root / "ami" / "amicorpus" / "ES2002a" / "audio" / "ES2002a.Mix-Headset.wav"
    recording.parent.mkdir(parents=True)
    recording.write_bytes(b"RIFF, but no more")
    (item,) = open_source("ami", root).iter_items()
    assert item.reason.startswith("amicorpus/ES2002a/audio/ES2002a.Mix-Headset.wav: cannot be decoded")
    assert str(root) not in item.reason


def test_root_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no folder .*nowhere"):
        open_source("coco", tmp_path / "nowhere")


def test_each_utterance_comes_at_every_speed_under_a_key_of_its_own(root):
    options = SourceOptions(speeds=(0.9, 1.0, 1.1))
    items = list(open_source("librispeech", root, ["dev-clean"], options).iter_items())
    keys = [("1-2-dev-clean-sp90", 0.9), ("1-2-dev-clean", 1.0), ("1-2-dev-clean-sp110", 1.1)]
    assert [(item.key, item.speed) for item in items] == keys


@pytest.mark.parametrize("speed", [0.0, 0.49, 2.01, float("nan")])
def test_speeds_that_are_no_speech_are_refused(speed):
    with pytest.raises(ConfigError, match="--speed"):
        SourceOptions(speeds=(speed,))


@pytest.mark.parametrize("speeds", [(1.0, 1.0), (0.851, 0.854)])
def test_speeds_that_would_give_one_key_twice_are_refused(speeds):
    with pytest.raises(ConfigError, match="same percentage"):
        SourceOptions(speeds=speeds)


def test_options_come_back_from_the_settings_of_a_data_set():
    for options in (SourceOptions(), SourceOptions(speeds=(0.9, 1.1), microphone="sdm")):
        assert read_options(json.loads(json.dumps(describe_options(options)))) == options


def test_every_option_has_sources_that_read_it():
    changed = SourceOptions(
        lang_pair="it_en",
        microphone="sdm",
        truncated_words="drop",
        coco_splits="2017",
        language="it",
        columns="key=id",
        num_units=5,
        units_name="theirs",
        speeds=(0.9,),
    )
    assert describe_options(changed).keys() == set(SourceOptions.__slots__)
    check_options(changed, SOURCE_NAMES)
    check_options(SourceOptions(), [])
    with pytest.raises(ConfigError, match="--units-name: not read by"):
        check_options(SourceOptions(units_name="theirs"), set(SOURCE_NAMES) - {"units"})


def test_overlap_is_as_long_as_it_is_heard_at_the_speed():
    heard = {
        seconds: [item.overlap_seconds for item in _at_speeds(utterance(seconds), (0.5, 1.0, 2.0))]
        for seconds in (3.0, 0.0, None)
    }
    assert heard == {3.0: [6.0, 3.0, 1.5], 0.0: [0.0] * 3, None: [None] * 3}


def utterance(overlap_seconds):
    path = Path("a.wav")
    return Utterance(key="a", source="ami", split="x", audio_path=path, overlap_seconds=overlap_seconds)
