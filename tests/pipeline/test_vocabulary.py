"""The shared vocabulary: ranges never overlap, nothing leaves its range."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmlm.pipeline.errors import ConfigError, CorruptInputError
from dmlm.pipeline.samples import Modality
from dmlm.pipeline.vocabulary import SPECIAL_TOKENS, Vocabulary

vocabularies = st.builds(
    Vocabulary,
    num_text=st.integers(1, 60_000),
    num_speech=st.integers(0, 10_000),
    num_image=st.integers(0, 9_000),
    bos_id=st.just(0),
    eos_id=st.just(0),
)


@settings(max_examples=1_000)
@given(vocabularies)
def test_ranges_follow_each_other_without_gap_or_overlap(vocabulary: Vocabulary) -> None:
    ranges = [vocabulary.text, vocabulary.special, vocabulary.speech, vocabulary.image]
    assert ranges[0].start == 0
    assert all(left.stop == right.start for left, right in pairwise(ranges))
    assert vocabulary.size % 64 == 0
    assert 0 <= vocabulary.size - vocabulary.num_used < 64


@given(vocabularies)
def test_added_tokens_name_every_id_behind_the_text(vocabulary: Vocabulary) -> None:
    names = vocabulary.added_tokens()
    assert len(names) == len(set(names)) == vocabulary.num_used - vocabulary.num_text
    assert names[vocabulary.special_id("<asr>") - vocabulary.num_text] == "<asr>"


@settings(max_examples=1_000)
@given(vocabularies.filter(lambda v: v.num_speech > 0), st.data())
def test_ids_one_outside_the_range_are_refused(vocabulary: Vocabulary, data: st.DataObject) -> None:
    inside = data.draw(st.integers(0, vocabulary.num_speech - 1))
    shifted = vocabulary.to_global(Modality.SPEECH, np.array([inside], np.int32))
    assert shifted[0] in vocabulary.speech
    for outside in (-1, vocabulary.num_speech):
        with pytest.raises(CorruptInputError, match="speech ids"):
            vocabulary.to_global(Modality.SPEECH, np.array([inside, outside], np.int32))


@given(vocabularies)
def test_json_round_trip_keeps_the_fingerprint(vocabulary: Vocabulary) -> None:
    assert Vocabulary.from_json(vocabulary.to_json()).fingerprint == vocabulary.fingerprint


def test_fingerprint_depends_on_every_size() -> None:
    sizes = [(400, 500, 512), (401, 500, 512), (400, 501, 512), (400, 500, 513)]
    fingerprints = {Vocabulary(*size, bos_id=0, eos_id=0).fingerprint for size in sizes}
    assert len(fingerprints) == len(sizes)


@pytest.mark.parametrize(
    "change",
    [
        {"num_speech": -1},
        {"num_text": "400"},
        {"bos_id": None},
        {"special_tokens": list(SPECIAL_TOKENS)[1:]},
        {"special_tokens": [*SPECIAL_TOKENS, "<en>"]},
        {"special_tokens": [*SPECIAL_TOKENS, "en"]},
        {"special_tokens": [*SPECIAL_TOKENS, 7]},
        {"special_tokens": 7},
        {"num_image": True},
        {"num_video": 4},
    ],
)
def test_a_damaged_vocabulary_is_refused(change: dict[str, object]) -> None:
    content = {**Vocabulary(400, 500, 512, 0, 0).to_json(), **change}
    with pytest.raises(CorruptInputError, match="vocabulary"):
        Vocabulary.from_json(content)


@pytest.mark.parametrize("tokens", [SPECIAL_TOKENS[:-1], (*SPECIAL_TOKENS, "<sw>")], ids=["fewer", "more"])
def test_a_vocabulary_of_another_version_keeps_its_own_special_tokens(tokens: tuple[str, ...]) -> None:
    made = Vocabulary(400, 500, 512, 0, 0, special_tokens=tokens)
    read = Vocabulary.from_json(made.to_json())
    assert read == made != Vocabulary(400, 500, 512, 0, 0)
    assert read.special_id(tokens[-1]) == read.speech.start - 1
    assert read.fingerprint == made.fingerprint != Vocabulary(400, 500, 512, 0, 0).fingerprint


def test_a_token_that_a_vocabulary_lacks_is_named() -> None:
    older = Vocabulary(400, 500, 512, 0, 0, special_tokens=SPECIAL_TOKENS[:-1])
    missing, last = SPECIAL_TOKENS[-1], SPECIAL_TOKENS[-2]
    with pytest.raises(ConfigError, match=rf"no token {missing}; its special tokens are <speech> .* {last}"):
        older.special_id(missing)
