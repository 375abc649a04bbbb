import random
import sys
from pathlib import Path

import numpy as np
import pytest

from dmlm.pipeline.errors import MissingDependencyError
from dmlm.pipeline.randomness import generator_for
from dmlm.pipeline.samples import Sample
from dmlm.trainer.decoding.generation import Speed
from dmlm.trainer.scoring import score_translations
from dmlm.trainer.scoring.evaluation_report import EvaluationReport
from dmlm.trainer.scoring.references import Reference
from dmlm.trainer.scoring.scores import NUM_RESAMPLES
from dmlm.trainer.scoring.task_scoring import SCORERS, score_groups

WORDS = ("das", "Haus", "ist", "groß", "grün", "und", "alt", "Bäume", "stehen", "東京", "là", ".", ",")


def draw_pairs(num_pairs: int, seed: int = 0) -> tuple[list[list[str]], list[str]]:
    rng = random.Random(seed)

    def sentence() -> str:
        return " ".join(rng.choices(WORDS, k=rng.choice((0, 1, 3, 8, 15))))

    references = [
        [sentence() or "Haus", *([sentence() or "alt"] if i % 4 == 0 else [])] for i in range(num_pairs)
    ]
    hypotheses = [rng.choice((texts[0], sentence(), f"{texts[0]} {sentence()}")) for texts in references]
    return references, hypotheses


def test_scores_are_those_of_sacrebleu_with_its_signatures() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    references, hypotheses = draw_pairs(1000)
    streams = [
        [texts[0] for texts in references],
        [texts[1] if len(texts) > 1 else None for texts in references],
    ]
    scores = score_translations(references, hypotheses, "de")
    assert scores.values["bleu"] == pytest.approx(sacrebleu.corpus_bleu(hypotheses, streams).score, abs=1e-9)
    assert scores.values["chrf"] == pytest.approx(sacrebleu.corpus_chrf(hypotheses, streams).score, abs=1e-9)
    assert "tok:13a" in scores.signatures["bleu"]
    assert f"version:{sacrebleu.__version__}" in scores.signatures["chrf"]
    for name in ("bleu", "chrf"):
        low, high = scores.intervals[name]
        assert low < scores.values[name] < high
        assert high - low < 10


def test_intervals_are_of_corpora_drawn_anew() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    references, hypotheses = draw_pairs(20)
    draws_RN = generator_for(0, "bootstrap").integers(0, 20, (NUM_RESAMPLES, 20))
    resampled_R = [
        sacrebleu.corpus_chrf(
            [hypotheses[n] for n in draws_N],
            [[references[n][0] for n in draws_N], [(*references[n], None)[1] for n in draws_N]],
        ).score
        for draws_N in draws_RN
    ]
    interval = score_translations(references, hypotheses, "de").intervals["chrf"]
    assert interval == pytest.approx(tuple(np.quantile(resampled_R, [0.025, 0.975])), abs=1e-9)


def test_a_resample_without_a_single_hit_scores_nought() -> None:
    # Most resamples of these three have the one hit, some have none.
    scores = score_translations([["a b c d e"]] * 3, ["", "", "a b c d e"], "de")
    for name in ("bleu", "chrf"):
        low, high = scores.intervals[name]
        assert low == 0
        assert 0 < scores.values[name] < high


@pytest.mark.parametrize(
    ("references", "hypotheses", "bleu"),
    [
        ([["a b c d e"]], ["a b c d e"], 100),
        ([["a b c d e"]], [""], 0),
        ([["größer als Äpfel sind"]], ["größer als Äpfel sind"], 100),
        ([["x", "a b c d e"]], ["a b c d e"], 100),
    ],
)
def test_edges(references: list[list[str]], hypotheses: list[str], bleu: float) -> None:
    assert score_translations(references, hypotheses, "de").values["bleu"] == pytest.approx(bleu)


def test_languages_without_spaces_are_cut_into_characters() -> None:
    scores = score_translations([["東京はとても大きい"]], ["東京はとても小さい"], "ja")
    assert "tok:char" in scores.signatures["bleu"]
    assert 0 < scores.values["bleu"] < 100


def draw_references(*texts: tuple[str, str]) -> list[Reference]:
    """One sample of each language and text."""
    return [
        Reference(
            directory=Path("shards"),
            sample=Sample(key=f"u-{number}", source="covost", split="test"),
            texts=(text,),
            hashes=(text,),
            language=language,
            text_rule="verbatim",
        )
        for number, (language, text) in enumerate(texts)
    ]


CHINESE = ("zh", "我们今天去学校"), ("zh", "他喜欢吃苹果和香蕉")
ENGLISH = ("en", "we go to school today"), ("en", "he likes to eat apples and pears")
HYPOTHESES = {
    **{CHINESE[0][1]: "我们今天去了学校", CHINESE[1][1]: "他喜欢吃苹果和梨"},
    **{text: text for _, text in ENGLISH},
}


@pytest.mark.parametrize("texts", [(*CHINESE, *ENGLISH), (*ENGLISH, *CHINESE)], ids=["zh-en", "en-zh"])
def test_languages_that_are_cut_in_other_ways_have_no_bleu_together_but_each_its_own(
    texts: tuple[tuple[str, str], ...],
) -> None:
    pytest.importorskip("sacrebleu")
    score = SCORERS["s2tt"]
    references = draw_references(*texts)
    hypotheses = [HYPOTHESES[text] for _, text in texts]
    together = score(references, hypotheses)
    assert together.values["bleu"] is None
    assert together.values["chrf"] > 0
    assert {*together.signatures} == {*together.intervals} == {"chrf"}
    groups = score_groups(score, references, hypotheses)
    assert {*groups} == {"covost/test", "covost/test/zh", "covost/test/en"}
    assert groups["covost/test"] == together
    for language, own in {"zh": CHINESE, "en": ENGLISH}.items():
        made = [HYPOTHESES[text] for _, text in own]
        assert groups[f"covost/test/{language}"] == score(draw_references(*own), made)
    assert groups["covost/test/en"].values["bleu"] == pytest.approx(100)
    assert "tok:zh" in groups["covost/test/zh"].signatures["bleu"]


def test_table_tells_how_the_languages_were_scored_where_all_together_are_not() -> None:
    pytest.importorskip("sacrebleu")
    references = draw_references(*CHINESE, *ENGLISH)
    hypotheses = [HYPOTHESES[text] for _, text in (*CHINESE, *ENGLISH)]
    score = SCORERS["s2tt"]
    report = EvaluationReport(
        task="s2tt",
        metrics=score(references, hypotheses),
        neighbour=score(references, hypotheses),
        subsets={},
        groups=score_groups(score, references, hypotheses),
        speed=Speed.of([], 1.0, 1.0),
        utterances=(),
        seconds=1.0,
    )
    *_, first, second, third = report.table().splitlines()
    assert first.startswith("chrF: ")
    assert second.startswith("BLEU: ")
    assert "tok:zh" in second
    assert third.startswith("BLEU: ")
    assert "tok:13a" in third


def test_languages_that_are_cut_in_the_same_way_have_a_bleu_together() -> None:
    pytest.importorskip("sacrebleu")
    references = draw_references(("de", "ein Haus am See"), ("en", "a house by the lake"))
    assert SCORERS["s2tt"](references, [r.texts[0] for r in references]).values["bleu"] == pytest.approx(100)


def test_a_split_of_one_language_is_one_group() -> None:
    pytest.importorskip("sacrebleu")
    references = draw_references(*CHINESE)
    hypotheses = [HYPOTHESES[text] for _, text in CHINESE]
    assert list(score_groups(SCORERS["s2tt"], references, hypotheses)) == ["covost/test"]


def test_nothing_to_score_has_no_score() -> None:
    assert score_translations([], [], "de").values == {"bleu": None, "chrf": None}


def test_one_sided_corpora_are_refused() -> None:
    with pytest.raises(ValueError, match="2 references, 1 hypotheses"):
        score_translations([["a"], ["b"]], ["a"], "de")


def test_missing_sacrebleu_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(MissingDependencyError, match=r"dmlm\[eval\]"):
        score_translations([["a"]], ["a"], "de")
