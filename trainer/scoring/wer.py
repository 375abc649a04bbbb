"""Word and character error rates, counted per utterance and summed over a corpus.

`raw`: the source's text rule on both sides. `normalised`: the Whisper English normaliser
on top (English only).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Self

from dmlm.pipeline.errors import MissingDependencyError
from dmlm.pipeline.text_rules import apply_text_rule
from dmlm.trainer.scoring.scores import Scores, bootstrap_ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class EditCounts:
    """Edits that turn references into hypotheses, in words or characters."""

    num_reference: int = 0
    """Words or characters of the references."""
    num_substitutions: int = 0
    num_deletions: int = 0
    num_insertions: int = 0

    def __add__(self, other: Self) -> Self:
        return type(self)(
            num_reference=self.num_reference + other.num_reference,
            num_substitutions=self.num_substitutions + other.num_substitutions,
            num_deletions=self.num_deletions + other.num_deletions,
            num_insertions=self.num_insertions + other.num_insertions,
        )

    @property
    def num_errors(self) -> int:
        """Edits of all three kinds."""
        return self.num_substitutions + self.num_deletions + self.num_insertions

    @property
    def rate(self) -> float | None:
        """Errors per unit of the reference; None where the reference is empty, which has no rate."""
        return self.num_errors / self.num_reference if self.num_reference else None


@dataclass(frozen=True, slots=True, kw_only=True)
class UtteranceScore:
    """Edits of one utterance."""

    words: EditCounts | None
    """After the Whisper English normaliser; None: not English."""
    words_raw: EditCounts
    characters: EditCounts
    """Of the raw text; a space between words counts."""
    text_rule: str
    """What both sides went through."""


def score_utterance(reference: str, hypothesis: str, text_rule: str, language: str | None) -> UtteranceScore:
    """Scores one utterance; texts as the corpus and the model have them."""
    raw = apply_text_rule(text_rule, reference), apply_text_rule(text_rule, hypothesis)
    normalised = map(normalise_english, raw) if language == "en" else None
    return UtteranceScore(
        words=count_edits(*map(str.split, normalised)) if normalised else None,
        words_raw=count_edits(*map(str.split, raw)),
        characters=count_edits(*(list(" ".join(text.split())) for text in raw)),
        text_rule=text_rule,
    )


def score_utterances(scores: Sequence[UtteranceScore]) -> Scores:
    """Error rates over the corpus, with their intervals: edits are summed before they are divided.

    `wer` is None as soon as one utterance is not English; the counts are those of `wer_raw`.
    """
    edits = {"wer_raw": [s.words_raw for s in scores], "cer": [s.characters for s in scores]}
    words = [score.words for score in scores if score.words is not None]
    if len(words) == len(scores):
        edits["wer"] = words
    totals = {name: sum(counts, EditCounts()) for name, counts in edits.items()}
    bounds = {
        name: bootstrap_ratio([e.num_errors for e in counts], [e.num_reference for e in counts])
        for name, counts in edits.items()
    }
    raw, rules = totals["wer_raw"], ",".join(sorted({score.text_rule for score in scores}))
    return Scores(
        num_samples=len(scores),
        values={name: totals[name].rate if name in totals else None for name in ("wer", "wer_raw", "cer")},
        intervals={name: interval for name, interval in bounds.items() if interval},
        counts={
            "num_utterances": len(scores),
            "num_words": raw.num_reference,
            "num_substitutions": raw.num_substitutions,
            "num_deletions": raw.num_deletions,
            "num_insertions": raw.num_insertions,
        },
        signatures={name: _signature(name, rules) for name in edits if scores},
    )


def _signature(name: str, rules: str) -> str:
    parts = [f"rule:{rules}", f"tok:{'char' if name == 'cer' else 'spaces'}"]
    if name == "wer":
        parts += ["norm:whisper-english", f"openai-whisper:{version('openai-whisper')}"]
    return "|".join([*parts, f"jiwer:{version('jiwer')}"])


def normalise_english(text: str) -> str:
    """Applies the English normaliser of openai-whisper: spelling, numbers, contractions, fillers."""
    return _english_normaliser()(text).strip()


@cache
def _english_normaliser() -> Callable[[str], str]:
    try:
        from whisper.normalizers import EnglishTextNormalizer
    except ImportError as error:
        raise MissingDependencyError(
            'normalised word error rates need openai-whisper: pip install "openai-whisper>=20250625"'
        ) from error
    normaliser: Callable[[str], str] = EnglishTextNormalizer()
    return normaliser


def count_edits(reference: list[str], hypothesis: list[str]) -> EditCounts:
    """Fewest edits that turn one list of words, characters or units into the other."""
    try:
        import jiwer
    except ImportError as error:
        raise MissingDependencyError('word error rates need jiwer: pip install "dmlm[eval]"') from error
    # jiwer takes words apart at spaces by default; ours are apart already, and characters may be spaces.
    keep = jiwer.Compose([])
    output = jiwer.process_words([reference], [hypothesis], keep, keep)
    return EditCounts(
        num_reference=len(reference),
        num_substitutions=output.substitutions,
        num_deletions=output.deletions,
        num_insertions=output.insertions,
    )
