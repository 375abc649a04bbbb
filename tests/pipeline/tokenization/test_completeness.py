"""What is said of a corpus that is not all there."""

import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.samples import Broken, Skipped, SourceItem, Utterance
from dmlm.pipeline.sources import SourceOptions
from dmlm.pipeline.synthesis.reports import FINISHED
from dmlm.pipeline.tokenization.completeness import nothing_to_tokenize, warn_of_other_counts
from dmlm.pipeline.tokenization.planning import TokenizeConfig, plan_tokenization
from dmlm.pipeline.tokenization.shard_tasks import ShardTask
from dmlm.pipeline.tokenizers.choosing import TokenizerChoice, chosen_codebook

SEGMENT = '<segment nite:id="s" transcriber_start="0.1" transcriber_end="0.9"/>'
NITE = 'xmlns:nite="http://nite.sourceforge.net/"'


def write_ami(root: Path) -> None:
    manual, audio = root / "ami/ami_public_manual_1.6.2", root / "ami/amicorpus/ES2004a/audio"
    for folder in (manual / "segments", manual / "corpusResources", audio):
        folder.mkdir(parents=True)
    for agent in "AB":
        content = f"<nite:root {NITE}>{SEGMENT}</nite:root>"
        (manual / "segments" / f"ES2004a.{agent}.segments.xml").write_text(content)
    (manual / "corpusResources" / "meetings.xml").write_text(f"<nite:root {NITE}/>")
    soundfile.write(audio / "ES2004a.Mix-Headset.wav", np.zeros(16_000, np.int16), 16_000)


def write_covost(root: Path) -> None:
    folder = root / "covost" / "it"
    folder.mkdir(parents=True)
    lines = [f"{number}.mp3\tYes\ttest\n" for number in range(3)]
    (folder / "covost_v2.it_en.tsv").write_text("path\ttranslation\tsplit\n" + "".join(lines))
    lines = [f"somebody\t{number}.mp3\tSì\n" for number in range(2)]  # the third clip was never validated
    (folder / "validated.tsv").write_text("client_id\tpath\tsentence\n" + "".join(lines))


def write_coco(root: Path) -> None:
    (root / "coco" / "val2017").mkdir(parents=True)
    (root / "coco" / "annotations").mkdir()
    content = {
        "images": [{"id": 7, "file_name": "000000000007.jpg"}],
        "annotations": [{"id": number, "image_id": 7, "caption": "a cat"} for number in range(5)],
    }
    (root / "coco" / "annotations" / "captions_val2017.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("source", "write", "reason", "what_to_get"),
    [
        ("ami", write_ami, "2 items left out, 2 of them: meeting without audio", "or Array1-01 (sdm)"),
        (
            "covost",
            write_covost,
            "3 items left out, 2 of them: clip was not downloaded",
            "Common Voice corpus 4",
        ),
        ("coco", write_coco, "5 items left out, 5 of them: no image file", "zips/val2017.zip"),
    ],
)
def test_corpus_without_its_media_says_why_nothing_is_left_and_where_to_get_them(
    source: str, write: Callable[[Path], None], reason: str, what_to_get: str, tmp_path: Path
) -> None:
    write(tmp_path)
    config = TokenizeConfig(
        source=source,
        root=tmp_path,
        codebook_dir=None,
        out_dir=tmp_path / "out",
        options=SourceOptions(microphone="sdm"),
        choice=TokenizerChoice(text="bpe:256"),
    )
    with (
        chosen_codebook(None, config.choice) as codebook_dir,
        pytest.raises(ConfigError, match=f"^{source}: nothing to tokenize in ") as raised,
    ):
        plan_tokenization(config, codebook_dir)
    message = str(raised.value)
    assert reason in message
    assert what_to_get in message.partition("; get it: http")[2]
    assert "\n" not in message


@pytest.mark.parametrize(
    ("reasons", "expected"),
    [
        (
            ["a.jsonl:1: not json", "a.jsonl:2: not json", "a.jsonl:3: no file b"],
            "3 .*, 2 of them: not json$",
        ),
        (["a.jsonl:1: no file a", "a.jsonl:2: no file b"], "2 items left out, such as a.jsonl:1: no file a$"),
    ],
)
def test_reasons_are_counted_whatever_line_they_name(reasons: list[str], expected: str) -> None:
    items = [Broken(key="k", source="jsonl", split="a", reason=reason) for reason in reasons]
    assert re.search(expected, str(nothing_to_tokenize("jsonl", Path("mine"), items)))


def utterances(split: str, num: int, **fields: object) -> Iterator[SourceItem]:
    for number in range(num):
        defaults = {"source": "x", "split": split, "audio_path": Path("x.wav"), "recording_id": "m"}
        yield Utterance(key=f"{split}-{number}", **{**defaults, **fields})


def warnings(
    caplog: pytest.LogCaptureFixture, source: str, root: Path, *parts: Iterator[SourceItem]
) -> list[str]:
    caplog.clear()
    tasks = [ShardTask(name=f"{source}-{number}", items=tuple(part)) for number, part in enumerate(parts)]
    with caplog.at_level(logging.WARNING):
        warn_of_other_counts(source, root, tasks)
    return caplog.messages


def test_split_with_another_count_than_published_gets_one_line(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    parts = utterances("dev-clean", 4), utterances("test-other", 2940), utterances("train-own", 3)
    assert warnings(caplog, "librispeech", tmp_path, *parts) == [
        "librispeech dev-clean: 4 samples found, 2703 published (5.4 h): less than the whole split",
        "librispeech test-other: 2940 samples found, 2939 published (5.1 h): more than the whole split",
    ]


def test_whole_split_is_no_matter_whatever_the_shards_and_speeds(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    slow, fast = utterances("test-clean", 2620, speed=0.9), utterances("test-clean", 2620, speed=1.1)
    assert not warnings(caplog, "librispeech", tmp_path, slow, fast)


def test_counts_of_covost_are_those_of_the_pair(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    chinese = {"language": "zh", "translation_language": "en"}
    missing = Skipped(key="x", source="covost", split="dev", reason="clip was not downloaded")
    whole, parts = utterances("test", 4898, **chinese), [*utterances("dev", 4842, **chinese), missing]
    assert warnings(caplog, "covost", tmp_path, whole, iter(parts)) == [
        "covost dev: 4842 samples found, 4843 published: less than the whole split"
    ]
    unknown = utterances("test", 5, language="it", translation_language="fr")
    assert not warnings(caplog, "covost", tmp_path, unknown)


def test_ami_is_counted_by_meetings(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    whole = [list(utterances("test", 3, recording_id=f"m{number}")) for number in range(16)]
    assert not warnings(caplog, "ami", tmp_path, *whole)
    (line,) = warnings(caplog, "ami", tmp_path, *whole[:15], utterances("test", 2, recording_id="m3"))
    assert line == "ami test: 15 recordings found, 16 published: less than the whole split"
    (line,) = warnings(caplog, "ami", tmp_path, utterances("train", 2))
    assert "137 published (others found no Array1-01.wav (sdm) of IS1003b and IS1007d): less" in line


def test_sample_in_a_layout_is_not_measured_by_the_corpus(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / FINISHED).write_text("{}")
    for root in (tmp_path, tmp_path / "ami"):
        assert not warnings(caplog, "ami", root, utterances("test", 2))
