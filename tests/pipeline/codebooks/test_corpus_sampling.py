import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from dmlm.pipeline.codebooks.corpus_sampling import (
    CorpusSample,
    ItemSample,
    SourceSample,
    SourceShare,
    _share_out,
    _texts_of,
    draw_sample,
)
from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.samples import TextLine, Utterance
from dmlm.pipeline.sources import SourceOptions


def test_every_first_part_of_a_drawing_is_uniform_over_the_stream() -> None:
    counts: Counter[int] = Counter()
    for seed in range(400):
        sample = ItemSample[int](20, np.random.default_rng(seed))
        for item in range(40):
            sample.add(item)
        drawn = sample.drawn()
        assert len(set(drawn)) == 20
        counts.update(drawn[:10])
    # Binomial(400, 1/4): mean 100, standard deviation 8.7.
    assert all(60 < counts[item] < 140 for item in range(40))


def part(name: str, share: float, num_utterances: int, num_texts: int) -> SourceSample:
    utterance = Utterance(key="a", source=name, split="train", audio_path=Path("a.flac"))
    return SourceSample(
        source=SourceShare(name=name, share=share),
        splits=("train",),
        utterances=[utterance] * num_utterances,
        images=[],
        texts=[name] * num_texts,
        num_broken=1,
    )


def test_shares_count_among_the_sources_that_have_the_modality() -> None:
    sample = CorpusSample(parts=(part("a", 3, 5, 0), part("b", 1, 5, 2), part("c", 4, 0, 2)))
    assert [seconds for _, seconds in sample.speech_budgets(100.0)] == [75.0, 25.0]
    assert [seconds for _, seconds in sample.speech_budgets(0)] == [np.inf, np.inf]  # all of it
    assert Counter(sample.texts) == {"b": 2, "c": 2}
    assert sample.num_broken == 3
    assert sample.has_speech
    assert sample.images == []


def test_items_are_shared_out_by_the_shares() -> None:
    parts = [(SourceShare(name="a", share=3), ["a"] * 100), (SourceShare(name="b"), ["b"] * 100)]
    assert Counter(_share_out(parts, 40)) == {"a": 30, "b": 10}


def test_translations_are_texts_too() -> None:
    utterance = Utterance(
        key="a", source="s", split="train", audio_path=Path("a.flac"), text="Ciao", translation="Hello"
    )
    line = TextLine(key="b", source="s", split="train", text="Uno", translation="One")
    assert list(_texts_of(utterance, "verbatim")) == ["Ciao", "Hello"]
    assert list(_texts_of(line, "verbatim")) == ["Uno", "One"]


@pytest.mark.realdata
def test_real_corpora_give_training_data_only_in_a_seeded_order(real_data: Path) -> None:
    def draw(*names: str, seed: int = 0, limit: int | None = None) -> CorpusSample:
        sources = [SourceShare(name=name) for name in names]
        return draw_sample(sources, real_data, splits=None, options=SourceOptions(), limit=limit, seed=seed)

    sample = draw()
    assert [part.source.name for part in sample.parts] == ["librispeech", "ami", "covost", "coco"]
    assert {u.split for part in sample.parts for u in part.utterances} == {
        "train-clean-100",
        "train-ivr",
        "train",
    }
    assert len(sample.images) == len({image.image_id for image in sample.images}) == 20
    covost = sample.parts[2]
    assert len(covost.texts) > len(covost.utterances)  # translations too
    assert draw("covost").parts == (covost,)
    assert draw("covost", seed=1).sha256 != draw("covost").sha256
    assert len(draw("covost", limit=10).parts[0].utterances) == 10


def test_folder_without_corpora_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="LibriSpeech/, ami/, covost/ or coco/"):
        draw_sample((), tmp_path, splits=None, options=SourceOptions(), limit=None, seed=0)


def write_covost(root: Path, pair: str, *splits: str) -> None:
    folder = root / "covost" / pair[:2]
    (folder / "clips").mkdir(parents=True)
    names = [f"{pair}_{split}_{number}" for split in splits for number in range(3)]
    (folder / f"covost_v2.{pair}.tsv").write_text(
        "path\ttranslation\tsplit\n"
        + "".join(f"{name}.mp3\tTo {name}\t{name.split('_')[2]}\n" for name in names)
    )
    (folder / "validated.tsv").write_text(
        "client_id\tpath\tsentence\n" + "".join(f"s\t{name}.mp3\tOf {name}\n" for name in names)
    )
    for name in names:
        (folder / "clips" / f"{name}.mp3").touch()


def write_coco(root: Path, *splits: str) -> None:
    (root / "coco" / "annotations").mkdir(parents=True)
    for number, split in enumerate(splits, start=1):
        (root / "coco" / split).mkdir()
        (root / "coco" / split / f"{number}.jpg").touch()
        content = {"images": [{"id": number, "file_name": f"{number}.jpg"}], "annotations": []}
        (root / "coco" / "annotations" / f"captions_{split}.json").write_text(json.dumps(content))


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """Two language pairs and both years of COCO: `tokenize` would ask which."""
    write_covost(tmp_path, "it_en", "train", "dev")
    write_covost(tmp_path, "de_en", "train", "test")
    write_coco(tmp_path, "train2014", "val2014", "train2017", "val2017")
    return tmp_path


@pytest.mark.parametrize(
    ("options", "languages", "image_splits"),
    [
        (SourceOptions(), {"it": 3, "de": 3}, {"train2014", "train2017"}),
        (SourceOptions(lang_pair="it_en", coco_splits="2017"), {"it": 3}, {"train2017"}),
    ],
)
def test_all_language_pairs_and_years_are_drawn_from_unless_one_is_named(
    several: Path,
    options: SourceOptions,
    languages: dict[str, int],
    image_splits: set[str],
) -> None:
    sample = draw_sample((), several, splits=None, options=options, limit=None, seed=0)
    covost, coco = sample.parts
    assert Counter(utterance.language for utterance in covost.utterances) == languages
    assert covost.splits == ("train",)
    assert {image.split for image in coco.images} == {*coco.splits} == image_splits


def test_options_that_no_source_reads_are_refused(several: Path) -> None:
    for options in (SourceOptions(microphone="sdm"), SourceOptions(lang_pair="it_en", language="it")):
        with pytest.raises(ConfigError, match="not read by --source covost, coco, only by"):
            draw_sample((), several, splits=None, options=options, limit=None, seed=0)


def test_splits_and_limits_hold_for_each_language_pair(several: Path) -> None:
    def draw(splits: list[str], limit: int | None = None) -> Counter[tuple[str | None, str]]:
        source = SourceShare(name="covost")
        sample = draw_sample([source], several, splits=splits, options=SourceOptions(), limit=limit, seed=0)
        return Counter((item.language, item.split) for item in sample.parts[0].utterances)

    assert draw(["dev"]) == {("it", "dev"): 3}
    assert draw(["train", "dev"], limit=2) == {("it", "train"): 2, ("it", "dev"): 2, ("de", "train"): 2}
    with pytest.raises(ConfigError, match="no split 'tset'"):
        draw(["train", "tset"])
