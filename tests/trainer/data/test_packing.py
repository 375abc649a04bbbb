from collections.abc import Iterator
from itertools import count

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmlm.trainer.data.packing import Packer, pack_sequences
from dmlm.trainer.data.tasks import TaskSequence

CAPACITY = 50
LENGTHS = st.lists(st.integers(1, CAPACITY), min_size=1, max_size=40)
POOL_SIZES = st.integers(1, 12)


class Draws:
    """Items 0, 1, 2, … with lengths that repeat."""

    def __init__(self, lengths: list[int], first: int = 0) -> None:
        self.lengths, self.number = lengths, first

    def __call__(self) -> tuple[int, int]:
        item = self.number
        self.number += 1
        return item, self.length_of(item)

    def length_of(self, item: int) -> int:
        return self.lengths[item % len(self.lengths)]


def rows_of(packer: Packer[int], num_rows: int) -> list[list[int]]:
    return [packer.next_row() for _ in range(num_rows)]


@given(lengths=LENGTHS, pool_size=POOL_SIZES)
def test_every_draw_is_packed_once_or_waits_and_no_row_overflows(lengths: list[int], pool_size: int) -> None:
    draws = Draws(lengths)
    packer = Packer(CAPACITY, pool_size, draws)
    rows = rows_of(packer, 30)
    waiting = [item for item, _ in packer.pool]
    assert len(waiting) < pool_size
    assert sorted([*waiting, *(item for row in rows for item in row)]) == list(range(draws.number))
    assert all(0 < sum(map(draws.length_of, row)) <= CAPACITY for row in rows)


@given(lengths=LENGTHS, pool_size=POOL_SIZES)
def test_nothing_waits_for_more_rows_than_the_pool_is_large(lengths: list[int], pool_size: int) -> None:
    draws = Draws(lengths)
    packer = Packer(CAPACITY, pool_size, draws)
    drawn_at: dict[int, int] = {}
    for number in range(40):
        row = packer.next_row()
        for item in [*row, *(item for item, _ in packer.pool)]:
            drawn_at.setdefault(item, number)
        assert all(number - drawn_at[item] < pool_size for item in row)


@given(lengths=LENGTHS, pool_size=POOL_SIZES)
def test_no_choice_among_the_pool_would_fill_a_row_better(lengths: list[int], pool_size: int) -> None:
    draws = Draws(lengths)
    packer = Packer(CAPACITY, pool_size, draws)
    for _ in range(10):
        waiting = [item for item, _ in packer.pool]
        first = draws.number
        row = packer.next_row()
        candidates = [*waiting, *range(first, draws.number)]
        sums = {draws.length_of(candidates[0])}
        for item in candidates[1:]:
            sums |= {total + draws.length_of(item) for total in sums}
        assert candidates[0] in row
        assert sum(map(draws.length_of, row)) == max(total for total in sums if total <= CAPACITY)


@given(lengths=LENGTHS, pool_size=POOL_SIZES, cut=st.integers(0, 20))
def test_a_packer_goes_on_from_its_pool(lengths: list[int], pool_size: int, cut: int) -> None:
    whole = Packer(CAPACITY, pool_size, Draws(lengths))
    early, late = rows_of(whole, cut), []
    draws = Draws(lengths)
    first = Packer(CAPACITY, pool_size, draws)
    assert rows_of(first, cut) == early
    second = Packer(CAPACITY, pool_size, Draws(lengths, first=draws.number))
    second.pool = list(first.pool)
    late = rows_of(second, 10)
    assert late == rows_of(whole, 10)


def realistic_lengths(rng: np.random.Generator) -> Iterator[tuple[str, int]]:
    """Utterances of read and of spontaneous speech with their text, captioned images, text."""
    while True:
        read = rng.normal(14.3, 1.3) if rng.random() < 0.7 else rng.uniform(2, 14)
        yield "read", int(min(read, 17) * 56)
        yield "spoken", int(min(rng.lognormal(0.5, 0.9), 30) * 56) + 6
        yield "image", 270 + int(rng.integers(5, 25))
        yield "text", int(rng.integers(10, 180))


@pytest.mark.parametrize("capacity", [2048, 4096])
def test_rows_of_a_realistic_mix_are_full_and_yet_mixed(capacity: int) -> None:
    lengths = realistic_lengths(np.random.default_rng(0))
    rows = rows_of(Packer(capacity, 64, lambda: next((draw, draw[1]) for draw in [next(lengths)])), 500)
    assert np.mean([sum(length for _, length in row) / capacity for row in rows]) > 0.995
    kinds = ("read", "spoken", "image", "text")
    shares = np.array([[sum(n for k, n in row if k == kind) for kind in kinds] for row in rows]) / capacity
    # Neither the mean nor the scatter of any kind drifts while the stream goes on.
    early, late = shares[:250], shares[250:]
    np.testing.assert_allclose(early.mean(axis=0), late.mean(axis=0), atol=0.03)
    np.testing.assert_allclose(early.std(axis=0), late.std(axis=0), atol=0.03)


def test_an_item_longer_than_a_row_is_refused() -> None:
    numbers = count()
    with pytest.raises(ValueError, match="length 51 is over the capacity of 50"):
        Packer(50, 4, lambda: (next(numbers), 51)).next_row()


def sequence(tokens: list[int], modality: list[int]) -> TaskSequence:
    return TaskSequence(
        tokens_T=np.array(tokens, np.int32), modality_T=np.array(modality, np.int8), num_prompt=1
    )


def test_positions_restart_and_each_target_is_the_next_token_of_its_own_sequence() -> None:
    batch = pack_sequences(
        [sequence([7, 8, 9], [-1, 1, 0]), sequence([5, 6], [-1, 2])],
        keys=["a", "b"],
        tasks=["asr", "image"],
    )
    assert batch.tokens_T.tolist() == [7, 8, 9, 5, 6]
    assert batch.positions_T.tolist() == [0, 1, 2, 0, 1]
    assert batch.lengths == (3, 2)
    assert batch.predictors_N.tolist() == [0, 1, 3]
    assert batch.targets_N.tolist() == [8, 9, 6]
    assert batch.modality_N.tolist() == [1, 0, 2]
    assert batch.sequence_N.tolist() == [0, 0, 1]
    assert batch.count_targets(3).tolist() == [1, 1, 1]


def test_a_row_without_targets_has_none() -> None:
    batch = pack_sequences([sequence([7, 8], [-1, -1])])
    assert batch.tokens_T.tolist() == [7, 8]
    assert batch.predictors_N.tolist() == batch.targets_N.tolist() == []
    assert batch.count_targets(3).tolist() == [0, 0, 0]


def test_a_batch_is_the_same_on_another_device() -> None:
    batch = pack_sequences([sequence([7, 8, 9], [-1, 1, 0])], keys=["a"], tasks=["asr"])
    moved = batch.to(torch.device("meta"))
    assert moved.targets_N.is_meta
    assert (moved.keys, moved.lengths, moved.targets_N.shape) == (("a",), (3,), batch.targets_N.shape)
    assert {t.dtype for t in (batch.tokens_T, batch.positions_T, batch.targets_N)} == {torch.int64}
