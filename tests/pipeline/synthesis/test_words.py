"""The vocabulary against the phonemes of the voice that speaks it."""

from collections import defaultdict
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

from dmlm.pipeline.synthesis.sentences import GRAMMAR, WordStrings, make_sentence
from dmlm.pipeline.synthesis.words import CONTENT_WORDS, PLURALS

STRESS = str.maketrans("", "", "ˈˌ")


@cache
def phonemizer() -> Any:
    from hibari.g2p import G2P

    return G2P()


def sounds_of(text: str) -> list[tuple[str, str]]:
    g2p = phonemizer()
    tokens = g2p.phonemize_tokens(g2p.tokenize(text))
    return [(token.text, token.phonemes.translate(STRESS)) for token in tokens]


def spellings_by_sound(texts: list[str]) -> dict[str, set[str]]:
    spellings = defaultdict(set)
    for text in texts:
        for word, sound in sounds_of(text):
            spellings[sound].add(word)
    return spellings


def test_no_two_words_sound_alike_alone() -> None:
    spellings = spellings_by_sound([*CONTENT_WORDS, *PLURALS])
    assert [words for words in spellings.values() if len(words) > 1] == []


def test_no_two_words_sound_alike_in_context() -> None:
    rng = np.random.default_rng(0)
    strings = WordStrings(rng)
    texts = [make_sentence(rng) for _ in range(1000)] + [strings.draw() for _ in range(500)]
    assert [words for words in spellings_by_sound(texts).values() if len(words) > 1] == []


def test_every_word_is_in_the_lexicon_of_the_voice() -> None:
    g2p = phonemizer()
    tokens = [token for word in CONTENT_WORDS for token in g2p.phonemize_tokens(g2p.tokenize(word))]
    guessed_by_network = [token.text for token in tokens if token.rating is None or token.rating < 3]
    assert guessed_by_network == []


def test_vocabulary_is_of_the_planned_size() -> None:
    rng = np.random.default_rng(1)
    seen = {word for _ in range(3000) for word in make_sentence(rng).split()} | set(CONTENT_WORDS)
    assert 150 <= len(seen) <= 250
    assert len(set(CONTENT_WORDS)) == len(CONTENT_WORDS)


def test_every_symbol_of_the_grammar_can_be_reached() -> None:
    rules = " ".join(choice for choices in GRAMMAR.values() for choice in choices)
    assert all(f"{{{symbol}}}" in rules for symbol in GRAMMAR if symbol != "sentence")


def test_sentences_are_plain_lower_case_words() -> None:
    rng = np.random.default_rng(2)
    for _ in range(300):
        sentence = make_sentence(rng)
        assert all(word.isalpha() and word.islower() for word in sentence.split(" ")), sentence
        assert 5 <= len(sentence.split()) <= 16


def test_article_before_a_vowel_is_an() -> None:
    rng = np.random.default_rng(3)
    text = " ".join(make_sentence(rng) + " ." for _ in range(2000)).split()
    followers = {(word, after[0] in "aeiou") for word, after in pairwise(text)}
    assert ("a", True) not in followers
    assert ("an", False) not in followers
    assert ("an", True) in followers
