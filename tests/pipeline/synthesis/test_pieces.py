import math
from collections import Counter
from pathlib import Path

import pytest

from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.synthesis.corpora import SampleConfig, write_sample_corpora
from dmlm.pipeline.synthesis.pieces import WORDS_PER_SECOND, draw_pieces

LONG = ["it was a bright cold day in april and the clocks were striking thirteen", "so be it"] * 40
SHORT = ["PLEASE HOLD THE LINE", "PRESS ONE"]


def test_pieces_are_as_many_words_as_the_hours_take() -> None:
    num_words = sum(len(piece.split()) for piece in draw_pieces([LONG], 0.5, seed=0))
    assert 0.5 * 3600 <= num_words / WORDS_PER_SECOND <= 0.5 * 3600 + 12


def test_a_short_text_gives_as_many_pieces_as_a_long_one() -> None:
    pieces = draw_pieces([LONG, SHORT], 1, seed=0)
    short_words = set(" ".join(SHORT).lower().split())
    num_short = sum(set(piece.split()) <= short_words for piece in pieces)
    assert num_short == pytest.approx(len(pieces) / 2, rel=0.02)


def test_pieces_stand_in_the_text_or_are_loose_words() -> None:
    pieces = draw_pieces([LONG], 0.5, seed=0)
    in_order = [piece for piece in pieces if any(piece in line for line in LONG)]
    assert 0.6 < len(in_order) / len(pieces) < 0.85  # single loose words stand in the text, too
    assert all(len(piece.split()) <= 5 for piece in pieces if piece not in in_order)
    assert max(len(piece.split()) for piece in in_order) == 12


def test_rare_words_come_more_often_than_their_share() -> None:
    text = ["often " * 99 + "rare"]
    counts = Counter(word for piece in draw_pieces([text], 1, seed=0) for word in piece.split())
    assert counts["rare"] > 0.03 * counts.total()


def test_punctuation_that_stands_alone_is_no_word() -> None:
    pieces = draw_pieces([["wait - there * is [ more … to — say '"]], 0.2, seed=0)
    assert {word for piece in pieces for word in piece.split()} == {
        "wait",
        "there",
        "is",
        "more",
        "to",
        "say",
    }


def test_the_seed_decides() -> None:
    assert draw_pieces([LONG], 0.1, seed=1) == draw_pieces([LONG], 0.1, seed=1)
    assert draw_pieces([LONG], 0.1, seed=1) != draw_pieces([LONG], 0.1, seed=2)


def test_pieces_are_spoken_by_many_speakers(tmp_path: Path) -> None:
    text_path = tmp_path / "prompts.txt"
    text_path.write_text("\n".join(SHORT))
    report = write_sample_corpora(
        SampleConfig(out_dir=tmp_path / "spoken", text_paths=(text_path,), hours=0.02)
    )
    assert 0.5 * 72 < report.audio_seconds < 2 * 72
    assert len(list((tmp_path / "spoken" / "LibriSpeech" / "train-text").iterdir())) > 12


@pytest.mark.parametrize(
    ("texts", "hours"), [((), 1.0), *((("prompts.txt",), hours) for hours in (0.0, math.nan, math.inf))]
)
def test_hours_need_a_text_and_must_be_above_0(tmp_path: Path, texts: tuple[str, ...], hours: float) -> None:
    (tmp_path / "prompts.txt").write_text("hello\n")
    paths = tuple(tmp_path / name for name in texts)
    with pytest.raises(ConfigError, match="--hours"):
        write_sample_corpora(SampleConfig(out_dir=tmp_path / "out", text_paths=paths, hours=hours))
    assert not (tmp_path / "out").exists()
