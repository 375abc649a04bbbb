"""dmlm-cli: a lazy command group; the commands live in pipeline/commands.py and trainer/commands.py."""

import errno
import importlib
import logging
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import click

from dmlm import __version__
from dmlm.pipeline.errors import DmlmError, ExitCode

COMMANDS = {
    "sample": "dmlm.pipeline.commands:sample",
    "build-codebook": "dmlm.pipeline.commands:build_codebook",
    "tokenize": "dmlm.pipeline.commands:tokenize",
    "verify": "dmlm.pipeline.inspection_commands:verify",
    "index": "dmlm.pipeline.inspection_commands:index",
    "inspect": "dmlm.pipeline.inspection_commands:inspect",
    "train": "dmlm.trainer.commands:train",
    "train-vocoder": "dmlm.trainer.vocoder.commands:train_vocoder",
    "evaluate": "dmlm.trainer.scoring_commands:evaluate",
    "score": "dmlm.trainer.scoring_commands:score",
    "transcribe": "dmlm.trainer.generation_commands:transcribe",
    "translate": "dmlm.trainer.generation_commands:translate",
    "speak": "dmlm.trainer.vocoder.commands:speak",
    "caption": "dmlm.trainer.generation_commands:caption",
    "export": "dmlm.trainer.export_commands:export",
    "experiment": "dmlm.pipeline.experiment_commands:experiment",
    "demo": "dmlm.trainer.commands:demo",
}
"""Every command, in the order of the work; imported only when it is asked for."""

_KEEPING = {"sample", "tokenize", "train", "demo"}
"""Commands that go on from what is finished; `train` says itself when that takes --resume."""
_OF_DISKS = {
    errno.ENOSPC: "free space and run the same command again",
    errno.EDQUOT: "free space, or have the quota raised, and run the same command again",
    errno.EFBIG: "raise the limit of file size (ulimit -f) and run the same command again",
    errno.EIO: "the disk fails: mend or change it, and run the same command again",
    errno.EROFS: "nothing can be written there: give another place, or mount it writable",
}
"""What to do about errors of storage."""
_OF_PATHS = {
    *(errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY),
    *(errno.ELOOP, errno.ENAMETOOLONG),
}


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is first needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the work."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports and returns the command; None when there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        module, function = COMMANDS[cmd_name].split(":")
        command: click.Command = getattr(importlib.import_module(module), function)
        return command


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="dmlm-cli")
def group() -> None:
    """Speech, image and text corpora to discrete tokens, and one language model trained on them.

    \b
    Try it without any data:   dmlm-cli demo --out runs/demo
    On your own corpora:       dmlm-cli tokenize --source librispeech --root /data
                               dmlm-cli train --shards shards/librispeech

    \b
    Exit codes: 0 ok, 2 usage, 3 too many bad samples, 4 storage, 5 corrupt input, 6 training not finite,
    130 interrupted (train saves first), or another process of the run was lost (nothing new is saved;
    the last checkpoint and finished shards are kept). After 130 run the same command again, train with
    --resume: sample, tokenize, train and demo keep what is finished, the others begin anew.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and ends the process with the exit code of the command contract."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; errors become one line on standard error. Returns the exit code."""
    logging.basicConfig(format="dmlm-cli: %(message)s")
    try:
        with _sigterm_interrupts():
            result = group.main(arguments, prog_name="dmlm-cli", standalone_mode=False)
        return result if isinstance(result, int) else ExitCode.OK
    except click.ClickException as error:
        error.show()
        return ExitCode.USAGE
    except DmlmError as error:
        return _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort) as error:
        # click puts an Abort without words in the place of a KeyboardInterrupt that may have some.
        words = str(error.__cause__ or error)
        name = next(iter(sys.argv[1:] if arguments is None else arguments), "")
        return _fail(words or _describe_interruption(name), ExitCode.INTERRUPTED)
    except OSError as error:
        if error.errno in _OF_DISKS:
            return _fail(f"storage: {error}; {_OF_DISKS[error.errno]}", ExitCode.STORAGE)
        if error.errno in _OF_PATHS and error.filename is not None:
            path = error.filename2 or error.filename
            return _fail(f"{path}: {error.strerror}; correct the path or its permissions", ExitCode.USAGE)
        raise


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Inside, SIGTERM raises KeyboardInterrupt, so that scratch folders go; a second one acts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, handler)
        raise KeyboardInterrupt

    handler = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


def _describe_interruption(command: str) -> str:
    how = " to go on" if command in _KEEPING else ": it begins anew"
    return f"interrupted; run the same command again{how}"


def _fail(message: str, code: ExitCode) -> int:
    click.echo(f"dmlm-cli: error: {message}", err=True)
    return code
