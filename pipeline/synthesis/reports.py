"""What a sample holds, and the file that says that it is whole."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.storage import write_json

FINISHED, UNFINISHED = "sample.json", "sample.unfinished.json"

Settings = Mapping[str, str | int | float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitReport:
    """What was made of one split of one corpus."""

    corpus: str
    split: str
    num_items: int
    """Utterances, clips, meeting segments or images."""
    audio_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleReport:
    """What a sample holds."""

    out_dir: Path
    splits: tuple[SplitReport, ...]
    already_complete: bool
    """Nothing was written: the folder held this sample already."""

    @property
    def audio_seconds(self) -> float:
        """Length of all recordings."""
        return sum(split.audio_seconds for split in self.splits)

    def table(self) -> str:
        """The report as lines for a terminal."""
        rows = [f"{'corpus':<12} {'split':<13} {'items':>6} {'minutes':>8}"]
        for split in self.splits:
            minutes = f"{split.audio_seconds / 60:.1f}" if split.audio_seconds else "-"
            rows.append(f"{split.corpus:<12} {split.split:<13} {split.num_items:>6} {minutes:>8}")
        state = "was there already, nothing to do" if self.already_complete else "complete"
        total = f"{self.audio_seconds / 60:.1f} minutes of audio"
        rows.append(f"{self.out_dir}: synthetic sample, {total}, {state}")
        return "\n".join(rows)


def summarise(corpus: str, splits: Sequence[str], seconds: Sequence[float]) -> list[SplitReport]:
    """Counts per split from the split and duration of every item; items of a split follow each other."""
    reports = []
    for split, items in groupby(zip(splits, seconds, strict=True), key=lambda item: item[0]):
        durations = [duration for _, duration in items]
        reports.append(
            SplitReport(
                corpus=corpus, split=split, num_items=len(durations), audio_seconds=round(sum(durations), 3)
            )
        )
    return reports


def claim(out_dir: Path, settings: Settings, versions: Mapping[str, str]) -> SampleReport | None:
    """Takes `out_dir` for a sample; returns the report when the sample is there already.

    Raises:
        ConfigError: The folder holds a sample of other settings, an unfinished one of other packages, or
            files that are no sample.
    """
    for name in (FINISHED, UNFINISHED):
        if (out_dir / name).is_file():
            return _read(out_dir, name, settings, versions)
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise ConfigError(f"{out_dir} holds files that a sample could overwrite; choose a new folder")
    content = {"synthetic": True, "settings": dict(settings), "versions": dict(versions)}
    write_json(out_dir / UNFINISHED, content)
    return None


def publish(
    out_dir: Path, settings: Settings, versions: Mapping[str, str], splits: tuple[SplitReport, ...]
) -> SampleReport:
    """Writes sample.json, which makes the sample complete."""
    content = {
        "synthetic": True,
        "settings": dict(settings),
        "versions": dict(versions),
        "splits": [asdict(split) for split in splits],
    }
    write_json(out_dir / FINISHED, content)
    (out_dir / UNFINISHED).unlink()
    return SampleReport(out_dir=out_dir, splits=splits, already_complete=False)


def _read(out_dir: Path, name: str, settings: Settings, versions: Mapping[str, str]) -> SampleReport | None:
    """Report of a finished sample; its versions are no matter, while files of two are not mixed in one."""
    try:
        content = json.loads((out_dir / name).read_bytes())
        there = dict(content["settings"])
        if name == UNFINISHED:
            there, settings = {**content["versions"], **there}, {**versions, **settings}
        splits = tuple(SplitReport(**split) for split in content.get("splits", ()))
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{out_dir / name} is damaged; delete the folder or choose another") from error
    if there != settings:
        differences = ", ".join(
            f"{key} {there.get(key)} instead of {value}"
            for key, value in settings.items()
            if there.get(key) != value
        )
        raise ConfigError(
            f"{out_dir} holds a sample of other settings ({differences}); choose another folder or delete it"
        )
    return None if name == UNFINISHED else SampleReport(out_dir=out_dir, splits=splits, already_complete=True)
