import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dmlm.pipeline.encoders.batching import map_windows, overlapping_windows, plan_batches, read_ahead, seams

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


@given(st.integers(1, 200), st.integers(3, 30), st.data())
def test_windows_joined_at_their_seams_hold_every_frame_once(
    num_frames: int, window_frames: int, data: st.DataObject
) -> None:
    num_shared = 2 * data.draw(st.integers(1, (window_frames - 1) // 2))
    recording = np.arange(num_frames, dtype=np.float32)
    windows = overlapping_windows(recording, window_frames, num_shared)
    parts = zip(windows, seams(len(windows), num_shared), strict=True)
    assert np.array_equal(np.concatenate([window[part] for window, part in parts]), recording)
    assert all(len(window) == window_frames for window in windows[:-1])


@given(st.integers(1, 200), st.integers(3, 30), st.data())
def test_a_frame_comes_from_the_window_whose_edge_is_further_away(
    num_frames: int, window_frames: int, data: st.DataObject
) -> None:
    num_shared = 2 * data.draw(st.integers(1, (window_frames - 1) // 2))
    windows = overlapping_windows(np.arange(num_frames, dtype=np.float32), window_frames, num_shared)
    for number, part in enumerate(seams(len(windows), num_shared)):
        inside = np.arange(len(windows[number]))[part]
        if number:
            assert inside[0] >= num_shared // 2
        if number < len(windows) - 1:
            assert window_frames - inside[-1] > num_shared // 2


@given(LENGTHS, st.integers(1, 1_000), st.integers(1, 1_000))
def test_windows_come_back_to_their_recordings_in_order(
    lengths: list[int], read_ahead_samples: int, batch_samples: int
) -> None:
    waveforms = [np.full(length, index, np.float32) for index, length in enumerate(lengths)]
    results = map_windows(
        iter(waveforms),
        lambda waveform: [waveform[start : start + 40] for start in range(0, len(waveform), 40)],
        lambda windows: [(int(window[0]), len(window)) for window in windows],
        read_ahead_samples=read_ahead_samples,
        batch_samples=batch_samples,
    )
    for index, (length, parts) in enumerate(zip(lengths, results, strict=True)):
        assert parts == [(index, min(40, length - start)) for start in range(0, length, 40)]
