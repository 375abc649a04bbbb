"""Text only: *.txt files, one sample a line; the name of a file is its split."""

from collections.abc import Iterator
from pathlib import Path

from dmlm.pipeline.samples import Broken, SourceItem, TextLine
from dmlm.pipeline.sources.interface import SourceOptions
from dmlm.pipeline.sources.lines import find_files, iter_lines

EXPECTED = "*.txt files of one sample a line, or one such file,"
NAME = "text"


def is_present(corpus_dir: Path) -> bool:
    """Whether there is a text file."""
    return bool(find_files(corpus_dir, ".txt"))


def find_splits(corpus_dir: Path, options: SourceOptions) -> tuple[str, ...]:
    """Names of the files without suffix, sorted."""
    return tuple(find_files(corpus_dir, ".txt"))


def iter_split(corpus_dir: Path, split: str, options: SourceOptions) -> Iterator[SourceItem]:
    """Yields the lines of a file that are not blank; keys are `SPLIT-NUMBER` with the number of the line."""
    for line in iter_lines(find_files(corpus_dir, ".txt")[split]):
        if line.fault:
            yield Broken(key=line.key, source=NAME, split=split, reason=line.fault)
        else:
            yield TextLine(key=line.key, source=NAME, split=split, text=line.text, language=options.language)
