"""What becomes of an item besides its tokens."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dmlm.pipeline.quarantine import LedgerEntry
from dmlm.pipeline.samples import Sample
from dmlm.pipeline.tokenization.planning import TokenizeConfig, plan_tokenization
from dmlm.pipeline.tokenization.shard_tasks import ShardTask

Encode = Callable[..., Sample | LedgerEntry]


@pytest.fixture
def encode(settings: Callable[..., TokenizeConfig], tiny_corpora: Path, tmp_path: Path) -> Encode:
    """Function that encodes the first utterance with other fields: `encode(key="...")`."""
    plan = plan_tokenization(settings(tiny_corpora, tmp_path), tiny_corpora / "codebook")
    utterance = next(iter(plan.tasks.values())).utterances[0]

    def encode_with(**changes: object) -> Sample | LedgerEntry:
        task = ShardTask(name="x", items=(replace(utterance, **changes),))
        (outcome,) = plan.encoder.encode(task, lambda: None)
        return outcome

    return encode_with


def test_the_overlap_of_an_utterance_is_kept(encode: Encode) -> None:
    sample = encode(overlap_seconds=0.125)
    assert isinstance(sample, Sample)
    assert sample.overlap_seconds == 0.125


def test_an_item_that_cannot_be_written_is_quarantined(encode: Encode) -> None:
    entry = encode(key="k" * 81)
    assert isinstance(entry, LedgerEntry)
    assert entry.outcome == "quarantined"
