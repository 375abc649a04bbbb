"""What the demo says of what it found."""

from pathlib import Path

from dmlm.pipeline.synthesis.readings import SENTENCE_CHAPTERS, TEST_SPLIT, WORD_STRING_CHAPTERS
from dmlm.trainer.decoding.generation import Speed
from dmlm.trainer.demo_results import DemoResults
from dmlm.trainer.loop import TrainReport
from dmlm.trainer.scoring import score_utterance, score_utterances
from dmlm.trainer.scoring.evaluation_report import EvaluationReport, ScoredUtterance

SPEED = Speed(
    decode_seconds=1.0,
    num_tokens=4,
    tokens_per_second=4.0,
    first_token_seconds=None,
    real_time_factor=None,
    num_unfinished=0,
)


def utterance(chapter: str, reference: str, hypothesis: str) -> ScoredUtterance:
    return ScoredUtterance(
        key=f"9001-{chapter}-0000",
        source="librispeech",
        split=TEST_SPLIT,
        references=(reference,),
        hypothesis=hypothesis,
        is_in_training=False,
        has_known_words=False,
        score=score_utterance(reference, hypothesis, "lower", "en"),
    )


def report(task: str, *utterances: ScoredUtterance) -> EvaluationReport:
    scores = score_utterances([u.score for u in utterances if u.score])
    return EvaluationReport(
        task=task,
        metrics=scores,
        neighbour=scores,
        subsets={},
        groups={},
        speed=SPEED,
        utterances=utterances,
        seconds=1.0,
    )


def test_the_table_has_both_halves_of_the_transcripts_also_where_one_has_no_error() -> None:
    right = utterance(SENTENCE_CHAPTERS[TEST_SPLIT], "old ships sail", "old ships sail")
    wrong = utterance(WORD_STRING_CHAPTERS[TEST_SPLIT], "red two", "red too")
    results = DemoResults(
        seconds={"train": 1.0},
        tokenized={},
        trained=TrainReport(checkpoint=Path("checkpoint-000001"), num_steps=1, last=None, total=None),
        reports={task: report(task, right, wrong) for task in ("asr", "s2tt", "i2t", "t2s")},
    )
    assert "; sentences 0.0 %, word strings 50.0 %" in results.table()
