import random
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from dmlm.pipeline.randomness import generator_for
from dmlm.trainer.scoring import score_captions, warn_of_few_images
from dmlm.trainer.scoring.captions import bleu, bleu_statistics, cider, rouge_l, tokenize_caption
from dmlm.trainer.scoring.meteor import _start, meteor
from dmlm.trainer.scoring.scores import NUM_RESAMPLES

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="METEOR is a Java program")

WORDS = ("a", "the", "red", "blue", "cat", "dog", "sits", "runs", "über", "on", "grass", "猫")

Pairs = tuple[list[list[list[str]]], list[list[str]]]


def draw_pairs(num_images: int, seed: int = 0) -> Pairs:
    """Images with one to five references; some hypotheses are empty, some are a reference."""
    rng = random.Random(seed)

    def caption() -> list[str]:
        return rng.choices(WORDS, k=rng.choice((1, 2, 4, 7, 11)))

    references = [[caption() for _ in range(rng.randint(1, 5))] for _ in range(num_images)]
    hypotheses = [rng.choice((caption(), texts[0], [], texts[-1][:3])) for texts in references]
    return references, hypotheses


def as_coco(pairs: Pairs) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    references, hypotheses = pairs
    return (
        {index: [" ".join(text) for text in texts] for index, texts in enumerate(references)},
        {index: [" ".join(words)] for index, words in enumerate(hypotheses)},
    )


def test_cider_of_every_image_is_that_of_pycocoevalcap() -> None:
    module = pytest.importorskip("pycocoevalcap.cider.cider")
    pairs = draw_pairs(1000)
    _, theirs = module.Cider().compute_score(*as_coco(pairs))
    assert cider(*pairs) == pytest.approx(theirs.tolist(), abs=1e-9)


def test_rouge_l_of_every_image_is_that_of_pycocoevalcap() -> None:
    module = pytest.importorskip("pycocoevalcap.rouge.rouge")
    pairs = draw_pairs(1000, seed=1)
    _, theirs = module.Rouge().compute_score(*as_coco(pairs))
    assert rouge_l(*pairs) == pytest.approx(theirs.tolist(), abs=1e-9)


def test_interval_of_bleu_is_that_of_corpora_drawn_anew() -> None:
    references, hypotheses = draw_pairs(40, seed=3)
    draws_RN = generator_for(0, "bootstrap").integers(0, 40, (NUM_RESAMPLES, 40))
    statistics = [bleu_statistics([references[i] for i in d], [hypotheses[i] for i in d]) for d in draws_RN]
    drawn_anew = [bleu(statistics_NS.sum(axis=0)) for statistics_NS in statistics]
    scores = score_captions(
        [[" ".join(text) for text in texts] for texts in references],
        [" ".join(words) for words in hypotheses],
    )
    interval = scores.intervals["bleu4"]
    assert interval == pytest.approx(100 * np.quantile(drawn_anew, [0.025, 0.975]))
    assert interval.low < scores.values["bleu4"] < interval.high


@needs_java
def test_meteor_of_the_corpus_is_that_of_pycocoevalcap(monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip("pycocoevalcap.meteor.meteor")
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Dfile.encoding=UTF-8")  # of theirs; ours sets it
    pairs = draw_pairs(1000, seed=4)
    theirs, _ = module.Meteor().compute_score(*as_coco(pairs))
    assert meteor(*pairs) == pytest.approx(theirs, rel=1e-12)


@needs_java
def test_separators_and_lines_in_captions_part_nothing_in_meteor() -> None:
    pytest.importorskip("pycocoevalcap")
    texts = ["a cat ||| sits\non\u2028 a mat", "SCORE ||| EVAL\r\n", "two dogs \ud800"]
    references = [[text, "a red house"] for text in texts]
    scores = score_captions(references, texts, with_meteor=True)
    assert scores.values["meteor"] == pytest.approx(100)
    assert scores.signatures["meteor"].startswith("meteor:1.5|")


@pytest.mark.parametrize("has_java", [False, True])
def test_meteor_is_left_out_without_java_or_where_it_fails(
    has_java: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("pycocoevalcap")
    if has_java:
        (tmp_path / "java").symlink_to(shutil.which("false"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("dmlm.trainer.scoring.meteor._start", cache(_start.__wrapped__))
    for _ in range(2):
        scores = score_captions([["a red cat"]], ["a red cat"], with_meteor=True)
        assert scores.values.keys() == {"cider", "rouge_l", "bleu4"}
        assert scores.signatures.keys() == {"cider"}
    assert ("METEOR is left out, Java failed" in caplog.text) == has_java


@pytest.mark.parametrize("num_images", [1, 3, 1000])
def test_bleu_of_the_corpus_is_that_of_pycocoevalcap(num_images: int) -> None:
    module = pytest.importorskip("pycocoevalcap.bleu.bleu")
    pairs = draw_pairs(num_images, seed=2)
    theirs, _ = module.Bleu(4).compute_score(*as_coco(pairs), verbose=0)
    assert bleu(bleu_statistics(*pairs).sum(axis=0)) == pytest.approx(theirs[3], rel=1e-9, abs=1e-12)


def test_of_two_references_equally_near_in_length_bleu_takes_the_shorter() -> None:
    (statistics,) = bleu_statistics([[["a"] * 5, ["a"] * 3]], [["a"] * 4])
    assert statistics[-1] == 3


def test_right_captions_of_images_unlike_each_other_have_full_scores() -> None:
    references = [["A red cat sits."], ["Two dogs run fast!"], ["Blue doors are shut."]]
    scores = score_captions(references, [texts[0] for texts in references])
    assert scores.values["cider"] == pytest.approx(1000)
    assert scores.values["bleu4"] == pytest.approx(100, abs=1e-3)
    assert scores.values["rouge_l"] == pytest.approx(100)
    assert scores.intervals["cider"] == pytest.approx((1000, 1000))
    assert scores.counts == {"num_references": 3}
    assert "tok:dmlm-ptb-2" in scores.signatures["cider"]


def test_empty_captions_score_zero() -> None:
    scores = score_captions([["a red cat"], ["two dogs"]], ["", ""])
    assert scores.values["cider"] == scores.values["rouge_l"] == 0
    assert scores.values["bleu4"] == pytest.approx(0, abs=1e-9)


def test_image_without_reference_is_refused() -> None:
    with pytest.raises(ValueError, match="references"):
        score_captions([["a"], []], ["a", "b"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A man's dog isn't here.", ["a", "man", "'s", "dog", "is", "n't", "here"]),
        (
            "Two cats, one dog -- and (maybe) 3.5 birds?",
            ["two", "cats", "one", "dog", "and", "maybe", "3.5", "birds"],
        ),
        ("A black-and-white photo; U.S. flag", ["a", "black-and-white", "photo", "u.s.", "flag"]),
        ("Öl über Äpfel…", ["öl", "über", "äpfel"]),
        ("Cafe\u0301", ["cafe\u0301"]),
        ("लाल बिल्ली सोती है।", ["लाल", "बिल्ली", "सोती", "है", "।"]),
        ("நான் ஒரு பூனை.", ["நான்", "ஒரு", "பூனை"]),
        ("\u0645\u06cc\u200c\u0631\u0648\u062f.", ["\u0645\u06cc\u200c\u0631\u0648\u062f"]),
        ("\u0936\u094d\u200d\u0930 it", ["\u0936\u094d\u200d\u0930", "it"]),
        ("", []),
    ],
)
def test_tokens_are_lower_case_words_without_punctuation(text: str, words: list[str]) -> None:
    assert tokenize_caption(text) == words


def test_few_images_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_few_images(500)
    assert not caplog.text
    warn_of_few_images(499)
    assert "CIDEr over 499 images" in caplog.text
