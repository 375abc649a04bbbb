"""Translated speech in CoVoST 2's layout over Common Voice's: covost/it/*.tsv and clips/*.mp3."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dmlm.pipeline.randomness import generator_for
from dmlm.pipeline.samples import Waveform
from dmlm.pipeline.storage import write_bytes
from dmlm.pipeline.synthesis.espeak import ItalianSpeaker, ItalianVoice
from dmlm.pipeline.synthesis.italian import Translation
from dmlm.pipeline.synthesis.speech import duration_seconds, encode_audio
from dmlm.pipeline.synthesis.workers import map_in_order

SPLITS = ("train", "dev", "test")
FIRST_CLIP = 80_000_000
# fmt: off
COMMON_VOICE_COLUMNS = ("client_id", "path", "sentence", "up_votes", "down_votes", "age", "gender", "accent")
# fmt: on


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """One translated utterance."""

    path: str
    split: str
    translation: Translation
    speaker: ItalianSpeaker

    @property
    def row(self) -> tuple[str, ...]:
        """Its line in Common Voice's tables."""
        client_id = hashlib.sha512(f"dmlm sample {self.speaker.name}".encode()).hexdigest()
        return (client_id, self.path, self.translation.italian, "2", "0", "", "", "")


def plan_clips(
    split: str, translations: Sequence[Translation], speakers: Sequence[ItalianSpeaker], seed: int
) -> list[Clip]:
    """Gives every sentence a speaker and a file name that no other split has."""
    rng = generator_for(seed, "sample", "clips", split)
    first = FIRST_CLIP + 1_000_000 * SPLITS.index(split)
    return [
        Clip(
            path=f"common_voice_it_{first + index}.mp3",
            split=split,
            translation=translation,
            speaker=speakers[int(rng.integers(len(speakers)))],
        )
        for index, translation in enumerate(translations)
    ]


def write_clips(root: Path, clips: Sequence[Clip], num_workers: int | None) -> list[float]:
    """Writes `root`/covost/it and returns the duration of each clip in seconds.

    Raises:
        MissingDependencyError: espeakng-loader is not installed.
    """
    corpus = root / "covost" / "it"

    def write_one(clip_and_waveform: tuple[Clip, Waveform]) -> float:
        clip, waveform = clip_and_waveform
        write_bytes(corpus / "clips" / clip.path, encode_audio(waveform, "MP3"))
        return duration_seconds(waveform)

    # The voice speaks one sentence after the other; encoding, which takes four times as long, is spread.
    with ItalianVoice() as voice:
        spoken = [(clip, voice.speak(clip.translation.italian, clip.speaker)) for clip in clips]
    seconds = list(map_in_order(write_one, spoken, num_workers, "CoVoST layout"))
    _write_tables(corpus, clips)
    return seconds


def _write_tables(corpus: Path, clips: Sequence[Clip]) -> None:
    for split in SPLITS:
        rows = (clip.row for clip in clips if clip.split == split)
        _write_table(corpus / f"{split}.tsv", COMMON_VOICE_COLUMNS, rows)
    _write_table(corpus / "validated.tsv", COMMON_VOICE_COLUMNS, (clip.row for clip in clips))
    rows = ((clip.path, clip.translation.english, clip.split) for clip in clips)
    _write_table(corpus / "covost_v2.it_en.tsv", ("path", "translation", "split"), rows)


def _write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    text = "".join("\t".join(row) + "\n" for row in (columns, *rows))
    write_bytes(path, text.encode())
