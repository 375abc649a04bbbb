import importlib
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from whisper.model import AudioEncoder, disable_sdpa

from dmlm.pipeline.converters.whisper import load_whisper_weights
from dmlm.pipeline.encoders.weights import find_whisper_weights

FOLDER = Path(__file__).parents[2] / "benchmarks"
TOY = ("--rounds", "0", "--clusters", "20", "--threads", "1")


def test_units_of_row_a_are_those_of_the_loops_on_sample_speech(
    run_benchmark, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DMLM_REAL_DATA", str(tmp_path))
    rows = run_benchmark("speech_tokens", "--data", "librispeech", "--limit", "2", *TOY)
    exact, padded = rows["A-librispeech"], rows["A-padded"]
    assert exact["details"]["same units as unpadded loop"] >= 0.999
    assert padded["details"]["same units"] >= 0.999
    # The shortest and the longest of the published lengths.
    assert exact["details"]["mean recording, seconds"] == pytest.approx((2.35 + 22.75) / 2, abs=0.01)
    assert exact["peers"] == padded["peers"]


@pytest.mark.realdata
def test_row_a_takes_the_segments_that_the_ami_source_reads(run_benchmark, real_data: Path) -> None:
    row = run_benchmark("speech_tokens", "--data", "ami", "--limit", "2", *TOY)["A-ami"]
    assert row["details"]["same units as unpadded loop"] >= 0.999
    assert row["details"]["recordings"] == 2
    assert row["ratio"] > 1


def test_operations_of_the_encoder_are_those_of_its_matrix_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    script = importlib.import_module("speech_tokens")
    weights = load_whisper_weights(find_whisper_weights(script.ENCODER))
    # torch counts no operations of its flash kernel.
    with disable_sdpa(), FlopCounterMode(display=False) as counter:
        AudioEncoder(80, 1500, 384, 6, 4)(torch.zeros(1, 80, 3000))
    assert script._count_operations(480_000, weights) == pytest.approx(counter.get_total_flops(), rel=1e-3)
