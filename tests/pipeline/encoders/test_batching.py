import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dmlm.pipeline.encoders.batching import map_windows, plan_batches, read_ahead, split_windows

LENGTHS = st.lists(st.integers(0, 500), max_size=50)


@given(LENGTHS, st.integers(1, 1_000))
def test_every_item_is_in_exactly_one_batch_within_the_limit(lengths: list[int], max_length: int) -> None:
    batches = list(plan_batches(lengths, max_length))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[index] for index in batch)
        assert len(batch) == 1 or longest * len(batch) <= max_length


@given(LENGTHS, st.integers(1, 1_000))
def test_chunks_keep_the_order_and_stay_bounded(lengths: list[int], num_samples: int) -> None:
    waveforms = [np.full(length, index, np.float32) for index, length in enumerate(lengths)]
    chunks = list(read_ahead(iter(waveforms), num_samples))
    assert [id(waveform) for chunk in chunks for waveform in chunk] == [
        id(waveform) for waveform in waveforms
    ]
    assert all(sum(map(len, chunk[:-1])) < num_samples for chunk in chunks)


@given(st.integers(0, 100), st.integers(1, 30))
def test_windows_hold_every_sample_once(length: int, num_samples: int) -> None:
    waveform = np.arange(length, dtype=np.float32)
    windows = split_windows(waveform, num_samples)
    assert np.array_equal(np.concatenate([waveform[:0], *windows]), waveform)
    assert all(len(window) == num_samples for window in windows[:-1])


@given(LENGTHS, st.integers(1, 1_000), st.integers(1, 1_000))
def test_windows_come_back_to_their_recordings_in_order(
    lengths: list[int], read_ahead_samples: int, batch_samples: int
) -> None:
    waveforms = [np.full(length, index, np.float32) for index, length in enumerate(lengths)]
    results = map_windows(
        iter(waveforms),
        lambda waveform: split_windows(waveform, 40),
        lambda windows: [(int(window[0]), len(window)) for window in windows],
        read_ahead_samples=read_ahead_samples,
        batch_samples=batch_samples,
    )
    for index, (length, parts) in enumerate(zip(lengths, results, strict=True)):
        assert parts == [(index, min(40, length - start)) for start in range(0, length, 40)]
