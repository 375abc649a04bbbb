"""Which files count as repaired."""

from dataclasses import replace
from pathlib import Path

from dmlm.pipeline.quarantine import LedgerEntry
from dmlm.pipeline.samples import Utterance
from dmlm.pipeline.tokenization.quarantined_files import has_changed_files
from dmlm.pipeline.tokenization.shard_tasks import ShardTask


def test_a_broken_line_with_the_key_of_a_file_is_no_repair_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(b"audio")
    item = Utterance(key="k", source="s", split="train", audio_path=path)
    line = LedgerEntry(
        key="k", outcome="quarantined", stage="source", reason="second line", error="AnnotationError"
    )
    task = ShardTask(name="x", items=(item,))
    assert not has_changed_files(task, [line])
    assert has_changed_files(task, [replace(line, stage="audio")])
