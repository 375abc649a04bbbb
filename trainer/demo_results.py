"""What the demo found: for people, and for results.json."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dmlm.pipeline.synthesis.readings import is_word_string
from dmlm.pipeline.tokenization.report import TokenizeReport
from dmlm.trainer.loop import TrainReport
from dmlm.trainer.scoring import Scores, score_utterances
from dmlm.trainer.scoring.evaluation_report import EvaluationReport, ScoredUtterance, describe_score


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResults:
    """All stages of a demo."""

    seconds: Mapping[str, float]
    """By stage."""
    tokenized: Mapping[str, TokenizeReport]
    """By corpus."""
    trained: TrainReport
    reports: Mapping[str, EvaluationReport]
    """By task."""

    def to_json(self) -> dict[str, Any]:
        """Content of results.json."""
        scores = {task: report.to_json() for task, report in self.reports.items()}
        halves = {name: scores.to_json() for name, scores in self._halves.items()}
        total = self.trained.total
        return {
            **{
                task: report["metrics"] | ({"controls": report["controls"]} if report["controls"] else {})
                for task, report in scores.items()
            },
            "asr_halves": halves,
            "seconds": dict(self.seconds),
            "tokenize": {source: asdict(report) for source, report in self.tokenized.items()},
            "train": None if total is None else asdict(total),
        }

    def table(self) -> str:
        """Lines of a name and a value, for people."""
        rows = [*self._data_rows(), *self._score_rows(), *self._time_rows()]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:{width}}  {value}" for name, value in rows)

    @property
    def _halves(self) -> dict[str, Scores]:
        return score_halves(self.reports["asr"].utterances)

    def _data_rows(self) -> list[tuple[str, str]]:
        rows = [
            (
                f"{source}: samples",
                f"{r.num_out} (+ {r.num_skipped} skipped, {r.num_quarantined} quarantined)",
            )
            for source, r in self.tokenized.items()
        ]
        if self.trained.total is not None:
            shares = self.trained.total.share_by_task.items()
            rows.append(("training tokens by task", ", ".join(f"{t} {share:.0%}" for t, share in shares)))
        return rows

    def _score_rows(self) -> list[tuple[str, str]]:
        asr, translation, caption, speech = (self.reports[task] for task in ("asr", "s2tt", "i2t", "t2s"))
        halves = ", ".join(
            f"{name} {100 * scores.wer_raw:.1f} %"
            for name, scores in self._halves.items()
            if scores.wer_raw is not None
        )
        return [
            _row("ASR: WER", asr, "wer"),
            ("  raw", f"{describe_score(asr.metrics, 'wer_raw')}; {halves}"),
            ("  CER", describe_score(asr.metrics, "cer")),
            _row("S2TT: BLEU", translation, "bleu"),
            _row("I2T: CIDEr", caption, "cider"),
            _row("T2S: WER of what Whisper hears", speech, "wer"),
            *(
                (f"  of the {name}", describe_score(scores, "wer"))
                for name, scores in speech.controls.items()
            ),
        ]

    def _time_rows(self) -> list[tuple[str, str]]:
        return [
            ("seconds", ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in self.seconds.items())),
            ("seconds in all", f"{sum(self.seconds.values()):.0f}"),
        ]


def score_halves(utterances: Sequence[ScoredUtterance]) -> dict[str, Scores]:
    """Scores of sentences and of random word strings, which no grammar can guess."""
    halves: dict[str, list[ScoredUtterance]] = {"sentences": [], "word strings": []}
    for utterance in utterances:
        halves["word strings" if is_word_string(utterance.key) else "sentences"].append(utterance)
    return {name: score_utterances([u.score for u in half if u.score]) for name, half in halves.items()}


def _row(title: str, report: EvaluationReport, name: str) -> tuple[str, str]:
    score, neighbour = describe_score(report.metrics, name), describe_score(report.neighbour, name)
    return (
        title,
        f"{score} of {report.metrics.num_samples}; with a neighbour's source {neighbour.split(' [')[0]}",
    )
