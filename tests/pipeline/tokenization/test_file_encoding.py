"""Loading ahead and encoding: outcomes stay with their items, whatever fails or is read ahead."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmlm.pipeline.errors import AudioError, MissingDependencyError
from dmlm.pipeline.samples import TokenArray, Waveform
from dmlm.pipeline.tokenization.file_encoding import MAX_LOADED_AHEAD, Encoded, encode_files, load_ahead


def load(number: int) -> Waveform:
    """A waveform that says its number; odd ones are broken, in two ways."""
    if number % 4 == 1:
        raise AudioError(f"file {number} is cut off")
    if number % 4 == 3:
        raise ZeroDivisionError(f"bug on file {number}")
    return np.full(number + 1, number, dtype=np.float32)


def encode_one_by_one(waveforms: Iterable[Waveform]) -> Iterator[TokenArray]:
    for waveform in waveforms:
        yield waveform[:1].astype(np.int32)


def encode_all_at_once(waveforms: Iterable[Waveform]) -> Iterator[TokenArray]:
    yield from [waveform[:1].astype(np.int32) for waveform in list(waveforms)]


@pytest.mark.parametrize("encode", [encode_one_by_one, encode_all_at_once])
@given(numbers=st.lists(st.integers(0, 30), max_size=80))
def test_every_item_gets_its_own_outcome(
    encode: Callable[[Iterable[Waveform]], Iterator[TokenArray]], numbers: list[int]
) -> None:
    files: list[None] = []
    outcomes = encode_files(numbers, load, encode, AudioError, lambda: files.append(None))
    assert len(files) == len(outcomes) == len(numbers)
    for number, outcome in zip(numbers, outcomes, strict=True):
        if isinstance(outcome, Encoded):
            assert (outcome.tokens.tolist(), outcome.length) == ([number], number + 1)
        else:
            assert isinstance(outcome, AudioError)
            assert f"file {number}" in str(outcome)
            assert number % 2 == 1


def test_only_a_few_files_are_loaded_ahead() -> None:
    asked: list[int] = []

    def count(number: int) -> Waveform:
        asked.append(number)
        return np.zeros(1, dtype=np.float32)

    loaded = load_ahead(range(1000), count, AudioError)
    for _ in range(10):
        next(loaded)
    assert len(asked) <= 10 + MAX_LOADED_AHEAD
    loaded.close()


@pytest.mark.parametrize("error", [MissingDependencyError("no decoder"), ModuleNotFoundError("no module")])
def test_missing_package_ends_the_run_instead_of_costing_every_sample(error: Exception) -> None:
    def fail(number: int) -> Waveform:
        raise error

    with pytest.raises(type(error)):
        list(load_ahead([1], fail, AudioError))
