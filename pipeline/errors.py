"""One tree of errors, each with the exit code that `dmlm-cli` ends with.

A message says what is wrong, where, and what to do about it, in one or two lines.
"""

from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """Exit codes of every command; part of the command contract."""

    OK = 0
    USAGE = 2
    TOO_MANY_BAD_SAMPLES = 3
    STORAGE = 4
    CORRUPT_INPUT = 5
    NOT_FINITE = 6
    INTERRUPTED = 130


class DmlmError(Exception):
    """Base of every error that dmlm raises on purpose."""

    exit_code: ClassVar[ExitCode] = ExitCode.USAGE


class ConfigError(DmlmError):
    """A setting, path or option that cannot be honoured."""


class MissingDependencyError(ConfigError):
    """An optional package is needed and not installed; the message names the extra."""


class FingerprintMismatchError(ConfigError):
    """Two artefacts were made with different tokenizers, data or vocabularies."""


class SampleError(DmlmError):
    """One sample is broken; tokenization quarantines it and goes on."""

    exit_code = ExitCode.CORRUPT_INPUT


class AudioError(SampleError):
    """Audio that cannot be decoded, is empty, not finite, or over a limit."""


class ImageError(SampleError):
    """An image that cannot be decoded or is over a limit."""


class AnnotationError(SampleError):
    """A transcript, segment or caption that cannot be read."""


class BadSampleBudgetError(DmlmError):
    """More samples were quarantined than the budget allows."""

    exit_code = ExitCode.TOO_MANY_BAD_SAMPLES


class StorageError(DmlmError):
    """The disk is full or fails."""

    exit_code = ExitCode.STORAGE


class CorruptInputError(DmlmError):
    """A file that should be whole is not: checksum, size, structure or range."""

    exit_code = ExitCode.CORRUPT_INPUT


class ShardCorruptError(CorruptInputError):
    """A shard, its index or its dataset card does not hold what it should."""


class CheckpointError(CorruptInputError):
    """A checkpoint that is incomplete, damaged or does not fit the run."""


class LoaderError(DmlmError):
    """The loader of a training run does not get on: its disk does not answer."""

    exit_code = ExitCode.STORAGE


class RankError(DmlmError):
    """Another process of a run, or its cluster, ended or does not answer.

    This one is interrupted by it: there is nothing to repair here, and the same command goes on. Nothing new
    was saved; the last checkpoint and finished shards are kept.
    """

    exit_code = ExitCode.INTERRUPTED


class NotFiniteError(DmlmError):
    """The loss, a gradient or an activation is NaN or infinite."""

    exit_code = ExitCode.NOT_FINITE
