"""BLEU and chrF by sacrebleu (Post 2018), with the signatures that make them comparable."""

from collections.abc import Sequence
from typing import Any, Final

from dmlm.pipeline.errors import MissingDependencyError
from dmlm.trainer.scoring.scores import NUM_RESAMPLES, Interval, Scores

_TOKENIZERS: Final = {"zh": "zh", "ja": "char", "ko": "char"}
"""Where words are not parted by spaces; `13a`, sacrebleu's own choice, for all other languages."""


def score_translations(
    references: Sequence[Sequence[str]], hypotheses: Sequence[str], language: str | None
) -> Scores:
    """Case-sensitive BLEU and chrF, up to 100, of detokenised text.

    Args:
        references: One or more of each sample.
        hypotheses: One of each sample.
        language: Of the translations; it names the tokenizer of BLEU.

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
    if not hypotheses:
        return Scores(num_samples=0, values={"bleu": None, "chrf": None})
    streams = _streams(references)
    scorers = {"bleu": BLEU(tokenize=_TOKENIZERS.get(language or "", "13a")), "chrf": CHRF()}
    values: dict[str, float | None] = {}
    intervals, signatures = {}, {}
    for name, scorer in scorers.items():
        score: Any = scorer.corpus_score(list(hypotheses), streams, n_bootstrap=NUM_RESAMPLES)
        values[name] = float(score.score)
        # Symmetric around the mean of the resamples, so it may lead below any score.
        intervals[name] = Interval(max(0.0, float(score._mean - score._ci)), float(score._mean + score._ci))
        signatures[name] = str(scorer.get_signature())
    return Scores(num_samples=len(hypotheses), values=values, intervals=intervals, signatures=signatures)


def _streams(references: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """References as sacrebleu takes them: the first of each sample, the second of each, and so on."""
    depth = max(map(len, references))
    return [[texts[place] if place < len(texts) else None for texts in references] for place in range(depth)]
