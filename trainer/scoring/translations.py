"""BLEU and chrF by sacrebleu (Post 2018), with the signatures that make them comparable.

Suffixes: N sample, R resample, S statistic.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from dmlm.pipeline.errors import MissingDependencyError
from dmlm.trainer.scoring.scores import Interval, Scores, interval_of, resample_sums

_TOKENIZERS: Final = {"zh": "zh", "ja": "char", "ko": "char"}
"""Where spaces part no words and, as no tokenizer of its morphemes is at hand, Korean; `13a`, sacrebleu's own
choice, for all other languages."""


def score_translations(
    references: Sequence[Sequence[str]], hypotheses: Sequence[str], *languages: str | None
) -> Scores:
    """Case-sensitive BLEU and chrF, up to 100, of detokenised text.

    Args:
        references: One or more of each sample.
        hypotheses: One of each sample.
        languages: Of the translations. They name the tokenizer of BLEU, which is None where they name
            several: words and characters do not add up.

    Raises:
        ValueError: Numbers of references and hypotheses differ.
        MissingDependencyError: sacrebleu is not installed.
    """
    try:
        from sacrebleu.metrics import BLEU, CHRF
    except ImportError as error:
        raise MissingDependencyError('BLEU and chrF need sacrebleu: pip install "dmlm[eval]"') from error
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references, {len(hypotheses)} hypotheses")
    values: dict[str, float | None] = {"bleu": None, "chrf": None}
    if not hypotheses:
        return Scores(num_samples=0, values=values)
    streams = _streams(references)
    scorers: dict[str, Any] = {"chrf": CHRF()}
    tokenizers = {_TOKENIZERS.get(language or "", "13a") for language in languages}
    if len(tokenizers) == 1:
        scorers = {"bleu": BLEU(tokenize=tokenizers.pop()), **scorers}
    intervals, signatures = {}, {}
    for name, scorer in scorers.items():
        values[name] = float(scorer.corpus_score(list(hypotheses), streams).score)
        intervals[name] = _interval(scorer, hypotheses, streams)
        signatures[name] = str(scorer.get_signature())
    return Scores(num_samples=len(hypotheses), values=values, intervals=intervals, signatures=signatures)


def _interval(scorer: Any, hypotheses: Sequence[str], streams: Sequence[Sequence[str | None]]) -> Interval:
    """By the resamples of all our scores.

    sacrebleu's own (2.6, `n_bootstrap`) ends in a TypeError where the chrF of one resample is nought, as an
    untrained model's may be; and its interval, symmetric around the mean, may lead below any score.
    """
    statistics_NS = np.array(scorer._extract_corpus_statistics(list(hypotheses), streams), np.float64)
    sums_RS = resample_sums(statistics_NS).astype(np.int64).tolist()
    return interval_of(np.array([scorer._compute_score_from_stats(sums_S).score for sums_S in sums_RS]))


def _streams(references: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """References as sacrebleu takes them: the first of each sample, the second of each, and so on."""
    depth = max(map(len, references))
    return [[texts[place] if place < len(texts) else None for texts in references] for place in range(depth)]
