import pytest

from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.samples import Broken, Skipped, UnitInventory, UnitLine
from dmlm.pipeline.sources import SourceOptions, open_source
from dmlm.pipeline.sources.units import MAX_UNITS


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train.units").write_text("a1\t5 5 7\na2 0  499 3\n")
    (tmp_path / "train.txt").write_text("a1 Hello there.\na9\tNever spoken.\n")
    (tmp_path / "test.units").write_text("b1 1 2\n")
    return tmp_path


def read(folder, splits=None, **options):
    return list(open_source("units", folder, splits, SourceOptions(**options)).iter_items())


def test_lines_become_units_with_the_transcript_of_their_key(folder):
    inventory = UnitInventory(name="hubert-l9-km500", num_tokens=500)
    items = read(folder, ["train"], units_name="hubert-l9-km500", language="en")
    assert items == [
        UnitLine(
            key="a1",
            source="units",
            split="train",
            units="5 5 7",
            inventory=inventory,
            text="Hello there.",
            language="en",
        ),
        UnitLine(key="a2", source="units", split="train", units="0 499 3", inventory=inventory),
        Skipped(
            key="a9",
            source="units",
            split="train",
            reason="transcript without units",
            recording_id="train",
        ),
    ]


def test_size_of_the_codebook_is_given_or_from_the_largest_id_of_all_splits(folder):
    assert {item.inventory.num_tokens for item in read(folder, ["test"])} == {500}
    assert {item.inventory.num_tokens for item in read(folder, ["test"], num_units=2_000)} == {2_000}


def test_units_without_a_name_fit_together_with_their_own_splits_only(folder):
    names = {item.inventory.name for item in read(folder) if isinstance(item, UnitLine)}
    assert len(names) == 1
    (folder / "test.units").write_text("b1 1 3\n")
    assert names.isdisjoint(item.inventory.name for item in read(folder, ["test"]))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("a3", "expected ids"),
        ("a3 1,2", "expected ids"),
        ("a3 1 -2", "expected ids"),
        ("a3 1 2.0", "expected ids"),
        ("a3 1 ²", "expected ids"),
        ("a/3 1 2", "key 'a/3' must be"),
        ("a3 1 3000000", "id 3000000 is not in [0, 500)"),
    ],
)
def test_line_that_is_no_units_is_broken_and_the_others_go_on(folder, line, reason):
    with (folder / "train.units").open("a") as file:
        file.write(line + "\n")
    broken = next(item for item in read(folder) if isinstance(item, Broken))
    assert broken.reason.startswith("train.units:3: ")
    assert reason in broken.reason
    assert sum(isinstance(item, UnitLine) for item in read(folder)) == 3


def test_id_outside_the_size_given_is_broken(folder):
    broken = [item for item in read(folder, num_units=100) if isinstance(item, Broken)]
    assert [(item.key, item.reason) for item in broken] == [
        ("a2", "train.units:2: id 499 is not in [0, 100)")
    ]


def test_second_transcript_of_a_key_is_broken(folder):
    (folder / "train.txt").write_text("a1 One.\na1 Two.\n")
    (broken,) = [item for item in read(folder) if isinstance(item, Broken)]
    assert "train.txt:2: 'a1' is no key, or has a line already" in broken.reason


def test_size_beyond_that_of_any_codebook_is_refused(folder):
    with pytest.raises(
        ConfigError, match="--num-units 1048577: no codebook is so large; the limit is 1048576"
    ):
        read(folder, num_units=MAX_UNITS + 1)
    assert {item.inventory.num_tokens for item in read(folder, ["test"], num_units=MAX_UNITS)} == {MAX_UNITS}
