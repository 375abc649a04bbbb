"""The budget of bad samples: max(5, 0.1 %) or 100 in a row, and nothing that is skipped counts."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmlm.pipeline.errors import BadSampleBudgetError, ExitCode, ShardCorruptError
from dmlm.pipeline.quarantine import BadSampleBudget, LedgerEntry
from dmlm.pipeline.samples import Sample

GOOD = Sample(key="g", source="s", split="t")
SKIPPED = LedgerEntry(key="s", outcome="skipped", stage="source", reason="no audio", recording_id="r")


def bad(number: int = 0) -> LedgerEntry:
    return LedgerEntry(
        key=f"b{number}", outcome="quarantined", stage="audio", reason="cut off", error="AudioError"
    )


@pytest.mark.parametrize(("num_items", "num_allowed"), [(1, 5), (5999, 5), (6000, 6), (90_000, 90)])
def test_budget_is_five_or_a_thousandth(num_items: int, num_allowed: int) -> None:
    budget = BadSampleBudget(num_items)
    for number in range(num_allowed):
        budget.spend([bad(number), GOOD])
    with pytest.raises(
        BadSampleBudgetError, match=rf"{num_allowed + 1} bad samples .* b99: cut off"
    ) as error:
        budget.spend([bad(99)])
    assert error.value.exit_code == ExitCode.TOO_MANY_BAD_SAMPLES


def test_a_hundred_in_a_row_end_a_run_of_any_size() -> None:
    budget = BadSampleBudget(10_000_000)
    budget.spend([*map(bad, range(99)), GOOD, *map(bad, range(99))])
    with pytest.raises(BadSampleBudgetError, match="100 in a row"):
        budget.spend([SKIPPED, bad()])


def test_skipped_items_never_count() -> None:
    BadSampleBudget(1).spend([SKIPPED] * 10_000)


def test_bad_samples_of_finished_shards_count_but_not_as_a_row() -> None:
    budget = BadSampleBudget(1_000_000)
    budget.keep(map(bad, range(600)))
    budget.keep(map(bad, range(400)))
    with pytest.raises(BadSampleBudgetError, match=r"1001 bad samples \(1 in a row; 1000 allowed\)"):
        budget.keep([bad()])


def test_every_bad_sample_is_named_until_there_are_too_many_to_read(caplog: pytest.LogCaptureFixture) -> None:
    budget = BadSampleBudget(1_000_000)
    with caplog.at_level(logging.WARNING):
        budget.spend(bad(number) for number in range(50))
        budget.summarise()
    assert [record.message for record in caplog.records] == [
        *(f"quarantined b{number}: cut off" for number in range(20)),
        "50 quarantined in all; see ledger.jsonl",
    ]


def test_skipped_items_are_named_once_per_recording(caplog: pytest.LogCaptureFixture) -> None:
    budget = BadSampleBudget(100)
    with caplog.at_level(logging.WARNING):
        budget.spend([SKIPPED] * 3)
        budget.keep([SKIPPED])
        budget.summarise()
    assert [record.message for record in caplog.records] == ["skipped 4 of r: no audio"]


@given(
    st.builds(
        LedgerEntry,
        key=st.text(),
        outcome=st.sampled_from(["skipped", "quarantined"]),
        stage=st.text(),
        reason=st.text(),
        error=st.none() | st.text(),
        recording_id=st.none() | st.text(),
    )
)
def test_entries_survive_json(entry: LedgerEntry) -> None:
    assert LedgerEntry.from_json(entry.to_json()) == entry


@pytest.mark.parametrize("change", [{"outcome": "lost"}, {"reason": None}, {"reason": 3}, {"more": "x"}])
def test_entries_that_no_run_wrote_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ShardCorruptError, match="ledger entry"):
        LedgerEntry.from_json(bad().to_json() | change)
