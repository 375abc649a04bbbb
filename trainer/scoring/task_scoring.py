"""The scorer of each task: references and what the model made of them, to scores."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from dmlm.pipeline.text_rules import apply_text_rule
from dmlm.trainer.scoring import (
    Scores,
    UtteranceScore,
    score_captions,
    score_translations,
    score_utterance,
    score_utterances,
)
from dmlm.trainer.scoring.evaluation_report import ScoredUtterance
from dmlm.trainer.scoring.references import Reference

HEARD_RULE: Final = "plain"
"""Whisper writes case and punctuation, which nobody said."""

_logger = logging.getLogger(__name__)

Scorer = Callable[[Sequence[Reference], Sequence[str]], Scores]


def check_scorer(score: Scorer, references: Sequence[Reference]) -> None:
    """Scores one reference of each language with itself, before hours of decoding.

    Raises:
        MissingDependencyError: A package that the scores of these languages need is not installed.
    """
    samples = [*{reference.language: reference for reference in references}.values()]
    score(samples, [reference.texts[0] for reference in samples])


def score_words(task: str, reference: Reference, hypothesis: str) -> UtteranceScore | None:
    """Edits of one sample; None where the task is not scored by words."""
    if task not in ("asr", "t2s"):
        return None
    rule = HEARD_RULE if task == "t2s" else reference.text_rule
    return score_utterance(reference.texts[0], hypothesis, rule, reference.language)


def clean_texts(reference: Reference) -> list[str]:
    """The texts after the rule of their source: what is scored, and what is written down."""
    return [apply_text_rule(reference.text_rule, text) for text in reference.texts]


def neighbours(references: Sequence[Reference]) -> dict[int, int]:
    """For each sample the next one of its language that has another text, where there is one.

    Scored with what the model made of the neighbour's source, a reference tells whether the model listens.
    """
    num_samples, found = len(references), {}
    for index, reference in enumerate(references):
        for step in range(1, num_samples):
            other = references[(index + step) % num_samples]
            if other.language == reference.language and not set(other.hashes) & set(reference.hashes):
                found[index] = (index + step) % num_samples
                break
    return found


def score_neighbours(score: Scorer, references: Sequence[Reference], hypotheses: Sequence[str]) -> Scores:
    """Scores of references with their neighbours' hypotheses.

    Nothing is decoded again: a prompt holds source and languages only, so it is the neighbour's own.
    """
    pairs = neighbours(references)
    return score([references[index] for index in pairs], [hypotheses[n] for n in pairs.values()])


def score_subsets(
    score: Scorer, references: Sequence[Reference], utterances: Sequence[ScoredUtterance]
) -> dict[str, Scores]:
    """Without the texts that were trained on, and without words that never were."""
    num_seen = sum(utterance.is_in_training is True for utterance in utterances)
    if num_seen:
        _logger.warning(
            "%d of %d references occur word for word in the training data; the samples file marks them",
            num_seen,
            len(utterances),
        )
    places = {
        "text not in training": [p for p, u in enumerate(utterances) if u.is_in_training is False],
        "all words in training": [p for p, u in enumerate(utterances) if u.has_known_words],
    }
    return {
        name: score([references[p] for p in subset], [utterances[p].hypothesis for p in subset])
        for name, subset in places.items()
        if 0 < len(subset) < len(utterances)
    }


def score_groups(
    score: Scorer, references: Sequence[Reference], hypotheses: Sequence[str]
) -> dict[str, Scores]:
    """Scores by `source/split`, and by `source/split/language` where a split has texts of several."""
    splits: dict[str, list[int]] = {}
    languages: dict[str, list[int]] = {}
    for place, reference in enumerate(references):
        name = f"{reference.sample.source}/{reference.sample.split}"
        splits.setdefault(name, []).append(place)
        languages.setdefault(f"{name}/{reference.language or 'none'}", []).append(place)
    parts = {name: group for name, group in languages.items() if group not in splits.values()}
    return {
        name: score([references[p] for p in group], [hypotheses[p] for p in group])
        for name, group in (splits | parts).items()
    }


def _score_speech_texts(references: Sequence[Reference], hypotheses: Sequence[str]) -> Scores:
    return _score_edits("asr", references, hypotheses)


def _score_heard(references: Sequence[Reference], hypotheses: Sequence[str]) -> Scores:
    return _score_edits("t2s", references, hypotheses)


def _score_edits(task: str, references: Sequence[Reference], hypotheses: Sequence[str]) -> Scores:
    pairs = zip(references, hypotheses, strict=True)
    return score_utterances([score for pair in pairs if (score := score_words(task, *pair))])


def _score_translations(references: Sequence[Reference], hypotheses: Sequence[str]) -> Scores:
    languages = {reference.language for reference in references}
    return score_translations([clean_texts(reference) for reference in references], hypotheses, *languages)


def _score_captions(references: Sequence[Reference], hypotheses: Sequence[str]) -> Scores:
    return score_captions([clean_texts(reference) for reference in references], hypotheses)


SCORERS: Final[Mapping[str, Scorer]] = {
    "asr": _score_speech_texts,
    "s2tt": _score_translations,
    "i2t": _score_captions,
    "t2s": _score_heard,
}
