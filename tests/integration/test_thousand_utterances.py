"""R5: of a thousand utterances some are broken, each in its own way; all are accounted for, exactly."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from dmlm.cli import run
from dmlm.pipeline.codebook_building import BuildCodebookConfig, build_codebook
from dmlm.pipeline.corpus_sampling import SourceShare
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
}
NUM_REPAIRED = 2
"""Then five are left, which the budget allows."""


@pytest.fixture
def corpus(amount: Callable[[int, int], int], tmp_path: Path) -> Path:
    """A list of utterances with the faults spread over it."""
    folder, num_utterances = tmp_path / "corpus", amount(100, 1_000)
    folder.mkdir()
    names = [f"good-{number:04d}" for number in range(num_utterances - len(FAULTS))]
    for number, name in enumerate(FAULTS):
        names.insert(number * num_utterances // len(FAULTS), name)
    lines = []
    for name in names:
        FAULTS.get(name, sound)(folder / f"{name}.wav")
        text = "\ud800" if name == "surrogate" else "a word"
        lines.append(json.dumps({"key": name, "audio": f"{name}.wav", "text": text}))
    (folder / "train.jsonl").write_text("\n".join(lines))
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


def test_every_item_is_accounted_for_and_the_budget_holds(
    amount: Callable[[int, int], int],
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

    repaired = list(FAULTS)[:NUM_REPAIRED]
    for name in repaired:
        sound(corpus / f"{name}.wav")
    assert run(arguments) == ExitCode.OK
    totals = load_dataset_card(out_dir).totals
    num_bad = len(FAULTS) - NUM_REPAIRED
    assert (totals.num_in, totals.num_skipped, totals.num_quarantined) == (num_utterances, 0, num_bad)
    assert totals.num_out == num_utterances - num_bad
    entries = [json.loads(line) for line in (out_dir / "ledger.jsonl").read_text().splitlines()]
    keys = [entry["key"] for entry in entries]
    # A line that names a missing file is broken as a line, and has the key of its place.
    assert [key if key in FAULTS else key[:5] for key in keys] == [
        "nan",
        "eight-channels",
        "rate",
        "train",
        "surrogate",
    ]
    assert all(entry.keys() >= {"key", "stage", "error", "reason"} for entry in entries)
    recordings = {entry["key"]: entry["sha256"] for entry in entries if "sha256" in entry}
    named = ("nan", "eight-channels", "rate", "surrogate")  # the missing one has no bytes
    assert recordings == {name: sha256_file(corpus / f"{name}.wav") for name in named}
    verify_dataset(out_dir)
