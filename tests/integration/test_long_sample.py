"""R14: memory is bounded whatever a recording claims: what is too long costs its own sample and no memory."""

import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile

from dmlm.pipeline.codebooks.building import BuildCodebookConfig, build_codebook
from dmlm.pipeline.codebooks.corpus_sampling import SourceShare

LONG_SECONDS = 10 * 3_600
BLOCK_BYTES = 16 << 20
"""More than a block of any rate takes while it is decoded and resampled."""

TOKENIZE = """
import json, sys
from pathlib import Path
from dmlm.pipeline.tokenization.planning import TokenizeConfig
from dmlm.pipeline.tokenization.running import tokenize

folder, name = Path(sys.argv[1]), sys.argv[2]
config = TokenizeConfig(
    source="jsonl", root=folder / name, codebook_dir=folder / "codebook", out_dir=folder / f"{name}-out"
)
report = tokenize(config)
print(json.dumps([report.num_out, report.num_quarantined]))
"""
LOOK_SECONDS = 0.02
"""A decoder ends with the run, and its peak with it: what grew since the last look is missed."""

LOAD = """
import sys
from pathlib import Path
from dmlm.pipeline.audio import load_waveform

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))

load_waveform(Path(sys.argv[1]), 0.0, 1.0)
before = status("VmRSS")
waveform = load_waveform(Path(sys.argv[1]), *map(float, sys.argv[2:]))
print(waveform.nbytes, status("VmHWM") - before)
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peak memory is in /proc")


def run(code: str, *arguments: object) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]


def run_watched(code: str, *arguments: object) -> tuple[str, list[int]]:
    """What a program prints last, and the peak memory in bytes of each of its processes, its own first."""
    command, peaks = [sys.executable, "-c", code, *map(str, arguments)], {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            for pid in family(process.pid):
                # The last one: until it runs its own program, a new process has its parent's peak.
                peaks[pid] = peak_of(pid) or peaks.get(pid, 0)
            time.sleep(LOOK_SECONDS)
        assert process.returncode == 0
        assert process.stdout is not None
        return process.stdout.read().splitlines()[-1], list(peaks.values())


def family(pid: int) -> Iterator[int]:
    """The process, what its threads started, and so on; any of them may end meanwhile."""
    yield pid
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in thread.read_text().split():
                yield from family(int(child))


def peak_of(pid: int) -> int:
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
    return 0


def write_sparse_wav(path: Path, seconds: int, rate_hz: int = 16_000, num_channels: int = 1) -> None:
    num_bytes = seconds * rate_hz * num_channels * 2
    shape = struct.pack("<HHIIHH", 1, num_channels, rate_hz, rate_hz * num_channels * 2, num_channels * 2, 16)
    riff = b"RIFF" + struct.pack("<I", num_bytes + 36) + b"WAVEfmt " + struct.pack("<I", 16) + shape
    path.write_bytes(riff + b"data" + struct.pack("<I", num_bytes))
    os.truncate(path, 44 + num_bytes)


def write_corpus(folder: Path, num_short: int, long_name: str | None = None) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    names = [f"{number:03d}.wav" for number in range(num_short)]
    for name in names:
        soundfile.write(folder / name, rng.uniform(-0.1, 0.1, 16_000), 16_000)
    if long_name:
        write_sparse_wav(folder / long_name, LONG_SECONDS)
        names.insert(num_short // 2, long_name)
    lines = [json.dumps({"key": Path(name).stem, "audio": name, "text": "a word"}) for name in names]
    (folder / "train.jsonl").write_text("\n".join(lines))


def test_utterance_of_ten_hours_is_quarantined_and_costs_no_memory(
    amount: Callable[[int, int], int], tmp_path: Path
) -> None:
    num_short = amount(30, 1_000)
    write_corpus(tmp_path / "short", num_short)
    write_corpus(tmp_path / "long", num_short, "ten-hours.wav")
    build_codebook(
        BuildCodebookConfig(
            root=tmp_path / "short",
            sources=(SourceShare(name="jsonl"),),
            out_dir=tmp_path / "codebook",
            encoder="mfcc",
            num_clusters=8,
            text_tokenizer="bpe:256",
            max_audio_seconds=10,
        )
    )
    counts, baselines = run_watched(TOKENIZE, tmp_path, "short")
    counts_with_long, peaks = run_watched(TOKENIZE, tmp_path, "long")
    assert (json.loads(counts), json.loads(counts_with_long)) == ([num_short, 0], [num_short, 1])
    assert min(len(baselines), len(peaks)) > 2  # what starts processes, and those that decode
    assert peaks[0] <= 1.3 * baselines[0]  # the program itself, before those that decode
    assert sum(peaks) <= 1.3 * sum(baselines)
    entry = json.loads((tmp_path / "long-out" / "ledger.jsonl").read_text())
    assert (entry["key"], entry["error"]) == ("ten-hours", "AudioError")
    assert "36000 s, limit 3600 s" in entry["reason"]


@pytest.mark.parametrize(("rate_hz", "num_channels"), [(16_000, 1), (48_000, 2)])
def test_recording_costs_its_waveform_and_a_few_blocks(
    rate_hz: int, num_channels: int, tmp_path: Path
) -> None:
    """Five minutes; at 48 kHz in stereo they have 115 MB when they are decoded at once."""
    write_sparse_wav(tmp_path / "a.wav", 300, rate_hz, num_channels)
    num_bytes, growth = map(int, run(LOAD, tmp_path / "a.wav").split())
    assert num_bytes == 300 * 16_000 * 4
    assert growth < num_bytes + BLOCK_BYTES


def test_stretch_late_in_a_long_recording_costs_what_it_holds(tmp_path: Path) -> None:
    write_sparse_wav(tmp_path / "a.wav", 11 * 3_600)
    num_bytes, growth = map(int, run(LOAD, tmp_path / "a.wav", 39_000, 39_010).split())
    assert num_bytes == 10 * 16_000 * 4
    assert growth < num_bytes + BLOCK_BYTES
