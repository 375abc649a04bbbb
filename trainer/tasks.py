"""The tasks, one row each, and the one rule that turns a sample into a token sequence.

    BOS [opening, source, closing, <task>] opening, target, closing, EOS

The opening of speech is `<speech>`, of an image `<image>`, of a text its language token (if the language is
known); speech and images close with `</speech>`, `</image>`. So ASR is

    BOS <speech> u1 ... un </speech> <asr> <en> text EOS

Suffixes: T position in a sequence, N sample.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.samples import Modality, Sample, TokenArray
from dmlm.pipeline.shards.format import MODALITY_OF, TokenMember
from dmlm.pipeline.vocabulary import LANGUAGES, Vocabulary
from dmlm.trainer.config import SequenceConfig

if TYPE_CHECKING:
    import pyarrow as pa

MODALITIES: Final = tuple(Modality)
"""A modality's code is its place here."""
GIVEN: Final = -1
"""Code of a token that carries no loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Continue the source with the target; without a source, just predict the target."""

    name: str
    source: TokenMember | None = None
    target: TokenMember

    @property
    def members(self) -> tuple[TokenMember, ...]:
        """Members that a sample must have."""
        return (self.target,) if self.source is None else (self.source, self.target)


TASKS: Final[Mapping[str, Task]] = {
    task.name: task
    for task in (
        Task(name="asr", source="speech", target="text"),
        Task(name="s2tt", source="speech", target="translation"),
        Task(name="t2s", source="text", target="speech"),
        Task(name="i2t", source="image", target="text"),
        Task(name="speech", target="speech"),
        Task(name="text", target="text"),
        Task(name="image", target="image"),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TaskSequence:
    """Tokens of a sequence and where each one's loss goes."""

    tokens_T: TokenArray
    """Ids of the shared vocabulary."""
    modality_T: npt.NDArray[np.int8]
    """Code of the modality that the loss of predicting this token goes to, or GIVEN."""
    num_prompt: int
    """Length of the part up to the first token of the target."""


def build_sequence(
    task: Task, sample: Sample, vocabulary: Vocabulary, config: SequenceConfig
) -> TaskSequence:
    """Sequence of one sample.

    Raises:
        ConfigError: The language has no token.
        CorruptInputError: An id is out of its modality's range.
    """
    prompt = _prompt_pieces(task, sample, vocabulary, config)
    end = np.array([vocabulary.eos_id], np.int32)
    code = _code(task.target)
    pieces = [*prompt, (_content(task.target, sample, vocabulary, config), code), (end, code)]
    return TaskSequence(
        tokens_T=np.concatenate([tokens for tokens, _ in pieces]),
        modality_T=np.repeat(
            np.array([c for _, c in pieces], np.int8), [len(tokens) for tokens, _ in pieces]
        ),
        num_prompt=sum(len(tokens) for tokens, _ in prompt),
    )


def build_prompt(task: Task, sample: Sample, vocabulary: Vocabulary, config: SequenceConfig) -> TokenArray:
    """The sequence up to the first token of the target: what decoding starts from.

    The sample needs the source and the language of the target, not the target.
    """
    return np.concatenate([tokens for tokens, _ in _prompt_pieces(task, sample, vocabulary, config)])


def sequence_lengths(task: Task, index: "pa.Table", config: SequenceConfig) -> npt.NDArray[np.int64]:
    """Length of each sample's sequence from the counts in the index; 0 where the task needs what it lacks."""
    counts = {member: index[_count_column(member, config)].to_numpy() for member in task.members}
    lengths_N = np.full(len(index), 2 if task.source is None else 3)  # BOS, EOS, the task token
    for member, counts_N in counts.items():
        lengths_N += counts_N + _num_tags(member, index)
    return np.where(np.all([counts_N > 0 for counts_N in counts.values()], axis=0), lengths_N, 0)


def loss_token_counts(task: Task, index: "pa.Table", config: SequenceConfig) -> npt.NDArray[np.int64]:
    """Tokens that carry loss in each sample's sequence, by modality: sample × modality code."""
    counts_NM = np.zeros((len(index), len(MODALITIES)), np.int64)
    for member in (task.target,) if config.target_only else task.members:
        closing = MODALITY_OF[member] is not Modality.TEXT
        counts_NM[:, _code(member)] += index[_count_column(member, config)].to_numpy() + closing
    counts_NM[:, _code(task.target)] += 1  # EOS
    return counts_NM


def add_noise(
    sequence: TaskSequence, config: SequenceConfig, vocabulary: Vocabulary, rng: np.random.Generator
) -> TokenArray:
    """What the model sees of a sequence while it trains; what it predicts stays clean.

    Random units stand for another speaker's. Wrong text before a token stands for the model's own mistakes:
    it keeps the model from guessing on from its text instead of listening.
    """
    inputs_T = sequence.tokens_T.copy()
    source_T, target_T = inputs_T[: sequence.num_prompt], inputs_T[sequence.num_prompt : -1]  # EOS stays
    units, text = vocabulary.speech, vocabulary.text
    noisy = (source_T >= units.start) & (source_T < units.stop)
    noisy &= rng.random(len(source_T)) < config.unit_noise
    source_T[noisy] = rng.integers(units.start, units.stop, int(noisy.sum()))
    words = target_T[(target_T >= text.start) & (target_T < text.stop)]
    if len(words):  # then the whole target is text
        noisy = rng.random(len(target_T)) < config.text_noise
        target_T[noisy] = rng.choice(words, int(noisy.sum()))
    return inputs_T


def collapse_runs(tokens: TokenArray) -> TokenArray:
    """The tokens with runs of equal ones collapsed into one."""
    return tokens[np.flatnonzero(np.diff(tokens, prepend=-1))]


_Piece = tuple[TokenArray, int]


def _prompt_pieces(
    task: Task, sample: Sample, vocabulary: Vocabulary, config: SequenceConfig
) -> list[_Piece]:
    pieces = [(np.array([vocabulary.bos_id], np.int32), GIVEN)]
    if task.source is not None:
        pieces += [
            (_opening(task.source, sample, vocabulary), GIVEN),
            (
                _content(task.source, sample, vocabulary, config),
                GIVEN if config.target_only else _code(task.source),
            ),
            (_special(vocabulary, f"<{task.name}>"), GIVEN),
        ]
    return [*pieces, (_opening(task.target, sample, vocabulary), GIVEN)]


def _opening(member: TokenMember, sample: Sample, vocabulary: Vocabulary) -> TokenArray:
    modality = MODALITY_OF[member]
    if modality is not Modality.TEXT:
        return _special(vocabulary, f"<{modality}>")
    language = sample.translation_language if member == "translation" else sample.language
    if language is None:
        return _special(vocabulary)
    if language not in LANGUAGES:
        raise ConfigError(
            f"sample {sample.key}: language {language!r} has no token; known are {', '.join(LANGUAGES)}"
        )
    return _special(vocabulary, f"<{language}>")


def _content(
    member: TokenMember, sample: Sample, vocabulary: Vocabulary, config: SequenceConfig
) -> TokenArray:
    modality = MODALITY_OF[member]
    tokens: TokenArray = getattr(sample, f"{member}_tokens")
    if modality is Modality.SPEECH and config.collapse_runs:
        tokens = collapse_runs(tokens)
    tokens = vocabulary.to_global(modality, tokens)
    if modality is Modality.TEXT:
        return tokens
    return np.concatenate([tokens, _special(vocabulary, f"</{modality}>")])


def _special(vocabulary: Vocabulary, *names: str) -> TokenArray:
    return np.array([vocabulary.special_id(name) for name in names], np.int32)


def _code(member: TokenMember) -> int:
    return MODALITIES.index(MODALITY_OF[member])


def _count_column(member: TokenMember, config: SequenceConfig) -> str:
    return "num_speech_runs" if member == "speech" and config.collapse_runs else f"num_{member}_tokens"


def _num_tags(member: TokenMember, index: "pa.Table") -> npt.NDArray[np.int64]:
    """Opening and closing tokens of the member in each sample."""
    if MODALITY_OF[member] is not Modality.TEXT:
        return np.full(len(index), 2)
    column = "translation_language" if member == "translation" else "language"
    known: npt.NDArray[np.bool_] = index[column].is_valid().to_numpy()
    return known.astype(np.int64)
