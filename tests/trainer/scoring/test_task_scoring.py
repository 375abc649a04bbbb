"""Neighbours, whose texts must be others, and subsets by what is known of the training."""

from collections.abc import Sequence
from pathlib import Path

from dmlm.pipeline.samples import Sample
from dmlm.trainer.scoring import Scores
from dmlm.trainer.scoring.evaluation_report import ScoredUtterance
from dmlm.trainer.scoring.references import Reference
from dmlm.trainer.scoring.task_scoring import neighbours, score_subsets


def reference(key: str, *texts: str) -> Reference:
    return Reference(
        directory=Path(),
        sample=Sample(key=key, source="s", split="test"),
        texts=texts,
        hashes=texts,
        language="en",
        text_rule="plain",
    )


def utterance(key: str, is_known: bool | None) -> ScoredUtterance:
    return ScoredUtterance(
        key=key,
        source="s",
        split="test",
        references=(key,),
        hypothesis=key,
        is_in_training=is_known,
        has_known_words=is_known,
    )


def count_samples(references: Sequence[Reference], hypotheses: Sequence[str]) -> Scores:
    assert [r.texts[0] for r in references] == list(hypotheses)
    return Scores(num_samples=len(references), values={})


def test_a_neighbour_has_no_caption_in_common() -> None:
    references = [reference("0", "a", "b"), reference("1", "b", "c"), reference("2", "d")]
    assert neighbours(references) == {0: 2, 1: 2, 2: 0}


def test_what_was_not_searched_counts_neither_as_new_nor_as_known() -> None:
    references = [reference(key, key) for key in "abc"]
    utterances = [utterance("a", False), utterance("b", None), utterance("c", True)]
    subsets = score_subsets(count_samples, references, utterances)
    assert {name: scores.num_samples for name, scores in subsets.items()} == {
        "text not in training": 1,
        "all words in training": 1,
    }
