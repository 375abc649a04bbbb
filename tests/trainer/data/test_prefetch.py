"""Batches built ahead in a thread: the same ones, with the state of those taken."""

import json
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from dmlm.pipeline.errors import LoaderError, ShardCorruptError
from dmlm.pipeline.shards.token_table import TokenTable
from dmlm.trainer.config import recipe_from_json
from dmlm.trainer.data import prefetch
from dmlm.trainer.data.dataset import open_training_data
from dmlm.trainer.data.packing import PackedBatch
from dmlm.trainer.data.prefetch import Prefetcher
from dmlm.trainer.data.stream import TokenStream

RECIPE = recipe_from_json(
    {
        "name": "r",
        "num_steps": 1,
        "mix": [{"task": "asr", "weight": 2}, {"task": "image", "weight": 1}],
        "sequence": {"max_length": 64, "unit_noise": 0.2},
        "batch": {"max_tokens": 128, "num_micro_batches": 2},
    }
)


def open_stream(shards: Path) -> TokenStream:
    return TokenStream(open_training_data([shards]), RECIPE, seed=0)


def content(batches: list[PackedBatch]) -> list[object]:
    return [(batch.keys, batch.tokens_T.tolist(), batch.targets_N.tolist()) for batch in batches]


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("dmlm-prefetch")]


def test_prefetched_steps_and_states_are_those_of_the_stream(token_shards: Path) -> None:
    stream = open_stream(token_shards)
    with closing(Prefetcher(open_stream(token_shards))) as prefetched:
        assert prefetched.state() == stream.state()
        for _ in range(40):
            assert content(prefetched.next_step()) == content(stream.next_step())
            assert prefetched.state() == stream.state()


def test_a_restored_stream_repeats_what_was_built_and_not_taken(token_shards: Path) -> None:
    with closing(Prefetcher(open_stream(token_shards))) as prefetched:
        for _ in range(3):
            prefetched.next_step()
        time.sleep(0.05)  # the thread is ahead by now
        state = json.loads(json.dumps(prefetched.state()))
        expected = [content(prefetched.next_step()) for _ in range(20)]
    stream = open_stream(token_shards)
    stream.restore(state)
    with closing(Prefetcher(stream)) as prefetched:
        assert [content(prefetched.next_step()) for _ in range(20)] == expected


def test_a_damaged_shard_is_named_where_the_step_is_taken(token_shards: Path, tmp_path: Path) -> None:
    shutil.copytree(token_shards, tmp_path / "toy")
    tar = tmp_path / "toy" / "toy-000000.tar"
    tar.write_bytes(tar.read_bytes().replace(b"NUMPY", b"numpy"))
    with (
        closing(Prefetcher(open_stream(tmp_path / "toy"))) as prefetched,
        pytest.raises(ShardCorruptError, match=r"toy-000000\.tar: row \d+: \w+: not an npy array"),
    ):
        [prefetched.next_step() for _ in range(100)]
    assert not prefetch_threads()


def test_a_disk_that_does_not_answer_is_named_with_its_shard_and_keeps_no_process(
    token_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()
    fetch = TokenTable.fetch

    def fetch_slowly(table: TokenTable, places_A: np.ndarray) -> Iterator[str]:
        for name in fetch(table, places_A):
            yield name
            answers.wait()

    monkeypatch.setattr(TokenTable, "fetch", fetch_slowly)
    monkeypatch.setattr(prefetch, "STALL_SECONDS", 1)
    with (
        closing(Prefetcher(open_stream(token_shards))) as prefetched,
        pytest.raises(LoaderError, match=r"^toy-000000\.tar: no step was built in 1 s"),
    ):
        prefetched.next_step()
    (thread,) = prefetch_threads()
    assert thread.daemon
    answers.set()
    thread.join(10)
    assert not prefetch_threads()


def test_other_threads_run_while_pages_are_fetched(token_shards: Path) -> None:
    table = open_training_data([token_shards]).tokens
    places = np.tile(np.flatnonzero(table.counts(np.arange(4)) > 0), 200_000)
    names: list[str] = []
    thread = threading.Thread(target=lambda: names.extend(table.fetch(places)))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # the GIL is only given away by who waits
    try:
        thread.start()
        num_turns = 0
        while thread.is_alive():
            time.sleep(0.001)
            num_turns += 1
    finally:
        sys.setswitchinterval(interval)
    assert names == ["toy-000000"]
    assert num_turns > 2


def test_the_thread_ends_when_the_loop_does_and_never_runs_far_ahead(token_shards: Path) -> None:
    stream = open_stream(token_shards)
    with closing(Prefetcher(stream)) as prefetched:
        prefetched.next_step()
        deadline = time.monotonic() + 10
        while stream.state()["num_steps"] < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        assert stream.state()["num_steps"] == 3  # one taken, two ahead
        assert len(prefetch_threads()) == 1
    assert not prefetch_threads()
