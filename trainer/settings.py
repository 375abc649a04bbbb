"""What a run is made of, as every checkpoint remembers it in `dmlm.json`."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

from dmlm.pipeline.errors import CheckpointError, ConfigError, FingerprintMismatchError
from dmlm.pipeline.samples import Modality
from dmlm.pipeline.shards.card import CODEBOOK_NAME
from dmlm.pipeline.strict_config import build_strictly
from dmlm.pipeline.tokenizers import Fingerprint, first_difference
from dmlm.pipeline.vocabulary import Vocabulary
from dmlm.trainer.config import Recipe
from dmlm.trainer.data.dataset import DatasetIdentity
from dmlm.trainer.trained_tasks import TrainedTask

FORMAT_VERSION: Final = 1
SETTINGS_NAME: Final = "dmlm.json"
RUN_SETTINGS_NAME: Final = "config.json"
"""The same in the folder of a run, beside its checkpoints."""
_FREE_TO_CHANGE: Final = (
    *("recipe.name", "recipe.save_every_steps", "recipe.log_every_steps", "recipe.parallel"),
    *("recipe.precision", "recipe.attention", "recipe.torch_compile", "recipe.gradient_checkpointing"),
    *("recipe.validation", "recipe.keep_checkpoints", "trained", "datasets_before"),
)
_FREE_PREFIXES: Final = tuple(f"{name}." for name in _FREE_TO_CHANGE)


def may_change(name: str) -> bool:
    """Whether a setting, by its dotted name such as `recipe.num_steps`, may be another one on `--resume`."""
    return f"{name}.".startswith(_FREE_PREFIXES)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """What a run is made of; a resumed run must be made of the same."""

    recipe: Recipe
    seed: int
    limit: int | None
    datasets: tuple[DatasetIdentity, ...]
    fingerprints: Mapping[Modality, Fingerprint]
    """Of the tokenizers."""
    vocabulary: Vocabulary
    trained: tuple[TrainedTask, ...] = ()
    """In this run, and before it where it began with a checkpoint; empty where an older one does not tell."""
    datasets_before: tuple[DatasetIdentity, ...] = ()
    """Of the checkpoint that it began with, and of those before that one, as far as they tell."""

    def to_json(self) -> dict[str, Any]:
        """Content of `dmlm.json`."""
        return {
            "recipe": self.recipe.to_json(),
            "seed": self.seed,
            "limit": self.limit,
            "datasets": [asdict(dataset) for dataset in self.datasets],
            "fingerprints": {modality: dict(mark) for modality, mark in self.fingerprints.items()},
            "vocabulary": self.vocabulary.to_json(),
            "trained": [asdict(entry) for entry in self.trained],
            "datasets_before": [asdict(dataset) for dataset in self.datasets_before],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Reads `dmlm.json`; KeyError or TypeError when a field is missing or of a wrong type."""
        return cls(
            # Whatever it was trained with was allowed then.
            recipe=build_strictly(Recipe, content["recipe"], where=f"{SETTINGS_NAME}: recipe"),
            seed=content["seed"],
            limit=content["limit"],
            datasets=tuple(DatasetIdentity(**dataset) for dataset in content["datasets"]),
            fingerprints={Modality(name): mark for name, mark in content["fingerprints"].items()},
            vocabulary=Vocabulary.from_json(content["vocabulary"]),
            trained=tuple(
                build_strictly(TrainedTask, entry, where=f"{SETTINGS_NAME}: trained")
                for entry in content.get("trained", ())
            ),
            datasets_before=tuple(
                DatasetIdentity(**dataset) for dataset in content.get("datasets_before", ())
            ),
        )


def read_settings(path: Path) -> tuple[int, RunSettings]:
    """Step and settings of a checkpoint.

    Raises:
        CheckpointError: `dmlm.json` is missing, damaged, or of another format version.
    """
    try:
        content = json.loads((path / SETTINGS_NAME).read_bytes())
        version = content["format_version"]
        if version != FORMAT_VERSION:
            raise CheckpointError(f"{path}: format version {version}, this dmlm reads {FORMAT_VERSION}")
        return content["step"], RunSettings.from_json(content)
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(f"{path / SETTINGS_NAME}: cannot be read: {error}") from error


def check_same_run(path: Path, saved: RunSettings, current: RunSettings) -> None:
    """Raises FingerprintMismatchError, naming both sides, unless `path` can be resumed with `current`."""
    theirs, ours = dict(_flatten(saved.to_json())), dict(_flatten(current.to_json()))
    names = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    differing = [name for name in names if not may_change(name)]
    if differing:
        name, num_more = differing[0], len(differing) - 1
        more = f" (and {num_more} more differ: {', '.join(differing[1:4])})" if num_more else ""
        raise FingerprintMismatchError(
            f"{path}: cannot go on: {name} is {theirs.get(name)!r} there and {ours.get(name)!r} now{more}; "
            "resume with what the run began with, or begin another with --init and another --out"
        )


def all_trained(
    own: tuple[TrainedTask, ...], init: str | None, resumed: RunSettings | None
) -> tuple[TrainedTask, ...]:
    """What a model has been trained on after a run; empty where a part of it is not known.

    Args:
        own: Tasks of the run.
        init: What it begins with.
        resumed: Settings of the checkpoint that it goes on from.
    """
    if resumed is not None:
        return resumed.trained or (own if resumed.recipe.model.init is None else ())
    if init is None or not (Path(init) / SETTINGS_NAME).is_file():
        return own
    before = read_settings(Path(init))[1].trained
    return tuple(dict.fromkeys([*before, *own])) if before else ()


def find_datasets_before(init: str | None, resumed: RunSettings | None) -> tuple[DatasetIdentity, ...]:
    """Data sets that a model was trained on before a run; the arguments are those of `all_trained`."""
    if resumed is not None:
        return resumed.datasets_before
    if init is None or not (Path(init) / SETTINGS_NAME).is_file():
        return ()
    before = read_settings(Path(init))[1]
    return tuple(dict.fromkeys([*before.datasets_before, *before.datasets]))


def check_init_tokens(init: str, fingerprints: Mapping[Modality, Fingerprint]) -> None:
    """Checks that a model to start from, if it is a checkpoint of dmlm, knows the tokens of the shards.

    Raises:
        FingerprintMismatchError: It was trained on those of another codebook.
        CheckpointError: Its `dmlm.json` is damaged.
    """
    if not (Path(init) / SETTINGS_NAME).is_file():
        return
    known = read_settings(Path(init))[1].fingerprints
    for modality in (modality for modality in fingerprints if modality in known):
        ours, theirs = fingerprints[modality], known[modality]
        if name := first_difference(ours, theirs):
            raise FingerprintMismatchError(
                f"--init {init}: knows other {modality} tokens: {name} is {theirs.get(name)} there and "
                f"{ours.get(name)} in the shards; tokenize with its codebook, {Path(init) / CODEBOOK_NAME}"
            )


def _flatten(content: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of a json value by dotted name."""
    if isinstance(content, dict | list | tuple):
        items = content.items() if isinstance(content, dict) else enumerate(content)
        for key, value in items:
            yield from _flatten(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, content
