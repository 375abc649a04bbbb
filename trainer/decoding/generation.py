"""The four tasks: source tokens in, the target's tokens out.

samples -> prompts -> decode -> local ids of the target's modality
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final, Self

from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.samples import Modality, Sample, TokenArray
from dmlm.pipeline.tokenizers.text import load_text_tokenizer
from dmlm.trainer.checkpoint import Checkpoint
from dmlm.trainer.data.tasks import TASKS, build_prompt
from dmlm.trainer.decoding import DecodingConfig, constraint_of, decode

NUM_SPARE_TOKENS: Final = 16
"""A text of more tokens than units, and these, was never spoken."""
MAX_CAPTION_TOKENS: Final = 256
"""Captions of COCO have at most 250 characters."""
UNITS_PER_TEXT_TOKEN: Final = 40
"""At 50 units a second: 0.8 s for a token, where slow readers take 0.5."""
GREEDY: Final = DecodingConfig()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Generated:
    """The target of one sample."""

    index: int
    """Of the sample."""
    tokens: TokenArray
    """Local ids of the target's modality, without the end."""
    is_finished: bool
    """False: it was cut by a limit, or there was no room for it."""
    first_token_seconds: float
    """From the start of reading its prompt to its first token; NaN where there was no room for any."""
    num_prompt: int
    """Tokens of the prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedText:
    """The target of one sample, read as text."""

    text: str
    is_finished: bool
    """False: it was cut by a limit, or there was no room for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """How fast the targets of many samples came."""

    decode_seconds: float
    num_tokens: int
    """Generated, without the ends."""
    tokens_per_second: float
    first_token_seconds: float | None
    """Median over the samples, from the start of reading a batch of prompts."""
    real_time_factor: float | None
    """Seconds of decoding for a second of the audio heard; None: there is none."""
    num_unfinished: int
    """Outputs that were cut by a limit, or had no room."""

    @classmethod
    def of(cls, outputs: Sequence[Generated], seconds: float, audio_seconds: float) -> Self:
        """Summary of outputs that took `seconds` for `audio_seconds` of audio."""
        num_tokens = sum(len(output.tokens) for output in outputs)
        waits = [o.first_token_seconds for o in outputs if not math.isnan(o.first_token_seconds)]
        return cls(
            decode_seconds=round(seconds, 3),
            num_tokens=num_tokens,
            tokens_per_second=num_tokens / seconds,
            first_token_seconds=median(waits) if waits else None,
            real_time_factor=seconds / audio_seconds if audio_seconds else None,
            num_unfinished=sum(not output.is_finished for output in outputs),
        )


def generate(
    checkpoint: Checkpoint,
    task: str,
    samples: Sequence[Sample],
    config: DecodingConfig = GREEDY,
    first_number: int = 0,
) -> Iterator[Generated]:
    """Yields the target of every sample; similar lengths together, not in order.

    Args:
        checkpoint: Model and vocabulary.
        task: A key of `TASKS` that has a source.
        samples: They need the task's source, and the language of its target where training had one.
        config: How tokens are chosen, and how many at most.
        first_number: Of the first sample, where others came before; sampling draws by the number.

    Raises:
        ConfigError: The task has no source, or a language has no token.
    """
    source = TASKS[task].source
    if source is None:
        raise ConfigError(f"task {task}: has no source to start from")
    sequence, vocabulary = checkpoint.settings.recipe.sequence, checkpoint.vocabulary
    prompts = [build_prompt(TASKS[task], sample, vocabulary, sequence) for sample in samples]
    limits = [
        config.max_new_tokens or _longest(task, len(getattr(sample, f"{source}_tokens")))
        for sample in samples
    ]
    constraint = constraint_of(task, vocabulary)
    outputs = decode(
        checkpoint.model, prompts, constraint, config, max_new_tokens=limits, first_number=first_number
    )
    for output in outputs:
        yield Generated(
            index=output.index,
            tokens=output.tokens - constraint.allowed.start,
            is_finished=output.is_finished,
            first_token_seconds=output.first_token_seconds,
            num_prompt=len(prompts[output.index]),
        )


def generate_texts(
    checkpoint: Checkpoint,
    task: str,
    samples: Sequence[Sample],
    config: DecodingConfig = GREEDY,
    first_number: int = 0,
) -> list[GeneratedText]:
    """The target of every sample as text, in order; of a task whose target is text. Else as `generate`.

    A text is one line: any white space within it is one space.
    """
    tokenizer = load_text_tokenizer(checkpoint.codebook_dir / Modality.TEXT)
    outputs = generate(checkpoint, task, samples, config, first_number)
    return [
        GeneratedText(text=" ".join(tokenizer.decode(output.tokens).split()), is_finished=output.is_finished)
        for output in sorted(outputs, key=lambda output: output.index)
    ]


def _longest(task: str, num_source_tokens: int) -> int:
    if task == "t2s":
        return UNITS_PER_TEXT_TOKEN * num_source_tokens + NUM_SPARE_TOKENS
    return MAX_CAPTION_TOKENS if task == "i2t" else num_source_tokens + NUM_SPARE_TOKENS
