import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmlm.pipeline.errors import MissingDependencyError
from dmlm.trainer.scoring import (
    EditCounts,
    Scores,
    score_utterance,
    score_utterances,
)
from dmlm.trainer.scoring.evaluation_report import score_table
from dmlm.trainer.scoring.scores import bootstrap_mean, bootstrap_ratio


def score_asr(
    references: Sequence[str], hypotheses: Sequence[str], text_rule: str, language: str | None
) -> Scores:
    pairs = zip(references, hypotheses, strict=True)
    return score_utterances([score_utterance(*pair, text_rule, language) for pair in pairs])


def edit_distance(reference: list[str], hypothesis: list[str]) -> int:
    """Textbook Levenshtein distance by its recurrence."""
    row = list(range(len(hypothesis) + 1))
    for deleted, left in enumerate(reference, start=1):
        diagonal, row[0] = row[0], deleted
        for inserted, right in enumerate(hypothesis, start=1):
            best = min(row[inserted] + 1, row[inserted - 1] + 1, diagonal + (left != right))
            diagonal, row[inserted] = row[inserted], best
    return row[-1]


def test_hand_counted_corpus() -> None:
    metrics = score_asr(
        ["the cat sat on the mat", "hello world"], ["the cat sat on mat", "hallo big world"], "lower", "en"
    )
    assert metrics.counts == {
        "num_utterances": 2,
        "num_words": 8,
        "num_substitutions": 1,
        "num_deletions": 1,
        "num_insertions": 1,
    }
    assert metrics.wer_raw == metrics.wer == 3 / 8
    assert metrics.cer == (4 + 5) / (22 + 11)


def test_corpus_rate_divides_summed_edits_not_averages_rates() -> None:
    metrics = score_asr(["a b c d e f g h i", "j"], ["a b c d e f g h i", "k"], "lower", "en")
    assert metrics.wer_raw == 1 / 10


def test_source_rule_applies_to_both_sides() -> None:
    reference, hypothesis = "HELLO THERE", "hello there"
    assert score_asr([reference], [hypothesis], "lower", "en").wer_raw == 0
    assert score_asr([reference], [hypothesis], "verbatim", "en").wer_raw == 1


def test_normaliser_forgives_spelling_numbers_contractions_and_fillers() -> None:
    reference, hypothesis = "uh it's twenty one colours", "it is 21 colors"
    metrics = score_asr([reference], [hypothesis], "plain", "en")
    assert metrics.wer == 0
    assert metrics.wer_raw == 5 / 5


def test_normalised_rate_is_for_english_only() -> None:
    english = score_utterance("hello", "hello", "lower", "en")
    italian = score_utterance("ciao", "ciao", "verbatim", "it")
    unknown = score_utterance("ciao", "ciao", "verbatim", None)
    assert english.words == EditCounts(num_reference=1)
    assert italian.words is None
    assert unknown.words is None
    assert score_utterances([english, italian]).wer is None
    assert score_utterances([english, italian]).wer_raw == 0


@pytest.mark.parametrize(
    ("references", "hypotheses", "wer", "wer_raw"),
    [
        ([], [], None, None),
        ([""], [""], None, None),
        ([""], ["two words"], None, None),
        (["two words"], [""], 1, 1),
        (["uh", "two words"], ["um", "two words"], 0, 1 / 3),
        (["uh"], ["word"], None, 1),
        (["", "two words"], ["word", "two words"], 1 / 2, 1 / 2),
    ],
)
def test_empty_sides(
    references: list[str], hypotheses: list[str], wer: float | None, wer_raw: float | None
) -> None:
    metrics = score_asr(references, hypotheses, "lower", "en")
    assert (metrics.wer, metrics.wer_raw) == (wer, wer_raw)


sentences = st.lists(st.sampled_from(["a", "b", "ab", "ba", "è"]), max_size=8).map(" ".join)


@given(pairs=st.lists(st.tuples(sentences, sentences), max_size=6))
def test_rates_equal_those_of_a_textbook_edit_distance(pairs: list[tuple[str, str]]) -> None:
    metrics = score_asr([left for left, _ in pairs], [right for _, right in pairs], "verbatim", "it")
    num_words = sum(len(left.split()) for left, _ in pairs)
    num_characters = sum(len(left) for left, _ in pairs)
    word_errors = sum(edit_distance(left.split(), right.split()) for left, right in pairs)
    character_errors = sum(edit_distance(list(left), list(right)) for left, right in pairs)
    assert metrics.counts["num_words"] == num_words
    assert sum(metrics.counts[f"num_{kind}s"] for kind in ("substitution", "deletion", "insertion")) == (
        word_errors
    )
    assert metrics.wer_raw == (word_errors / num_words if num_words else None)
    assert metrics.cer == (character_errors / num_characters if num_characters else None)


def test_a_thousand_random_pairs_score_as_jiwer_scores_them() -> None:
    jiwer = pytest.importorskip("jiwer")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["ja", "nein", "è", "ab", "b"], rng.integers(0, 9))) for _ in range(2000)]
    references, hypotheses = texts[:1000], texts[1000:]
    assert "" in references
    metrics = score_asr(references, hypotheses, "verbatim", "it")
    assert metrics.num_samples == 1000
    assert metrics.wer_raw == pytest.approx(jiwer.wer(references, hypotheses))
    assert metrics.cer == pytest.approx(jiwer.cer(references, hypotheses))


def test_scores_of_utterances_are_those_of_the_corpus_with_intervals() -> None:
    pairs = [("a b c d", "a b c d"), ("e f", "e g"), ("h", "h")] * 20
    utterances = [score_utterance(*pair, "lower", "en") for pair in pairs]
    scores = score_utterances(utterances)
    assert scores.wer == scores.wer_raw == 1 / 7
    low, high = scores.intervals["wer"]
    assert 0.05 < low < 1 / 7 < high < 0.3
    assert scores.counts["num_words"] == 140
    assert scores.to_json()["wer_interval"] == [low, high]
    assert score_utterances(utterances).intervals == scores.intervals


def test_signatures_name_rules_normaliser_and_versions() -> None:
    english = [score_utterance("a b", "a c", "lower", "en"), score_utterance("a b", "a c", "ami", "en")]
    scores = score_utterances([*english, english[0]])
    versions = {name: version(name) for name in ("jiwer", "openai-whisper")}
    assert scores.signatures == {
        "wer": "rule:ami,lower|tok:spaces|norm:whisper-english"
        f"|openai-whisper:{versions['openai-whisper']}|jiwer:{versions['jiwer']}",
        "wer_raw": f"rule:ami,lower|tok:spaces|jiwer:{versions['jiwer']}",
        "cer": f"rule:ami,lower|tok:char|jiwer:{versions['jiwer']}",
    }
    italian = score_utterances([*english, score_utterance("ciao", "ciao", "verbatim", "it")])
    assert italian.signatures.keys() == {"wer_raw", "cer"}
    assert not score_utterances([]).signatures


def test_intervals_hold_the_true_rate_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    num_held = 0
    for _ in range(60):
        low, high = bootstrap_mean(rng.random(80) < 0.3)
        num_held += low <= 0.3 <= high
    assert num_held >= 51
    assert bootstrap_ratio([1.0], [0.0]) is None
    assert bootstrap_mean([]) is None


def test_missing_jiwer_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jiwer", None)
    with pytest.raises(MissingDependencyError, match=r"dmlm\[eval\]"):
        score_asr(["a"], ["a"], "lower", None)


def test_import_needs_no_optional_package() -> None:
    blocked = "import sys; sys.modules.update(jiwer=None, whisper=None); import dmlm.trainer.scoring"
    subprocess.run([sys.executable, "-c", blocked], check=True)


def test_columns_of_scores_never_touch() -> None:
    hypotheses = {num_words: ["b " * (num_words + n) for n in range(9)] for num_words in (1, 999)}
    rows = {str(n): score_asr(["a"] * 9, texts, "plain", "en") for n, texts in hypotheses.items()}
    for line in score_table(rows).splitlines()[1:]:
        assert len(re.findall(r"  \d+\.\d % \[\d+\.\d, \d+\.\d\]", line)) == line.count("%") > 1
