"""Text to speech is scored by what Whisper hears in it."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dmlm.pipeline.audio import SAMPLING_RATE_HZ, load_utterance
from dmlm.pipeline.encoders.weights import WHISPER
from dmlm.pipeline.samples import Modality, TokenArray, Utterance, Waveform
from dmlm.trainer.checkpoint import Checkpoint
from dmlm.trainer.scoring.evaluation_report import shareable_name
from dmlm.trainer.scoring.references import Reference
from dmlm.trainer.vocoder.listening import Listener, hear_recordings, speak_units
from dmlm.trainer.vocoder.recordings import UnitRow, check_length, find_utterances
from dmlm.trainer.vocoder.synthesis import UnitVocoder, open_vocoder
from dmlm.trainer.vocoder.wav import write_wav

RECORDINGS: Final = "recordings"
"""Name of the control that no vocoder speaks."""
_SPEECH_NAME = re.compile(r"\d{4,}\.wav")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SpeechTools:
    """What makes speech of units, what hears it, and what is heard beside it."""

    vocoder: UnitVocoder
    listener: Listener
    recordings: tuple[Utterance, ...] | None
    """Of the references; None: they are not to be heard."""

    @property
    def listener_name(self) -> str:
        """As `--listener` takes it, without a folder of this machine."""
        return WHISPER + shareable_name(Path(self.listener.name.removeprefix(WHISPER)))

    def signature(self, control: str | None = None) -> str:
        """Who heard and what spoke, of a control or of what the model says; scores depend on both.

        Folders of two vocoders may have one name, so the first digits of the weights' hash stand behind.
        """
        vocoder = f"{self.vocoder.waveform_maker}:{self.vocoder.weights_sha256:.8}"
        listener = f"{self.listener_name}:{self.listener.weights_sha256:.8}"
        return f"listener:{listener}|speech:{RECORDINGS if control == RECORDINGS else vocoder}"

    def to_json(self) -> dict[str, str]:
        """What made the scores, for the settings of the result."""
        return {
            "waveform_maker": self.vocoder.waveform_maker,
            "vocoder_sha256": self.vocoder.weights_sha256,
            "listener": self.listener_name,
            "listener_sha256": self.listener.weights_sha256,
        }


def open_speech_tools(
    checkpoint: Checkpoint,
    references: Sequence[Reference],
    *,
    vocoder_dir: Path,
    listener: str,
    root: Path | None,
    device: str,
) -> SpeechTools:
    """Finds the recordings and opens vocoder and listener, before anything is decoded for them.

    Args:
        checkpoint: Whose units are to be spoken.
        references: Whose languages are to be heard.
        vocoder_dir: What `train-vocoder` wrote, or a Seamless vocoder.
        listener: A Whisper, as `--encoder` takes it.
        root: Folder of the corpora; None: the recordings are not to be heard.
        device: Of vocoder and listener.

    Raises:
        ConfigError: There is no such vocoder or Whisper, one of them does not know a language, or a corpus
            is not at `root` or has no such recording.
        FingerprintMismatchError: The vocoder speaks other units, or the root holds other audio.
        AudioError: A recording cannot be read.
        CorruptInputError: Vocoder or Whisper is damaged.
    """
    recordings = None if root is None else _find_recordings(references, root)
    ears = Listener(listener, device)
    vocoder = open_vocoder(vocoder_dir, checkpoint.settings.fingerprints[Modality.SPEECH], device)
    for tool in (ears, vocoder):
        tool.check_languages({reference.language for reference in references})
    return SpeechTools(vocoder=vocoder, listener=ears, recordings=recordings)


def hear_speech(
    checkpoint: Checkpoint,
    references: Sequence[Reference],
    units: Sequence[TokenArray],
    tools: SpeechTools,
    *,
    speech_dir: Path,
) -> tuple[list[str], dict[str, list[str]]]:
    """What is heard in the units generated; and, as controls, in the true units and in the recordings.

    Args:
        checkpoint: Of which the units are.
        references: What was to be said, with the true units.
        units: Generated, of each reference.
        tools: To speak and to hear.
        speech_dir: Where the speech generated is written, `0001.wav` and so on in the order given; what an
            earlier evaluation wrote there goes.
    """
    vocoder, listener = tools.vocoder, tools.listener
    languages = [reference.language for reference in references]
    are_runs = checkpoint.settings.recipe.sequence.collapse_runs
    rate_hz = vocoder.sampling_rate_hz
    _remove_old_speech(speech_dir)
    generated = speak_units(vocoder, units, are_runs=are_runs, languages=languages)
    heard = listener.hear(_write_speech(generated, speech_dir, rate_hz), languages, rate_hz)
    true_units = [reference.sample.speech_tokens for reference in references]
    resynthesis = speak_units(
        vocoder, [array for array in true_units if array is not None], are_runs=False, languages=languages
    )
    controls = {"true units": listener.hear(resynthesis, languages, rate_hz)}
    if tools.recordings is not None:
        controls[RECORDINGS] = hear_recordings(tools.recordings, languages, listener)
    return heard, controls


def _find_recordings(references: Sequence[Reference], root: Path) -> tuple[Utterance, ...]:
    """Of each reference, as long as its units say."""
    keys: dict[Path, list[str]] = {}
    for reference in references:
        keys.setdefault(reference.directory, []).append(reference.sample.key)
    found = {directory: find_utterances(directory, root, group) for directory, group in keys.items()}
    recordings = tuple(found[reference.directory][reference.sample.key] for reference in references)
    for reference, recording in zip(references, recordings, strict=True):
        units = reference.sample.speech_tokens
        assert units is not None, "t2s has references with speech only"
        row = UnitRow(key=recording.key, units=units)
        check_length(row, len(load_utterance(recording, SAMPLING_RATE_HZ)), SAMPLING_RATE_HZ)
    return recordings


def _write_speech(waveforms: Iterable[Waveform], speech_dir: Path, rate_hz: int) -> Iterator[Waveform]:
    """Yields the waveforms while it writes them."""
    for number, waveform in enumerate(waveforms, 1):
        write_wav(speech_dir / f"{number:04d}.wav", waveform, rate_hz)
        yield waveform


def _remove_old_speech(speech_dir: Path) -> None:
    """An earlier, longer evaluation left more files than this one writes over."""
    for path in speech_dir.glob("*.wav"):
        if _SPEECH_NAME.fullmatch(path.name):
            path.unlink()
