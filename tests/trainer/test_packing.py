import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmlm.trainer.packing import Packer, pack_sequences
from dmlm.trainer.tasks import TaskSequence

LENGTHS = st.lists(st.integers(1, 50), max_size=80)


def pack_all(packer: Packer[int], lengths: list[int], first: int = 0) -> list[list[int]]:
    rows = [packer.add(item, length) for item, length in enumerate(lengths, start=first)]
    return [row for row in rows if row is not None]


@given(lengths=LENGTHS, num_open=st.integers(1, 6))
def test_every_sequence_is_packed_exactly_once_and_no_row_overflows(
    lengths: list[int], num_open: int
) -> None:
    packer: Packer[int] = Packer(50, num_open)
    rows = pack_all(packer, lengths)
    assert len(packer.open_rows) <= num_open
    rows += packer.flush()
    assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
    assert all(sum(lengths[item] for item in row) <= 50 for row in rows)
    assert not packer.open_rows


@given(lengths=LENGTHS, cut=st.integers(0, 80))
def test_a_packer_goes_on_from_its_open_rows(lengths: list[int], cut: int) -> None:
    whole: Packer[int] = Packer(50, 3)
    rows = pack_all(whole, lengths) + list(whole.flush())
    first: Packer[int] = Packer(50, 3)
    early = pack_all(first, lengths[:cut])
    second: Packer[int] = Packer(50, 3)
    second.open_rows = [list(row) for row in first.open_rows]
    late = pack_all(second, lengths[cut:], first=len(lengths[:cut])) + list(second.flush())
    assert early + late == rows


def test_rows_are_full_on_realistic_lengths() -> None:
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(5.0, 0.6, 4000), 10, 1024).astype(int).tolist()
    rows = pack_all(Packer(4096, 4), lengths)
    assert np.mean([sum(lengths[item] for item in row) / 4096 for row in rows]) > 0.98


def test_an_item_longer_than_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="length 51 is over the capacity of 50"):
        Packer(50, 1).add("x", 51)


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


def test_the_model_may_see_other_tokens_than_it_predicts() -> None:
    noisy = [np.array([7, 0, 9], np.int32)]
    batch = pack_sequences([sequence([7, 8, 9], [-1, 1, 0])], inputs=noisy)
    assert batch.tokens_T.tolist() == [7, 0, 9]
    assert batch.targets_N.tolist() == [8, 9]
