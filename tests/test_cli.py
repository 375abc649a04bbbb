"""The command contract: names, help, exit codes, one-line errors without a traceback."""

import errno
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from dmlm.cli import COMMANDS, group, run
from dmlm.pipeline.errors import RankError
from dmlm.pipeline.experiment_commands import experiment

RECORDING_OPTIONS = (
    *("--lang-pair", "--microphone", "--truncated-words", "--coco-splits", "--language"),
    *("--columns", "--speed"),
)
SOURCE_OPTIONS = (*RECORDING_OPTIONS, "--num-units", "--units-name")
DECODING_OPTIONS = (
    *("--beams", "--temperature", "--top-p", "--seed"),
    *("--length-penalty", "--max-new-tokens", "--batch-size"),
)
OPTIONS = {
    "sample": {"--out", "--seed", "--text", "--hours", "--limit"},
    "build-codebook": {
        *("--source", "--root", "--split", *SOURCE_OPTIONS, "--encoder", "--layer", "--clusters", "--window"),
        *("--speech-tokenizer", "--text-tokenizer", "--fit", "--precision", "--audio-hours"),
        *("--image-tokenizer", "--image-resolution", "--image-clusters"),
        *("--limit", "--seed", "--device", "--out"),
    },
    "tokenize": {
        *("--source", "--root", "--split", *SOURCE_OPTIONS, "--codebook", "--out", "--limit", "--device"),
        *(
            "--speech-tokenizer",
            "--unit-backend",
            "--image-tokenizer",
            "--image-resolution",
            "--text-tokenizer",
            "--dry-run",
            "--reuse",
        ),
        *("--engine", "--workers", "--ray-address", "--task-index", "--num-tasks"),
    },
    "verify": {"--shards", "--reencode", "--root", "--seed", "--device"},
    "index": {"--shards"},
    "inspect": {
        *("--shards", "--key", "--codebook", "--source", "--root", "--split", *RECORDING_OPTIONS),
        *("--limit", "--seed", "--device", "--out", "--html"),
    },
    "train": {
        *("--shards", "--recipe", "--init", "--out", "--resume", "--seed", "--limit", "--device"),
        *("--tracker", "--set"),
    },
    "train-vocoder": {"--shards", "--root", "--out", "--split", "--steps", "--seed", "--device"},
    "evaluate": {
        *("--checkpoint", "--shards", "--train-shards", "--task", "--split", "--out", "--limit", "--device"),
        *("--key", "--vocoder", "--root", "--listener", *DECODING_OPTIONS),
    },
    "score": {"--task", "--references", "--hypotheses", "--language", "--text-rule", "--out"},
    "transcribe": {"--checkpoint", "--language", "--device", *DECODING_OPTIONS},
    "translate": {"--checkpoint", "--to", "--device", *DECODING_OPTIONS},
    "speak": {"--checkpoint", "--vocoder", "--language", "--out", "--device", *DECODING_OPTIONS},
    "caption": {"--checkpoint", "--language", "--device", *DECODING_OPTIONS},
    "export": {"--checkpoint", "--out"},
    "experiment": set(),  # each experiment has its own
    "demo": {"--out", "--recipe", "--spoken", "--seed"},
}
"""The options of every command are frozen: adding one is a decision, recorded here."""


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"Example:\n    dmlm-cli {name}" in text
    found = {word.strip(",") for word in text.split() if word.startswith("--")} - {"--help"}
    assert OPTIONS[name] <= found


def command_of(words: Iterator[str]) -> click.Command:
    """The command that an example's first words name."""
    command: click.Command = group
    while isinstance(command, click.Group):
        name = next(words)
        found = command.get_command(click.Context(command), name)
        assert found is not None, f"no command {name}"
        command = found
    return command


@pytest.mark.parametrize("name", [*COMMANDS, "experiment codebook-sweep"])
def test_examples_of_the_help_can_be_pasted(name: str) -> None:
    command = command_of(iter(name.split())) if name != "experiment" else experiment
    context = click.Context(command, terminal_width=80, info_name=name)
    text = command.get_help(context)
    assert max(map(len, text.splitlines())) <= 80
    lines = text.replace("\\\n", " ").splitlines()
    examples = [line.strip() for line in lines if line.strip().startswith("dmlm-cli")]
    assert examples
    for example in examples:
        words = iter(shlex.split(example)[1:])
        shown = command_of(words)
        shown.make_parser(click.Context(shown)).parse_args(
            list(words)
        )  # raises where there is no such option


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_has_an_option_outside_the_contract(name: str) -> None:
    import click

    from dmlm.cli import group

    command = group.get_command(click.Context(group), name)
    assert command is not None
    options = {
        option for p in command.params if isinstance(p, click.Option) for option in p.opts if option[1] == "-"
    }
    assert options == OPTIONS[name]


def test_a_sweep_takes_no_options_of_ready_made_units() -> None:
    options = {option for p in command_of(iter(["experiment", "codebook-sweep"])).params for option in p.opts}
    assert {*RECORDING_OPTIONS} < options
    assert not options & {"--num-units", "--units-name"}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["tokenise"], 2, "No such command"),
        (["tokenize"], 2, "Missing option '--source'"),
        (["tokenize", "--source", "librispeach"], 2, "librispeech"),
        (["tokenize", "--source", "librispeech", "--root", "{tmp}"], 2, "LibriSpeech"),
        (["tokenize", "--source", "coco", "--root", "{tmp}", "--codebook", "{tmp}/none"], 2, "none"),
        (["build-codebook", "--window", "half"], 2, "'exact', 'padded'"),
        (["build-codebook", "--layer", "minus", "--root", "{tmp}"], 2, "layer"),
        (["build-codebook", "--encoder", "hubbert:base", "--root", "{tmp}"], 2, "did you mean 'hubert'"),
        (["build-codebook", "--encoder", "mfcc", "--window", "padded", "--root", "{tmp}"], 2, "no windows"),
        (["build-codebook", "--encoder", "mfcc", "--precision", "bfloat16", "--root", "{tmp}"], 2, "float32"),
        (
            ["build-codebook", "--speech-tokenizer", "seamless", "--layer", "3", "--root", "{tmp}"],
            2,
            "layer 3",
        ),
        (
            ["build-codebook", "--speech-tokenizer", "seamless", "--audio-hours", "2", "--root", "{tmp}"],
            2,
            "(--audio-hours): seamless needs no fit",
        ),
        (["build-codebook", "--image-tokenizer", "dalle:{tmp}/none", "--root", "{tmp}"], 2, "none"),
        (["tokenize", "--source", "coco", "--root", "{tmp}", "--image-tokenizer", "patch"], 2, "dalle"),
        (["tokenize", "--source", "coco", "--root", "{tmp}", "--image-resolution", "256"], 2, "belongs to"),
        (["tokenize", "--source", "coco", "--root", "{tmp}", "--text-tokenizer", "bpe:300"], 2, "bpe:256"),
        (
            ["tokenize", "--source", "jsonl", "--root", "{tmp}", "--language", "it"],
            2,
            "--language: not read by --source jsonl, only by hf, text, units",
        ),
        (["tokenize", "--source", "librispeech", "--root", "{tmp}", "--lang-pair", "it_en"], 2, "covost"),
        (["tokenize", "--source", "text", "--root", "{tmp}", "--speed", "0.9"], 2, "--speed: not read by"),
        (
            ["inspect", "--codebook", "{tmp}", "--source", "ami", "--root", "{tmp}", "--columns", "key=id"],
            2,
            "--columns: not read by --source ami",
        ),
        (["tokenize", "--source", "coco", "--dry-run", "--reuse", "{tmp}"], 2, "leave out --reuse"),
        (["tokenize", "--source", "coco", "--dry-run", "--workers", "2"], 2, "leave out --engine, --workers"),
        (["tokenize", "--source", "coco", "--dry-run", "--engine", "ray"], 2, "leave out --engine"),
        (
            ["tokenize", "--source", "coco", "--dry-run", "--task-index", "0", "--num-tasks", "2"],
            2,
            "leave out --engine",
        ),
        (["tokenize", "--source", "coco", "--ray-address", "host:1"], 2, "goes with --engine ray"),
        (["verify", "--shards", "{tmp}", "--root", "{tmp}"], 2, "--root belongs to --reencode"),
        (["verify", "--shards", "{tmp}", "--seed", "1"], 2, "--seed belongs to --reencode"),
        (["verify", "--shards", "{tmp}", "--device", "cpu"], 2, "--device belongs to --reencode"),
        (["build-codebook", "--clusters", "0", "--root", "{tmp}"], 2, "clusters"),
        (["build-codebook", "--audio-hours", "-1", "--root", "{tmp}"], 2, "audio-hours"),
        (["build-codebook", "--audio-hours", "inf", "--root", "{tmp}"], 2, "0 is all audio"),
        (["tokenize", "--source", "coco", "--root", "{tmp}", "--task-index", "1"], 2, "--num-tasks"),
        (["verify", "--shards", "{tmp}"], 5, "dataset.json"),
        (["index", "--shards", "{tmp}"], 5, "dataset.json"),
        (["index", "--shards", "s3://bucket/x"], 2, "s3://bucket/x: must be a path of this machine"),
        (["train", "--shards", "{tmp}", "--out", "{tmp}/run"], 5, "dataset.json"),
        (
            ["train", "--shards", "pipe:touch {tmp}/canary", "--out", "{tmp}/run"],
            2,
            "(pipes and brace patterns are not read)",
        ),
        (["train", "--shards", "{tmp}", "--recipe", "domo", "--out", "{tmp}/run"], 2, "demo"),
        (["evaluate", "--checkpoint", "{tmp}", "--shards", "{tmp}", "--task", "asr"], 2, "checkpoint"),
        (["transcribe", "--checkpoint", "{tmp}", "{tmp}/a.wav"], 2, "checkpoint"),
        (["translate", "--checkpoint", "{tmp}", "--to", "de", "{tmp}/a.wav"], 2, "checkpoint"),
        (
            ["caption", "--checkpoint", "{tmp}", "--beams", "2", "--temperature", "1", "{tmp}/a.png"],
            2,
            "beams",
        ),
        (["train-vocoder", "--shards", "{tmp}", "--root", "{tmp}", "--out", "{tmp}/v"], 5, "dataset.json"),
        (["speak", "--checkpoint", "{tmp}", "--vocoder", "{tmp}", "--out", "{tmp}/x", "hi"], 2, "checkpoint"),
        (
            ["score", "--references", "{tmp}/none", "--hypotheses", "{tmp}/none"],
            2,
            "none: cannot be read (No such",
        ),
        (
            ["score", "--references", "{tmp}/none", "--hypotheses", "{tmp}/none", "--text-rule", "nonsense"],
            2,
            "'nonsense' is not one of 'verbatim', 'lower', 'plain', 'ami'",
        ),
        *(
            (
                ["score", "--task", task, "--references", "{tmp}", "--hypotheses", "{tmp}", *given],
                2,
                "--text-rule belongs to --task asr: give that, or leave it out",
            )
            for task in ("s2tt", "i2t")
            for given in (["--text-rule", "lower"], ["--text-rule", "plain"])
        ),
        (["export", "--checkpoint", "{tmp}", "--out", "{tmp}/model"], 2, "checkpoint"),
        (["sample", "--out", "{tmp}", "--text", "{tmp}/none.txt"], 2, "none.txt"),
    ],
)
def test_bad_input_ends_with_a_short_message_and_its_exit_code(
    arguments: list[str], code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert run([argument.format(tmp=tmp_path) for argument in arguments]) == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert len([line for line in error.splitlines() if line.startswith(("dmlm-cli: error", "Error"))]) == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate", "--shards", "{tmp}"],
        ["transcribe", "{tmp}/a.wav"],
        ["translate", "{tmp}/a.wav"],
        ["caption", "{tmp}/a.png"],
        ["speak", "--vocoder", "{tmp}", "--out", "{tmp}/x", "hi"],
    ],
)
@pytest.mark.parametrize(("option", "name"), [("--seed=7", "seed"), ("--top-p=0.9", "top_p")])
def test_options_of_sampling_are_refused_without_a_temperature(
    option: str, name: str, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [argument.format(tmp=tmp_path) for argument in arguments]
    given += ["--checkpoint", str(tmp_path), option]
    assert run(given) == 2
    assert f"{name} belongs to sampling: give a temperature, too" in capsys.readouterr().err
    assert run([*given, "--temperature", "1"]) == 2
    assert "no checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value"), [("--vocoder", "{tmp}"), ("--listener", "whisper:{tmp}"), ("--root", "{tmp}")]
)
@pytest.mark.parametrize("task", ["asr", "s2tt", "i2t"])
def test_options_of_spoken_output_are_refused_for_other_tasks(
    task: str, option: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["evaluate", "--checkpoint", str(tmp_path), "--shards", str(tmp_path), "--task"]
    option_given = [option, value.format(tmp=tmp_path)]
    assert run([*given, task, *option_given]) == 2
    assert f"{option} belongs to --task t2s: give that, or leave it out" in capsys.readouterr().err
    assert run([*given, "t2s", *option_given]) == 2  # there is no checkpoint
    assert "belongs to" not in capsys.readouterr().err


def test_a_root_of_the_environment_is_left_alone_by_tasks_that_read_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DMLM_DATA", str(tmp_path))
    assert run(["evaluate", "--checkpoint", str(tmp_path), "--shards", str(tmp_path)]) == 2
    assert "no checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--shards", "{tmp}"], ["--codebook", "{tmp}", "--source", "coco"]])
@pytest.mark.parametrize("option", ["--out", "--html"])
def test_what_cannot_be_written_is_a_usage_error_before_the_work(
    option: str, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [argument.format(tmp=tmp_path) for argument in arguments]
    assert run(["inspect", *given, option, str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"dmlm-cli: error: {tmp_path}: Is a directory")


def test_a_path_of_the_wrong_kind_is_a_usage_error_that_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts").write_text("a\tHELLO\n")
    texts = str(tmp_path / "texts")
    for out in (tmp_path, tmp_path / "texts" / "scores.json"):
        assert run(["score", "--references", texts, "--hypotheses", texts, "--out", str(out)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"dmlm-cli: error: {tmp_path}")
        assert len(error.splitlines()) == 1


@pytest.mark.parametrize("name", [*(name for name in COMMANDS if name != "experiment"), "codebook-sweep"])
def test_an_address_does_not_become_a_folder_of_that_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["experiment", name] if name == "codebook-sweep" else [name]
    options = {option for parameter in command_of(iter(words)).params for option in parameter.opts}
    places = {"--out", "--html", "--codebook", "--checkpoint", "--vocoder"} & options
    for option in places - {"--out"} if name == "tokenize" else places:
        assert run([*words, option, "s3://bucket/x"]) == 2
        assert "s3://bucket/x: must be a path of this machine" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "free space and run the same command again"),
        (errno.EROFS, "nothing can be written there: give another place"),
        (errno.EFBIG, "raise the limit of file size"),
    ],
)
def test_advice_about_storage_fits_what_happened(
    number: int, advice: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    def train() -> None:
        raise OSError(number, "trouble", "x")

    monkeypatch.setattr(group, "get_command", lambda context, name: train)
    assert run(["train"]) == 4
    assert advice in capsys.readouterr().err


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "gone", "x"), PermissionError("no path")])
def test_an_error_that_no_path_explains_stays_what_it_is(
    error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    @click.command()
    def train() -> None:
        raise error

    monkeypatch.setattr(group, "get_command", lambda context, name: train)
    with pytest.raises(type(error)):
        run(["train"])


@pytest.mark.parametrize(
    ("name", "words", "shown"),
    [
        ("train", "stopped and saved; go on with --resume", "stopped and saved; go on with --resume"),
        ("train", "", "interrupted; run the same command again to go on"),
        ("evaluate", "", "interrupted; run the same command again: it begins anew"),
    ],
)
def test_an_interrupted_command_says_how_to_go_on(
    name: str, words: str, shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    def command() -> None:
        raise KeyboardInterrupt(words)

    monkeypatch.setattr(group, "get_command", lambda context, name: command)
    assert run([name]) == 130
    assert capsys.readouterr().err.strip() == f"dmlm-cli: error: {shown}"


def test_a_lost_process_ends_as_an_interruption_and_help_says_what_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["--help"]) == 0
    assert "130 interrupted" in (text := capsys.readouterr().out)
    assert "the last checkpoint and finished shards are kept" in text

    @click.command()
    def train() -> None:
        raise RankError("rank 0: another rank ended")

    monkeypatch.setattr(group, "get_command", lambda context, name: train)
    assert run(["train"]) == 130
    assert capsys.readouterr().err == "dmlm-cli: error: rank 0: another rank ended\n"
