import pytest


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_row_b_compares_fits_of_equal_inertia(run_benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn", reason="needs `pip install scikit-learn`")
    monkeypatch.delenv("DMLM_REAL_DATA", raising=False)
    sizes = ("--vectors", "1500", "--clusters", "8")
    rows = run_benchmark("kmeans", *sizes, "--rounds", "0", "--threads", "1")
    assert list(rows) == ["B-lloyd", "B-minibatch", "B-assign", "B-stream"]
    assert {row["details"]["vectors"] for row in rows.values()} == {"clouds"}
    lloyd = rows["B-lloyd"]
    assert lloyd["details"]["inertia"] <= lloyd["details"]["target_inertia"]
    assert lloyd["ratio"] == pytest.approx(min(lloyd["peers"].values()) / lloyd["dmlm"])
    batches = rows["B-minibatch"]["details"]
    assert batches["target_inertia"] == pytest.approx(1.002 * batches["inertia_by_own_rule"]["sklearn"])
    for name in ("passes", "inertia_by_own_rule", "seconds_by_own_rule"):
        assert batches[name].keys() == {"dmlm", "sklearn"}
    assert rows["B-stream"]["ratio"] > 0.95
