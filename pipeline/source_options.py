"""The options that only some sources need, for every command that reads sources.

The sources themselves are imported when a command runs, so that `--help` answers at once.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import click

Command = Callable[..., Any]

_OPTIONS = (
    click.option(
        "--lang-pair",
        help="CoVoST language pair such as it_en, or zh_en for zh-CN_en.  "
        "[default: the only one present; of a codebook: all]",
    ),
    click.option(
        "--microphone",
        type=click.Choice(["ihm-mix", "ihm", "sdm"]),
        default="ihm-mix",
        show_default=True,
        help="AMI: headset mix, each speaker's own headset, or one distant microphone.",
    ),
    click.option(
        "--truncated-words",
        type=click.Choice(["keep", "drop"]),
        default="keep",
        show_default=True,
        help="AMI: words that the speaker broke off.",
    ),
    click.option(
        "--coco-splits",
        type=click.Choice(["2014", "2017", "karpathy"]),
        help="COCO: partition to use.  [default: that of --split, else karpathy where dataset_coco.json is, "
        "else the only year; of a codebook: both years]",
    ),
    click.option(
        "--columns",
        metavar="FIELD=COLUMN,…",
        help="hf: which columns to take, such as text=sentence,key=id.  [default: by type and usual names]",
    ),
    click.option("--language", help="text, units, hf: ISO code of the language of the texts, such as en."),
    click.option(
        "--speed",
        "speeds",
        type=float,
        multiple=True,
        default=(1.0,),
        help="Speech at this speed, pitch following; repeat it for more of the same speech.  [default: 1]",
    ),
)
_UNIT_OPTIONS = (
    click.option(
        "--num-units",
        type=click.IntRange(min=1),
        help="units: size of their codebook.  [default: the largest id + 1]",
    ),
    click.option(
        "--units-name",
        help="units: name of what made them; units of one name fit together.  [default: a hash of the files]",
    ),
)


def source_options(command: Command) -> Command:
    """Adds the options; the command gets them as one `options: SourceOptions`.

    Those that its `--source` does not read are refused; of several sources, `draw_sample` looks.
    """
    return _with_options(command, (*_OPTIONS, *_UNIT_OPTIONS))


def recording_options(command: Command) -> Command:
    """The same for a command that encodes recordings, so that speech that comes as units is no use to it."""
    return _with_options(command, _OPTIONS)


def _with_options(command: Command, added: Sequence[Callable[[Command], Command]]) -> Command:
    @wraps(command)
    def with_source_options(**settings: Any) -> Any:
        from dmlm.pipeline.sources import SourceOptions, check_options

        named = {name: settings.pop(name) for name in SourceOptions.__slots__ if name in settings}
        options = SourceOptions(**named)
        if source := settings.get("source"):
            check_options(options, [source])
        return command(options=options, **settings)

    extended: Command = with_source_options
    for option in reversed(added):
        extended = option(extended)
    return extended
