"""The commands of speech out: parse -> config -> one call.

Heavy modules are imported inside the commands, so that `--help` answers at once.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dmlm.pipeline.commands import announce_default, device_option, resolve_root, root_option, seed_option
from dmlm.pipeline.remote.folder import RemoteFolder
from dmlm.pipeline.remote.options import local_path, shards_option
from dmlm.trainer.generation_commands import checkpoint_option, decoding_options, language_option

if TYPE_CHECKING:
    from dmlm.trainer.decoding import DecodingConfig
    from dmlm.trainer.vocoder.speaking import Spoken


@click.command("train-vocoder", short_help="Learn to turn the speech units of shards into waveforms.")
@shards_option
@root_option()
@click.option("--split", "splits", multiple=True, help="Split or glob; may be repeated.  [default: train*]")
@click.option("--steps", "num_steps", type=click.IntRange(min=1), help="Of training.  [default: 300]")
@seed_option()
@device_option()
@click.option("--out", "out_dir", type=local_path, help="[default: ./vocoder]")
def train_vocoder(
    shard_dirs: tuple[Path, ...],
    root: Path | RemoteFolder | None,
    splits: tuple[str, ...],
    num_steps: int | None,
    seed: int,
    device: str,
    out_dir: Path | None,
) -> None:
    """Learn how long each speech unit lasts and how it sounds, from the recordings the shards were made of.

    `speak` and `evaluate --task t2s` use the result. Units of the Seamless codec need none: give them a
    Seamless model.

    \b
    Example:
      dmlm-cli train-vocoder --shards shards/librispeech --root /data \\
        --out vocoder
    """
    from dmlm.trainer.vocoder.config import TrainVocoderConfig, VocoderRecipe
    from dmlm.trainer.vocoder.training import train_vocoder

    if out_dir is None:
        announce_default("--out", out_dir := Path("vocoder"))
    settings = {"splits": splits or None, "num_steps": num_steps}
    recipe = VocoderRecipe(**{name: value for name, value in settings.items() if value is not None})  # type: ignore[arg-type]
    config = TrainVocoderConfig(
        shards=shard_dirs,
        root=resolve_root(root, None),
        out_dir=out_dir,
        recipe=recipe,
        seed=seed,
        device=device,
    )
    click.echo(train_vocoder(config).table())


@click.command(short_help="Say texts aloud, into WAV files.")
@checkpoint_option
@click.option(
    "--vocoder",
    type=local_path,
    required=True,
    help="Folder of `train-vocoder`, or a Seamless model.",
)
@language_option("texts")
@decoding_options
@device_option()
@click.option("--out", "out_dir", type=local_path, help="Folder.  [default: ./speech]")
@click.argument("texts", nargs=-1, required=True)
def speak(
    checkpoint: Path,
    vocoder: Path,
    language: str | None,
    device: str,
    out_dir: Path | None,
    texts: tuple[str, ...],
    decoding: "DecodingConfig",
) -> None:
    """Say each text with a trained checkpoint, in a WAV file of its own.

    \b
    Example:
      dmlm-cli speak --checkpoint runs/first --vocoder vocoder \\
        "old ships sail home" --out speech
    """
    from dmlm.trainer.vocoder.speaking import SpeakConfig, speak

    if out_dir is None:
        announce_default("--out", out_dir := Path("speech"))
    config = SpeakConfig(
        checkpoint=checkpoint,
        vocoder=vocoder,
        out_dir=out_dir,
        language=language,
        decoding=decoding,
        device=device,
    )
    audio_seconds = seconds = 0.0
    for spoken in speak(config, texts):
        click.echo(f"{spoken.path}\t{spoken.text}{_note(spoken)}")
        audio_seconds += spoken.duration_seconds
        seconds += spoken.seconds
    if audio_seconds:
        factor = f", real-time factor {seconds / audio_seconds:.2f}"
        click.echo(f"{audio_seconds:.1f} s of speech in {seconds:.1f} s{factor}", err=True)


def _note(spoken: "Spoken") -> str:
    """What a user should know of a text that was not said to its end."""
    if spoken.is_finished:
        return ""
    cut = "did not come to an end" if spoken.duration_seconds else "too long for the model: nothing was said"
    return f"\t({cut})"
