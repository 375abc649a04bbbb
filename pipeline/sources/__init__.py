"""Corpora in their true on-disk layouts: folders and annotation files to source items."""

from dmlm.pipeline.sources.interface import (
    DEFAULT_OPTIONS,
    Source,
    SourceOptions,
    check_options,
    describe_options,
    read_options,
)
from dmlm.pipeline.sources.registry import every_choice, open_source, sources_present

__all__ = [
    "DEFAULT_OPTIONS",
    "Source",
    "SourceOptions",
    "check_options",
    "describe_options",
    "every_choice",
    "open_source",
    "read_options",
    "sources_present",
]
