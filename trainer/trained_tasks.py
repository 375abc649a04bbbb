"""Which tasks a model was trained on, and in which languages: what a prompt may ask it for."""

import logging
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from dmlm.pipeline.errors import ConfigError
from dmlm.trainer.config import TaskName
from dmlm.trainer.data.mix import Group

NO_LANGUAGE: Final = "none"
"""In place of a language: prompts without its token."""
DEFAULT_LANGUAGE: Final = "en"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedTask:
    """A task in one language."""

    task: TaskName
    language: str | None
    """Whose token stood in the prompts; None: the samples had no language, and so no token of it."""

    def __str__(self) -> str:
        return f"{self.task} ({self.language or NO_LANGUAGE})"


def trained_tasks(groups: Iterable[Group]) -> tuple[TrainedTask, ...]:
    """Tasks and languages of the samples of a mix; a group without samples has none."""
    pairs = ((group.task.name, template.language) for group in groups for template in group.templates)
    return tuple(
        TrainedTask(task=cast(TaskName, task), language=language) for task, language in dict.fromkeys(pairs)
    )


def choose_language(trained: Sequence[TrainedTask], task: str, wanted: str | None, where: Path) -> str | None:
    """Language whose token stands in the prompts of a task; None: none does.

    Args:
        trained: What the model was trained on; empty where a checkpoint of an older version does not tell.
        task: What is asked for.
        wanted: A language, or NO_LANGUAGE; None: the only one trained, or English among several.
        where: The checkpoint, for messages.

    Raises:
        ConfigError: The model was not trained on the task, or not in that language.
    """
    known = [entry.language for entry in trained if entry.task == task]
    if trained and not known:
        raise ConfigError(f"{where}: was not trained on {task}, but on {', '.join(map(str, trained))}")
    if wanted is None:
        chosen = known[0] if len(known) == 1 else DEFAULT_LANGUAGE
    else:
        chosen = None if wanted == NO_LANGUAGE else wanted
    if known and chosen not in known:
        raise ConfigError(
            f"{where}: was not trained on {task} in the language {chosen or NO_LANGUAGE}; "
            f"choose one of {', '.join(language or NO_LANGUAGE for language in known)}"
        )
    return chosen


def warn_of_untrained(
    trained: Sequence[TrainedTask], task: str, languages: Set[str | None], where: Path
) -> None:
    """Says so where a model is asked for a task in languages that it was not trained on.

    Args:
        trained: As `choose_language` takes it; empty: nothing is known, and nothing said.
        task: What is asked for.
        languages: Of all that is asked.
        where: The checkpoint, for the message.
    """
    known = {entry.language for entry in trained if entry.task == task}
    missing = sorted(language or NO_LANGUAGE for language in languages - known)
    if trained and missing:
        _logger.warning(
            "%s: was not trained on %s (%s), which is scored all the same, but on %s",
            where,
            task,
            ", ".join(missing),
            ", ".join(map(str, trained)),
        )
