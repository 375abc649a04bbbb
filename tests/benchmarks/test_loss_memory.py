import pytest


def test_both_sides_of_the_loss_row_give_the_same_loss(run_benchmark) -> None:
    size = ("--tokens", "512", "--vocabulary", "20000", "--width", "64", "--rounds", "1", "--threads", "1")
    row = run_benchmark("loss_memory", *size)["D-loss-20000"]
    losses = row["details"]["loss"]
    assert losses["dmlm"] == pytest.approx(losses["plain"], rel=1e-5)
    assert row["details"]["cpu_seconds"].keys() == {"dmlm", "plain"}
