import pytest


def test_all_sides_of_row_c_give_the_same_samples(run_benchmark) -> None:
    rows = run_benchmark("shard_reading", "--samples", "60", "--shards", "3", "--rounds", "1")
    assert rows.keys() == {"C-random", "C-batch", "C-resume"}
    for row in (rows["C-random"], rows["C-batch"]):
        assert row["details"]["same_samples"] == 1.0
        assert row["peers"].keys() == {"webdataset", "webdataset, arrays only"}
        assert row["ratio"] == pytest.approx(row["dmlm"] / max(row["peers"].values()))
