"""Text to speech is scored by what Whisper hears in it."""

from collections.abc import Sequence
from pathlib import Path

from dmlm.pipeline.samples import Modality, TokenArray
from dmlm.trainer.checkpoint import Checkpoint
from dmlm.trainer.scoring.references import Reference
from dmlm.trainer.vocoder.listening import Listener, hear_recordings, speak_units
from dmlm.trainer.vocoder.synthesis import open_vocoder
from dmlm.trainer.vocoder.wav import write_wav


def hear_speech(
    checkpoint: Checkpoint,
    references: Sequence[Reference],
    units: Sequence[TokenArray],
    *,
    vocoder_dir: Path,
    shard_dirs: Sequence[Path],
    root: Path | None,
    speech_dir: Path,
    device: str,
) -> tuple[list[str], dict[str, list[str]]]:
    """What is heard in the units generated; and, as controls, in the true units and in the recordings.

    Args:
        checkpoint: Of which the units are.
        references: What was to be said, with the true units.
        units: Generated, of each reference.
        vocoder_dir: What `train-vocoder` wrote, or a Seamless vocoder.
        shard_dirs: Data sets of the references.
        root: Folder of the corpora; None: the recordings are not heard.
        speech_dir: Where the speech generated is written, `0001.wav` and so on in the order given.
        device: Of the vocoder and of Whisper.
    """
    listener = Listener(device=device)
    vocoder = open_vocoder(vocoder_dir, checkpoint.settings.fingerprints[Modality.SPEECH], device)
    languages = [reference.language for reference in references]
    are_runs = checkpoint.settings.recipe.sequence.collapse_runs
    generated = speak_units(vocoder, units, are_runs=are_runs, languages=languages)
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
