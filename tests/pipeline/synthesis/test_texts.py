from collections import Counter
from dataclasses import replace

import pytest

from dmlm.pipeline.synthesis.texts import Reading, SampleTexts, SplitTexts, draw_texts, normalise
from dmlm.pipeline.synthesis.words import DIGITS, NAMES

SEEDS = (0, 1, 2**31)


@pytest.fixture(scope="module", params=SEEDS)
def texts(request: pytest.FixtureRequest) -> SampleTexts:
    return draw_texts(request.param)


def all_texts(split: SplitTexts) -> list[str]:
    """Every English text of the split."""
    return [
        *(reading.text for reading in split.readings),
        *split.meeting_sentences,
        *(translation.english for translation in split.translations),
        *(caption for scene in split.scenes for caption in scene.captions),
    ]


def held_out(texts: SampleTexts) -> list[str]:
    return all_texts(texts.dev) + all_texts(texts.test)


def words_of(texts: list[str]) -> set[str]:
    return {word for text in texts for word in normalise(text).split()}


def test_held_out_texts_never_occur_in_training(texts: SampleTexts) -> None:
    train = {normalise(text) for text in all_texts(texts.train)}
    assert train.isdisjoint(normalise(text) for text in held_out(texts))


def test_every_text_occurs_once_apart_from_short_strings_and_captions_in_training(texts: SampleTexts) -> None:
    train = replace(texts.train, scenes=())
    everything = [normalise(text) for text in all_texts(train) + held_out(texts)]
    counts = Counter(text for text in everything if len(text.split()) > 3)
    assert set(counts.values()) == {1}


def test_every_held_out_word_occurs_in_training(texts: SampleTexts) -> None:
    assert words_of(held_out(texts)) <= words_of(all_texts(texts.train))


def test_every_held_out_word_of_the_readings_is_heard_in_training(texts: SampleTexts) -> None:
    held_out_words = words_of([reading.text for reading in texts.dev.readings + texts.test.readings])
    assert held_out_words <= words_of([reading.text for reading in texts.train.readings])


def test_held_out_italian_is_new_but_made_of_known_words(texts: SampleTexts) -> None:
    train = [translation.italian for translation in texts.train.translations]
    test = [item.italian for item in texts.dev.translations + texts.test.translations]
    assert set(train).isdisjoint(test)
    assert words_of(test) <= words_of(train)


def test_one_italian_sentence_has_one_translation(texts: SampleTexts) -> None:
    pairs = texts.train.translations + texts.dev.translations + texts.test.translations
    assert len({pair.italian for pair in pairs}) == len({pair.english for pair in pairs}) == len(pairs)


def test_held_out_scenes_are_not_drawn_for_training(texts: SampleTexts) -> None:
    train = {scene.combination for scene in texts.train.scenes}
    assert train.isdisjoint(scene.combination for scene in texts.test.scenes)


def test_half_of_the_held_out_readings_are_word_strings(texts: SampleTexts) -> None:
    kinds = [reading.is_word_string for reading in texts.test.readings]
    assert len(kinds) == 100
    assert sum(kinds) == 50


def test_word_strings_of_held_out_length_hold_digits_and_names_in_every_split(texts: SampleTexts) -> None:
    known = {*DIGITS, *NAMES}
    for split, count in ((texts.train, 500), (texts.dev, 50), (texts.test, 50)):
        strings = [r.text.split() for r in split.readings if r.is_word_string and len(r.text.split()) > 3]
        assert len(strings) == count
        assert {word for string in strings for word in string} == known


def test_word_strings_use_all_words_about_equally_often(texts: SampleTexts) -> None:
    strings = [reading.text for reading in texts.train.readings if reading.is_word_string]
    counts = [sum(word in text.split() for text in strings) for word in ("farmer", "famous", "july", "opens")]
    assert max(counts) <= 2 * min(counts)


def test_limited_texts_are_the_first_of_the_full_ones(texts: SampleTexts) -> None:
    few = texts.limited(4)
    assert few.train.readings == texts.train.readings[:4]
    assert sorted(reading.is_word_string for reading in few.test.readings) == [False, False, True, True]


def test_texts_depend_on_the_seed_alone() -> None:
    assert draw_texts(5) == draw_texts(5)
    assert draw_texts(5) != draw_texts(6)


@pytest.mark.parametrize(
    ("text", "same"),
    [("The farmer's dog, again!", "the farmer's dog again"), ("  Perché   no? ", "perché no")],
)
def test_normalised_text_has_neither_case_nor_punctuation(text: str, same: str) -> None:
    assert normalise(text) == same


def test_word_strings_are_read_as_lists() -> None:
    assert Reading("nine zero", is_word_string=True).spoken == "nine, zero"
    assert Reading("maria sleeps", is_word_string=False).spoken == "maria sleeps"
