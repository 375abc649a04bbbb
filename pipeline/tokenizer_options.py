"""The options that say what tokens are made with.

`build-codebook` makes every part of a codebook folder; `tokenize` takes another in place of one. The
tokenizers themselves are imported when a command runs, so that `--help` answers at once.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

Command = Callable[..., Any]

_CODEBOOK_OPTIONS = (
    click.option(
        "--speech-tokenizer",
        default="kmeans",
        show_default=True,
        help="kmeans over --encoder, or seamless[:DIR], which needs no fit.",
    ),
    click.option(
        "--encoder",
        default="whisper:tiny.en",
        show_default=True,
        help="whisper:NAME|PATH, wav2vec2:, hubert: or wavlm: and NAME|DIR of Hugging Face, or mfcc.",
    ),
    click.option(
        "--layer",
        default="auto",
        show_default=True,
        help="Encoder block from 1; last: after the final norm; auto: Whisper's last but one, else last.",
    ),
    click.option(
        "--clusters",
        "num_clusters",
        type=click.IntRange(min=1),
        default=500,
        show_default=True,
        help="Clusters of speech frames: the number of speech units.",
    ),
    click.option(
        "--fit",
        type=click.Choice(["sample", "stream"]),
        default="sample",
        show_default=True,
        help="k-means over a uniform sample held in memory, or over every frame in one pass.",
    ),
    click.option(
        "--audio-hours",
        type=click.FloatRange(min=0),
        default=1.0,
        show_default=True,
        help="Speech to fit on, drawn from all over the sources; 0: all of it.",
    ),
    click.option(
        "--window",
        type=click.Choice(["exact", "padded"]),
        default="exact",
        show_default=True,
        help="Encode the true length, or pad to 30 s as Whisper was trained.",
    ),
    click.option(
        "--precision",
        type=click.Choice(["auto", "float32", "bfloat16"]),
        default="auto",
        show_default=True,
        help="Of Whisper, here and wherever the codebook is used; auto: bfloat16 on a GPU.",
    ),
    click.option(
        "--text-tokenizer",
        default="bpe:400",
        show_default=True,
        help="A Hugging Face name or folder, a GGUF file, or bpe:N to train one here.",
    ),
    click.option(
        "--image-tokenizer",
        default="patch",
        show_default=True,
        help="patch: k-means over patches, or dalle[:DIR], which needs no fit.",
    ),
    click.option(
        "--image-resolution",
        type=click.IntRange(min=8),
        default=128,
        show_default=True,
        help="Pixels a side of the square that images are resized to; a multiple of 8.",
    ),
    click.option(
        "--image-clusters",
        "num_image_clusters",
        type=click.IntRange(min=1),
        default=512,
        show_default=True,
        help="Clusters of image patches: the number of image codes.",
    ),
)
_CHOICE_OPTIONS = (
    click.option(
        "--speech-tokenizer",
        "speech",
        metavar="seamless[:DIR]",
        help="Units in place of the codebook's; DIR: their weights.  [default: ~/.cache/dmlm/seamless]",
    ),
    click.option(
        "--unit-backend",
        type=click.Choice(["transformers", "fairseq2"]),
        default="transformers",
        show_default=True,
        help="What computes the Seamless units.",
    ),
    click.option(
        "--image-tokenizer",
        "image",
        metavar="dalle[:DIR]",
        help="Image tokens in place of the codebook's; DIR: their weights.  [default: ~/.cache/dmlm/dalle]",
    ),
    click.option(
        "--image-resolution", type=click.IntRange(min=8), help="With --image-tokenizer.  [default: 128]"
    ),
    click.option(
        "--text-tokenizer",
        "text",
        help="Text tokens in place of the codebook's: Hugging Face name or folder, GGUF file, or bpe:256.",
    ),
)


def codebook_options(command: Command) -> Command:
    """Adds the options of what is fitted and with which settings."""
    for option in reversed(_CODEBOOK_OPTIONS):
        command = option(command)
    return command


def tokenizer_options(command: Command) -> Command:
    """Adds the options; the command gets `choice: TokenizerChoice` and `unit_backend`."""

    @wraps(command)
    def with_choice(**settings: Any) -> Any:
        from dmlm.pipeline.tokenizers.choosing import TokenizerChoice

        choice = TokenizerChoice(**{name: settings.pop(name) for name in TokenizerChoice.__slots__})
        return command(choice=choice, **settings)

    for option in reversed(_CHOICE_OPTIONS):
        with_choice = option(with_choice)
    return with_choice
