"""METEOR (Denkowski and Lavie 2014) by the Java program that pycocoevalcap brings along.

pycocoevalcap's own way to talk to it hangs once Java has failed, and leaves the character set to the locale.

Suffix: N image.
"""

import atexit
import logging
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

METEOR_SIGNATURE: Final = "meteor:1.5|lang:en|norm|tok:dmlm-ptb-2|lower|punctuation removed"

_JAR: Final = Path("meteor/meteor-1.5.jar")
_JAVA_OPTIONS: Final = ("-Xmx2G", "-Dfile.encoding=UTF-8", "-jar")
_METEOR_OPTIONS: Final = ("-", "-", "-stdio", "-l", "en", "-norm")

_logger = logging.getLogger(__name__)


def meteor(references_N: Sequence[Sequence[list[str]]], hypotheses_N: Sequence[list[str]]) -> float | None:
    """METEOR of a corpus in English, up to 1; None: no Java or pycocoevalcap, or, with a warning, Java fails.

    Its stems, synonyms and function words are those of English.

    Args:
        references_N: One or more of each image, of words as `tokenize_caption` gives them: no word holds a
            space or `|||`, which part the texts on their way to Java.
        hypotheses_N: One of each image.
    """
    java = _start()
    if java is None:
        return None
    try:
        statistics = []
        for texts, hypothesis in zip(references_N, hypotheses_N, strict=True):
            statistics += _ask(
                java, "SCORE", [" ".join(words) for words in (*texts, hypothesis)], num_lines=1
            )
        return float(_ask(java, "EVAL", statistics, num_lines=len(statistics) + 1)[-1])
    except (OSError, ValueError) as error:
        _logger.warning("METEOR is left out, Java failed (%s): try %s", error, java.args)
        _end(java)
        return None


@cache
def _start() -> subprocess.Popen[str] | None:
    """The program, which takes many seconds to start and so is kept until this process ends."""
    java, package = shutil.which("java"), find_spec("pycocoevalcap")
    if java is None or package is None or not package.submodule_search_locations:
        return None
    jar = Path(package.submodule_search_locations[0]) / _JAR
    process = subprocess.Popen(  # noqa: S603 - a list of arguments, none of them from data
        [java, *_JAVA_OPTIONS, str(jar), *_METEOR_OPTIONS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    )
    atexit.register(_end, process)
    return process


def _ask(java: subprocess.Popen[str], command: str, parts: Sequence[str], num_lines: int) -> list[str]:
    assert java.stdin, "a pipe"
    assert java.stdout, "a pipe"
    print(command, *parts, sep=" ||| ", file=java.stdin, flush=True)
    lines = [java.stdout.readline() for _ in range(num_lines)]
    if not lines[-1]:
        raise BrokenPipeError("no answer")
    return [line.strip() for line in lines]


def _end(java: subprocess.Popen[str]) -> None:
    java.kill()
    java.wait()
