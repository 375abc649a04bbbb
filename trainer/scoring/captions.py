"""CIDEr, BLEU-4 and ROUGE-L of captions, as the COCO evaluation (pycocoevalcap) computes them.

An image has one hypothesis and any number of references. METEOR is a Java program, which takes
a quarter of a minute to start, so it is added where it is asked for and found.

Suffixes: N image, R resample, S statistic.
"""

import logging
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dmlm.trainer.scoring.meteor import METEOR_SIGNATURE, meteor
from dmlm.trainer.scoring.scores import Interval, Scores, bootstrap_mean, interval_of, resample_sums

MAX_ORDER: Final = 4
CIDER_SIGMA: Final = 6.0
"""Of the penalty for a length that differs, in bigrams."""
ROUGE_BETA: Final = 1.2
MIN_IMAGES: Final = 500
"""CIDEr weighs words by how rare they are among the images; with fewer it is hardly comparable."""
_TINY, _SMALL = 1e-15, 1e-9

SIGNATURE: Final = "cider-d|orders:1-4|sigma:6|idf:references scored|tok:dmlm-ptb-2|lower|punctuation removed"

_PUNCTUATION: Final = frozenset((*"'`\".?!,:;-()[]{}", "''", "``", "--", "...", "…"))
_MARKS: Final = "\u200c\u200d" + "".join(
    character for character in map(chr, range(0x300, 0x20000)) if unicodedata.category(character)[0] == "M"
)
"""Vowel signs and accents with a code of their own, and joiners: within words, but not in `\\w`."""
_WORD: Final = rf"\w+(?:[{_MARKS}]+\w*)*"
_PTB_TOKEN: Final = re.compile(
    rf"""
    n't\b | '(?:s|m|d|ll|re|ve)\b                      # clitics
    | \w+?(?=n't\b)                                   # and what they cling to
    | \d+(?:[.,:]\d+)+ | (?:[^\W\d_]\.){{2,}}           # numbers, initials
    | {_WORD}(?:[-/&@.]{_WORD})*                      # words, with their joints
    | \.{{2,}} | -{{2,}} | \S
    """,
    re.VERBOSE,
)

_logger = logging.getLogger(__name__)

NGrams = Counter[tuple[str, ...]]


class _Vector(NamedTuple):
    """Weights of the n-grams of a text."""

    weights: tuple[Mapping[tuple[str, ...], float], ...]
    """By order."""
    norms: tuple[float, ...]
    num_bigrams: int


def score_captions(
    references: Sequence[Sequence[str]], hypotheses: Sequence[str], *, with_meteor: bool = False
) -> Scores:
    """CIDEr (× 100, up to 1,000), BLEU-4, ROUGE-L and METEOR (up to 100) over images.

    Args:
        references: One or more of each image.
        hypotheses: One of each image.
        with_meteor: METEOR too, where it can be run; for captions in English only.

    Raises:
        ValueError: Numbers of references and hypotheses differ, or an image has no reference.
    """
    if len(references) != len(hypotheses) or not all(references):
        raise ValueError(f"{len(references)} images with references, {len(hypotheses)} hypotheses")
    texts_N = [[tokenize_caption(text) for text in texts] for texts in references]
    captions_N = [tokenize_caption(hypothesis) for hypothesis in hypotheses]
    ciders_N, rouges_N = cider(texts_N, captions_N), rouge_l(texts_N, captions_N)
    means = {"cider": [100 * c for c in ciders_N], "rouge_l": [100 * r for r in rouges_N]}
    bounds = {name: bootstrap_mean(values) for name, values in means.items()}
    values = {name: math.fsum(v) / len(v) if v else None for name, v in means.items()}
    intervals = {name: interval for name, interval in bounds.items() if interval}
    signatures = {"cider": SIGNATURE}
    values["bleu4"] = None
    if captions_N:
        values["bleu4"], intervals["bleu4"] = _bleu4(texts_N, captions_N)
    if with_meteor and captions_N and (score := meteor(texts_N, captions_N)) is not None:
        values["meteor"], signatures["meteor"] = 100 * score, METEOR_SIGNATURE
    return Scores(
        num_samples=len(hypotheses),
        values=values,
        intervals=intervals,
        counts={"num_references": sum(map(len, references))},
        signatures=signatures,
    )


def warn_of_few_images(num_images: int) -> None:
    """Says so where there are fewer images than CIDEr needs."""
    if num_images < MIN_IMAGES:
        _logger.warning("CIDEr over %d images, under %d, depends on which they are", num_images, MIN_IMAGES)


def tokenize_caption(text: str) -> list[str]:
    """Words in lower case, clitics apart, without punctuation, near to Stanford's PTB tokenizer."""
    plain = text.lower().replace("\u2019", "'")
    return [token for token in _PTB_TOKEN.findall(plain) if token not in _PUNCTUATION]


def cider(references_N: Sequence[Sequence[list[str]]], hypotheses_N: Sequence[list[str]]) -> list[float]:
    """CIDEr-D of each image (Vedantam et al. 2015), up to 10; rarity is counted over these references."""
    counts_N = [[_count(text) for text in texts] for texts in references_N]
    rarity: NGrams = Counter()
    for counts in counts_N:
        rarity.update(set().union(*counts))
    log_images = math.log(len(counts_N)) if counts_N else 0.0
    scores = []
    for counts, words in zip(counts_N, hypotheses_N, strict=True):
        hypothesis = _weigh(_count(words), rarity, log_images)
        similarities = [_compare(hypothesis, _weigh(count, rarity, log_images)) for count in counts]
        scores.append(10 * sum(similarities) / len(similarities))
    return scores


def rouge_l(references_N: Sequence[Sequence[list[str]]], hypotheses_N: Sequence[list[str]]) -> list[float]:
    """ROUGE-L of each image (Lin 2004), up to 1: best precision and best recall over its references."""
    scores = []
    for texts, words in zip(references_N, hypotheses_N, strict=True):
        common = [_longest_common_subsequence(text, words) for text in texts]
        precision = max(common) / max(len(words), 1)
        recall = max(c / max(len(text), 1) for c, text in zip(common, texts, strict=True))
        both = recall + ROUGE_BETA**2 * precision
        scores.append((1 + ROUGE_BETA**2) * precision * recall / both if both else 0.0)
    return scores


def bleu_statistics(
    references_N: Sequence[Sequence[list[str]]], hypotheses_N: Sequence[list[str]]
) -> NDArray[np.float64]:
    """Of each image (N, 10): n-grams right and guessed by order, words, words of the nearest reference."""
    statistics_NS = np.zeros((len(hypotheses_N), 2 * MAX_ORDER + 2))
    for row_S, texts, words in zip(statistics_NS, references_N, hypotheses_N, strict=True):
        most: NGrams = Counter()
        for text in texts:
            most |= _count(text)
        for ngram, count in _count(words).items():
            row_S[len(ngram) - 1] += min(count, most[ngram])
            row_S[MAX_ORDER + len(ngram) - 1] += count
        nearest = min((abs(len(text) - len(words)), len(text)) for text in texts)[1]
        row_S[2 * MAX_ORDER :] = len(words), nearest
    return statistics_NS


def bleu(sums_S: NDArray[np.float64]) -> float:
    """BLEU-4 of summed statistics, up to 1; the references nearest in length set the brevity penalty."""
    correct, guessed, (num_words, num_reference_words) = np.split(sums_S, (MAX_ORDER, 2 * MAX_ORDER))
    precision = np.prod((correct + _TINY) / (guessed + _SMALL)) ** (1 / MAX_ORDER)
    ratio = (num_words + _TINY) / (num_reference_words + _SMALL)
    return float(precision) * (math.exp(1 - 1 / ratio) if ratio < 1 else 1.0)


def _bleu4(
    references_N: Sequence[Sequence[list[str]]], hypotheses_N: Sequence[list[str]]
) -> tuple[float, Interval]:
    """BLEU-4 of the corpus, up to 100, and its interval."""
    statistics_NS = bleu_statistics(references_N, hypotheses_N)
    resampled_R = np.array([bleu(sums_S) for sums_S in resample_sums(statistics_NS)])
    return 100 * bleu(statistics_NS.sum(axis=0)), interval_of(100 * resampled_R)


def _count(words: Sequence[str]) -> NGrams:
    return Counter(
        tuple(words[start : start + order])
        for order in range(1, MAX_ORDER + 1)
        for start in range(len(words) - order + 1)
    )


def _weigh(counts: NGrams, rarity: NGrams, log_images: float) -> _Vector:
    weights: tuple[dict[tuple[str, ...], float], ...] = tuple({} for _ in range(MAX_ORDER))
    for ngram, count in counts.items():
        weights[len(ngram) - 1][ngram] = count * (log_images - math.log(max(1, rarity[ngram])))
    norms = tuple(math.sqrt(_sum_of_squares(part.values())) for part in weights)
    return _Vector(weights, norms, sum(count for ngram, count in counts.items() if len(ngram) == 2))


def _sum_of_squares(values: Iterable[float]) -> float:
    return sum(value * value for value in values)


def _compare(hypothesis: _Vector, reference: _Vector) -> float:
    """Mean over the orders of the clipped cosine, less where the lengths differ."""
    difference = hypothesis.num_bigrams - reference.num_bigrams
    penalty = math.exp(-(difference**2) / (2 * CIDER_SIGMA**2))
    total = 0.0
    for order in range(MAX_ORDER):
        theirs = reference.weights[order]
        dot = sum(
            min(weight, theirs.get(ngram, 0.0)) * theirs.get(ngram, 0.0)
            for ngram, weight in hypothesis.weights[order].items()
        )
        norms = hypothesis.norms[order] * reference.norms[order]
        total += penalty * (dot / norms if norms else dot)
    return total / MAX_ORDER


def _longest_common_subsequence(left: Sequence[str], right: Sequence[str]) -> int:
    row = [0] * (len(right) + 1)
    for word in left:
        diagonal = 0
        for place, other in enumerate(right, start=1):
            above = row[place]
            row[place] = diagonal + 1 if word == other else max(above, row[place - 1])
            diagonal = above
    return row[-1]
