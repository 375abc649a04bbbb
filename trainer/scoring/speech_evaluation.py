"""Text to speech is scored by what Whisper hears in it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dmlm.pipeline.samples import Modality, TokenArray
from dmlm.trainer.checkpoint import Checkpoint
from dmlm.trainer.scoring.references import Reference
from dmlm.trainer.vocoder.listening import Listener, hear_recordings, speak_units
from dmlm.trainer.vocoder.synthesis import UnitVocoder, open_vocoder
from dmlm.trainer.vocoder.wav import write_wav

_SPEECH_NAME = re.compile(r"\d{4,}\.wav")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SpeechTools:
    """What makes speech of units, and what hears it."""

    vocoder: UnitVocoder
    listener: Listener


def open_speech_tools(
    checkpoint: Checkpoint,
    references: Sequence[Reference],
    *,
    vocoder_dir: Path,
    listener: str,
    device: str,
) -> SpeechTools:
    """Opens both, before anything is decoded for them.

    Args:
        checkpoint: Whose units are to be spoken.
        references: Whose languages are to be heard.
        vocoder_dir: What `train-vocoder` wrote, or a Seamless vocoder.
        listener: A Whisper, as `--encoder` takes it.
        device: Of both.

    Raises:
        ConfigError: There is no such vocoder or Whisper, or that Whisper does not know a language.
        FingerprintMismatchError: The vocoder speaks other units.
        CorruptInputError: One of them is damaged.
    """
    ears = Listener(listener, device)
    ears.check_languages({reference.language for reference in references})
    vocoder = open_vocoder(vocoder_dir, checkpoint.settings.fingerprints[Modality.SPEECH], device)
    return SpeechTools(vocoder=vocoder, listener=ears)


def hear_speech(
    checkpoint: Checkpoint,
    references: Sequence[Reference],
    units: Sequence[TokenArray],
    tools: SpeechTools,
    *,
    shard_dirs: Sequence[Path],
    root: Path | None,
    speech_dir: Path,
) -> tuple[list[str], dict[str, list[str]]]:
    """What is heard in the units generated; and, as controls, in the true units and in the recordings.

    Args:
        checkpoint: Of which the units are.
        references: What was to be said, with the true units.
        units: Generated, of each reference.
        tools: To speak and to hear.
        shard_dirs: Data sets of the references.
        root: Folder of the corpora; None: the recordings are not heard.
        speech_dir: Where the speech generated is written, `0001.wav` and so on in the order given; what an
            earlier evaluation wrote there goes.
    """
    vocoder, listener = tools.vocoder, tools.listener
    languages = [reference.language for reference in references]
    are_runs = checkpoint.settings.recipe.sequence.collapse_runs
    generated = speak_units(vocoder, units, are_runs=are_runs, languages=languages)
    _remove_old_speech(speech_dir)
    for number, waveform in enumerate(generated, 1):
        write_wav(speech_dir / f"{number:04d}.wav", waveform, vocoder.sampling_rate_hz)
    true_units = [reference.sample.speech_tokens for reference in references]
    resynthesis = speak_units(
        vocoder, [array for array in true_units if array is not None], are_runs=False, languages=languages
    )
    controls = {"true units": listener.hear(resynthesis, languages, vocoder.sampling_rate_hz)}
    if root is not None:
        keys = [reference.sample.key for reference in references]
        controls["recordings"] = hear_recordings(shard_dirs, root, keys, languages, listener)
    return listener.hear(generated, languages, vocoder.sampling_rate_hz), controls


def _remove_old_speech(speech_dir: Path) -> None:
    """An earlier, longer evaluation left more files than this one writes over."""
    for path in speech_dir.glob("*.wav"):
        if _SPEECH_NAME.fullmatch(path.name):
            path.unlink()
