"""Scorers: word errors for speech, BLEU and chrF for translations, CIDEr and its kin for captions.

Each takes references and hypotheses as plain text and gives `Scores`. jiwer and sacrebleu do the counting;
the scorers of captions, which no well-kept library has, are tested to equal pycocoevalcap.
"""

from dmlm.trainer.scoring.captions import score_captions, warn_of_few_images
from dmlm.trainer.scoring.scores import Interval, Scores
from dmlm.trainer.scoring.translations import score_translations
from dmlm.trainer.scoring.wer import (
    EditCounts,
    UtteranceScore,
    count_edits,
    normalise_english,
    score_utterance,
    score_utterances,
)

__all__ = [
    "EditCounts",
    "Interval",
    "Scores",
    "UtteranceScore",
    "count_edits",
    "normalise_english",
    "score_captions",
    "score_translations",
    "score_utterance",
    "score_utterances",
    "warn_of_few_images",
]
