"""R5: of a thousand utterances some are broken, each in its own way; all are accounted for, exactly."""

import json
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from dmlm.cli import run
from dmlm.pipeline.codebooks.building import BuildCodebookConfig, build_codebook
from dmlm.pipeline.codebooks.corpus_sampling import SourceShare
from dmlm.pipeline.errors import ExitCode
from dmlm.pipeline.shards import load_dataset_card, verify_dataset
from dmlm.pipeline.storage import sha256_file

RATE_HZ = 16_000


def sound(path: Path, rate_hz: int = RATE_HZ, num_channels: int = 1, num_samples: int = 4_000) -> None:
    waves = np.random.default_rng(0).uniform(-0.1, 0.1, (num_samples, num_channels))
    soundfile.write(path, waves, rate_hz)


def not_finite(path: Path) -> None:
    soundfile.write(path, np.full(4_000, np.nan, np.float32), RATE_HZ, subtype="FLOAT")


FAULTS: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "no-samples": lambda path: sound(path, num_samples=0),
    "nan": not_finite,
    "eight-channels": lambda path: sound(path, num_channels=8),
    "rate": lambda path: sound(path, rate_hz=1_000),
    "missing": lambda path: path.unlink(missing_ok=True),
    "surrogate": sound,
    "not-utf8": sound,
}
TEXTS = {"surrogate": b'"\\ud800"', "not-utf8": b'"\xff\xfe"'}
"""As bytes of json; all others have sound words."""
LINES_ONLY = ("missing", "not-utf8")
"""They are broken as a line: it has the key of its place, and no recording is named."""
REPAIRED = (("empty", "no-samples", "surrogate"), ("nan", "rate", "eight-channels"))
"""Then five are left, which the budget allows; each fault is among them once at least."""


def names_of(num_utterances: int) -> list[str]:
    """Sound ones, with the faults spread over them."""
    names = [f"good-{number:04d}" for number in range(num_utterances - len(FAULTS))]
    for number, name in enumerate(FAULTS):
        names.insert(number * num_utterances // len(FAULTS), name)
    return names


def write_lines(folder: Path, names: Iterable[str], repaired: Collection[str] = ()) -> None:
    texts = {name: text for name, text in TEXTS.items() if name not in repaired}
    line = b'{"key": "%b", "audio": "%b.wav", "text": %b}\n'
    lines = (line % (name.encode(), name.encode(), texts.get(name, b'"a word"')) for name in names)
    (folder / "train.jsonl").write_bytes(b"".join(lines))


@pytest.fixture
def corpus(amount: Callable[[int, int], int], tmp_path: Path) -> Path:
    """A list of utterances, some of them broken."""
    folder, names = tmp_path / "corpus", names_of(amount(100, 1_000))
    folder.mkdir()
    for name in names:
        FAULTS.get(name, sound)(folder / f"{name}.wav")
    write_lines(folder, names)
    build_codebook(
        BuildCodebookConfig(
            root=folder,
            sources=(SourceShare(name="jsonl"),),
            out_dir=tmp_path / "codebook",
            encoder="mfcc",
            num_clusters=8,
            text_tokenizer="bpe:256",
            max_audio_seconds=2,
        )
    )
    return folder


@pytest.mark.parametrize("repaired", REPAIRED, ids="-".join)
def test_every_item_is_accounted_for_and_the_budget_holds(
    amount: Callable[[int, int], int],
    repaired: tuple[str, ...],
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out_dir, num_utterances = tmp_path / "out", amount(100, 1_000)
    command = ["tokenize", "--source", "jsonl", "--root", corpus, "--codebook", tmp_path / "codebook"]
    arguments = [*map(str, command), "--out", str(out_dir)]
    assert run(arguments) == ExitCode.TOO_MANY_BAD_SAMPLES
    assert "6 bad samples" in capsys.readouterr().err
    assert not (out_dir / "dataset.json").exists()

    for name in repaired:
        sound(corpus / f"{name}.wav")
    names = names_of(num_utterances)
    write_lines(corpus, names, repaired)
    assert run(arguments) == ExitCode.OK
    totals = load_dataset_card(out_dir).totals
    bad = [name for name in FAULTS if name not in repaired]
    assert (totals.num_in, totals.num_skipped, totals.num_quarantined) == (num_utterances, 0, len(bad))
    assert totals.num_out == num_utterances - len(bad)
    entries = [json.loads(line) for line in (out_dir / "ledger.jsonl").read_text().splitlines()]
    places = {name: f"train-{names.index(name) + 1:08d}" for name in LINES_ONLY}
    assert [entry["key"] for entry in entries] == [places.get(name, name) for name in bad]
    assert all(entry.keys() >= {"key", "stage", "error", "reason"} for entry in entries)
    recordings = {entry["key"]: entry["sha256"] for entry in entries if "sha256" in entry}
    named = (name for name in bad if name not in LINES_ONLY)
    assert recordings == {name: sha256_file(corpus / f"{name}.wav") for name in named}
    verify_dataset(out_dir)
