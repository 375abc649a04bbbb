"""The tasks, one row each, and the one rule that turns a sample into a token sequence.

    BOS [opening, source, closing, <task>] opening, target, closing, EOS

The opening of speech is `<speech>`, of an image `<image>`, of a text its language token (if the language is
known); speech and images close with `</speech>`, `</image>`. So ASR is

    BOS <speech> u1 ... un </speech> <asr> <en> text EOS

Suffixes: T position in a sequence, N sample.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.samples import Modality, Sample, TokenArray
from dmlm.pipeline.shards.format import MODALITY_OF, TokenMember
from dmlm.pipeline.vocabulary import Vocabulary
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


class Part(NamedTuple):
    """A stretch of a sequence: tokens that are the same in every sample, or a member of the sample."""

    code: int
    """Of the modality that its loss goes to, or GIVEN."""
    tokens: TokenArray | None = None
    member: TokenMember | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Template:
    """A task's sequences, but for what the samples put in."""

    prompt: tuple[Part, ...]
    target: tuple[Part, ...]
    language: str | None
    """Of its text; None: it has no text, or its language is not known."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """All parts, in order."""
        return *self.prompt, *self.target


def make_template(
    task: Task,
    language: str | None,
    translation_language: str | None,
    vocabulary: Vocabulary,
    config: SequenceConfig,
) -> Template:
    """Template of a task for samples of these languages.

    Raises:
        ConfigError: The language has no token.
    """
    known = _language_of_text(task, language, translation_language)

    def opening(member: TokenMember) -> list[int]:
        if MODALITY_OF[member] is not Modality.TEXT:
            return [vocabulary.special_id(f"<{MODALITY_OF[member]}>")]
        return [] if known is None else [vocabulary.special_id(f"<{known}>")]

    def closing(member: TokenMember) -> list[int]:
        modality = MODALITY_OF[member]
        return [] if modality is Modality.TEXT else [vocabulary.special_id(f"</{modality}>")]

    target = modality_code(task.target)
    parts = []
    given = [vocabulary.bos_id]
    if task.source is not None:
        source = GIVEN if config.target_only else modality_code(task.source)
        parts += [_fixed(GIVEN, [*given, *opening(task.source)]), Part(source, member=task.source)]
        if closed := closing(task.source):
            parts.append(_fixed(source, closed))
        given = [vocabulary.special_id(f"<{task.name}>")]
    return Template(
        prompt=(*parts, _fixed(GIVEN, [*given, *opening(task.target)])),
        target=(
            Part(target, member=task.target),
            _fixed(target, [*closing(task.target), vocabulary.eos_id]),
        ),
        language=known,
    )


def build_prompt(task: Task, sample: Sample, vocabulary: Vocabulary, config: SequenceConfig) -> TokenArray:
    """The sequence up to the first token of the target: what decoding starts from.

    The sample needs the source and the language of the target, not the target.
    """
    prompt = _template_of(task, sample, vocabulary, config).prompt
    return np.concatenate([_fill(part, sample, vocabulary, config) for part in prompt])


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
        counts_NM[:, modality_code(member)] += index[_count_column(member, config)].to_numpy() + closing
    counts_NM[:, modality_code(task.target)] += 1  # EOS
    return counts_NM


def collapse_runs(tokens: TokenArray) -> TokenArray:
    """The tokens with runs of equal ones collapsed into one."""
    return tokens[np.flatnonzero(np.diff(tokens, prepend=-1))]


def _template_of(task: Task, sample: Sample, vocabulary: Vocabulary, config: SequenceConfig) -> Template:
    try:
        return make_template(task, sample.language, sample.translation_language, vocabulary, config)
    except ConfigError as error:
        raise ConfigError(f"sample {sample.key}: {error}") from None


def _language_of_text(task: Task, language: str | None, translation_language: str | None) -> str | None:
    """Language of the task's text member; None where it has none. No task has two."""
    if "translation" in task.members:
        return translation_language
    return language if "text" in task.members else None


def _fixed(code: int, tokens: Sequence[int]) -> Part:
    return Part(code, tokens=np.array(tokens, np.int32))


def _fill(part: Part, sample: Sample, vocabulary: Vocabulary, config: SequenceConfig) -> TokenArray:
    if part.member is None:
        assert part.tokens is not None, "a part has tokens or a member"
        return part.tokens
    tokens: TokenArray = getattr(sample, f"{part.member}_tokens")
    if part.member == "speech" and config.collapse_runs:
        tokens = collapse_runs(tokens)
    return vocabulary.to_global(MODALITY_OF[part.member], tokens)


def modality_code(member: TokenMember) -> int:
    """Place of the member's modality in MODALITIES."""
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
