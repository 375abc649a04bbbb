from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from dmlm.pipeline.corpus_sampling import (
    CorpusSample,
    ItemSample,
    SourceSample,
    SourceShare,
    draw_sample,
)
from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.samples import Utterance
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
