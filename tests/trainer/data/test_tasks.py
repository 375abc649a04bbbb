from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmlm.pipeline.errors import ConfigError, CorruptInputError
from dmlm.pipeline.samples import Sample
from dmlm.pipeline.shards.index import build_index, index_row
from dmlm.pipeline.vocabulary import Vocabulary
from dmlm.trainer.config import SequenceConfig
from dmlm.trainer.data.tasks import (
    MODALITIES,
    TASKS,
    TaskSequence,
    build_prompt,
    collapse_runs,
    loss_token_counts,
    sequence_lengths,
)

VOCABULARY = Vocabulary(num_text=30, num_speech=20, num_image=16, bos_id=2, eos_id=3)
BuildSequence = Callable[..., TaskSequence]
PLAIN = SequenceConfig()


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


SAMPLE = Sample(
    key="k",
    source="s",
    split="train",
    language="en",
    translation_language="de",
    speech_tokens=ids(5, 5, 7),
    image_tokens=ids(1, 2),
    text_tokens=ids(10, 11),
    translation_tokens=ids(12),
)


def spell(sequence: TaskSequence) -> str:
    """The sequence in words; behind each token that carries loss the first letter of its modality."""
    words = {VOCABULARY.bos_id: "BOS", VOCABULARY.eos_id: "EOS"}
    for id_, name in enumerate(VOCABULARY.added_tokens(), start=VOCABULARY.num_text):
        words[id_] = name.replace("speech_", "u").replace("image_", "c")
    names = [words.get(int(token), str(token)) for token in sequence.tokens_T]
    marks = ["" if code < 0 else "/" + MODALITIES[code][0] for code in sequence.modality_T]
    return " ".join(name + mark for name, mark in zip(names, marks, strict=True))


GOLDEN = {
    "asr": "BOS <speech> <u5>/s <u5>/s <u7>/s </speech>/s <asr> <en> 10/t 11/t EOS/t",
    "s2tt": "BOS <speech> <u5>/s <u5>/s <u7>/s </speech>/s <s2tt> <de> 12/t EOS/t",
    "t2s": "BOS <en> 10/t 11/t <t2s> <speech> <u5>/s <u5>/s <u7>/s </speech>/s EOS/s",
    "i2t": "BOS <image> <c1>/i <c2>/i </image>/i <i2t> <en> 10/t 11/t EOS/t",
    "speech": "BOS <speech> <u5>/s <u5>/s <u7>/s </speech>/s EOS/s",
    "text": "BOS <en> 10/t 11/t EOS/t",
    "image": "BOS <image> <c1>/i <c2>/i </image>/i EOS/i",
}


def test_every_task_has_a_golden_sequence() -> None:
    assert GOLDEN.keys() == TASKS.keys()


@pytest.mark.parametrize("name", GOLDEN)
def test_sequence_of_each_task(name: str, build_sequence: BuildSequence) -> None:
    assert spell(build_sequence(TASKS[name], SAMPLE, VOCABULARY, PLAIN)) == GOLDEN[name]


def test_target_only_takes_the_loss_from_the_source(build_sequence: BuildSequence) -> None:
    config = SequenceConfig(target_only=True)
    asr = build_sequence(TASKS["asr"], SAMPLE, VOCABULARY, config)
    assert spell(asr) == "BOS <speech> <u5> <u5> <u7> </speech> <asr> <en> 10/t 11/t EOS/t"
    assert spell(build_sequence(TASKS["speech"], SAMPLE, VOCABULARY, config)) == GOLDEN["speech"]


def test_runs_are_collapsed_in_source_and_target(build_sequence: BuildSequence) -> None:
    config = SequenceConfig(collapse_runs=True)
    asr = build_sequence(TASKS["asr"], SAMPLE, VOCABULARY, config)
    assert spell(asr) == "BOS <speech> <u5>/s <u7>/s </speech>/s <asr> <en> 10/t 11/t EOS/t"
    t2s = build_sequence(TASKS["t2s"], SAMPLE, VOCABULARY, config)
    assert spell(t2s) == "BOS <en> 10/t 11/t <t2s> <speech> <u5>/s <u7>/s </speech>/s EOS/s"


@given(st.lists(st.integers(0, 3)))
def test_collapsed_tokens_have_no_run_and_keep_every_change(values: list[int]) -> None:
    kept = [value for i, value in enumerate(values) if i == 0 or values[i - 1] != value]
    assert collapse_runs(ids(*values)).tolist() == kept


@pytest.mark.parametrize("name", GOLDEN)
def test_prompt_is_the_sequence_up_to_the_target(name: str, build_sequence: BuildSequence) -> None:
    task = TASKS[name]
    sequence = build_sequence(task, SAMPLE, VOCABULARY, SequenceConfig(target_only=True))
    prompt = build_prompt(task, SAMPLE, VOCABULARY, SequenceConfig(target_only=True))
    assert sequence.num_prompt == len(prompt) == int(np.flatnonzero(sequence.modality_T >= 0)[0])
    np.testing.assert_array_equal(sequence.tokens_T[: len(prompt)], prompt)


def test_prompt_needs_no_target() -> None:
    bare = Sample(key="k", source="s", split="test", language="en", speech_tokens=ids(5))
    prompt = build_prompt(TASKS["asr"], bare, VOCABULARY, PLAIN)
    assert VOCABULARY.special_id("<en>") == prompt[-1]


def test_a_text_of_unknown_language_has_no_language_token(build_sequence: BuildSequence) -> None:
    sample = Sample(key="k", source="s", split="train", text_tokens=ids(4))
    assert spell(build_sequence(TASKS["text"], sample, VOCABULARY, PLAIN)) == "BOS 4/t EOS/t"


def test_a_language_without_a_token_is_refused_by_name() -> None:
    sample = Sample(key="k", source="s", split="train", language="tlh", text_tokens=ids(4))
    with pytest.raises(ConfigError, match=r"sample k: this vocabulary has no token <tlh>"):
        build_prompt(TASKS["text"], sample, VOCABULARY, PLAIN)


def test_an_id_out_of_its_range_is_refused() -> None:
    sample = Sample(key="k", source="s", split="train", speech_tokens=ids(VOCABULARY.num_speech))
    with pytest.raises(CorruptInputError):
        build_prompt(TASKS["asr"], sample, VOCABULARY, PLAIN)


def tokens_of(stop: int) -> st.SearchStrategy[np.ndarray | None]:
    return st.none() | st.lists(st.integers(0, stop - 1), max_size=9).map(lambda values: ids(*values))


LANGUAGE = st.sampled_from([None, "en", "de"])
SAMPLES = st.builds(
    Sample,
    key=st.just("k"),
    source=st.just("s"),
    split=st.just("train"),
    language=LANGUAGE,
    translation_language=LANGUAGE,
    speech_tokens=tokens_of(4),
    image_tokens=tokens_of(16),
    text_tokens=tokens_of(30),
    translation_tokens=tokens_of(30),
)


@given(sample=SAMPLES, collapsed=st.booleans(), target_only=st.booleans())
def test_the_index_foretells_lengths_and_losses(
    sample: Sample, collapsed: bool, target_only: bool, build_sequence: BuildSequence
) -> None:
    config = SequenceConfig(collapse_runs=collapsed, target_only=target_only)
    index = build_index([index_row(sample, {})])
    for task in TASKS.values():
        (length,) = sequence_lengths(task, index, config)
        members = [getattr(sample, f"{member}_tokens") for member in task.members]
        if any(tokens is None or not len(tokens) for tokens in members):
            assert length == 0
            continue
        sequence = build_sequence(task, sample, VOCABULARY, config)
        assert length == len(sequence.tokens_T) == len(sequence.modality_T)
        counts = np.bincount(sequence.modality_T[sequence.modality_T >= 0], minlength=len(MODALITIES))
        np.testing.assert_array_equal(loss_token_counts(task, index, config)[0], counts)
