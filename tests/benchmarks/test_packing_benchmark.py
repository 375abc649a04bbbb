def test_row_e_packs_a_mix_fuller_than_padding_does(run_benchmark) -> None:
    rows = run_benchmark("packing", "--samples", "400", "--rounds", "1")
    assert len(rows) == 8
    mix = rows["E-fill-mix"]
    assert mix["dmlm"] > 0.99 > max(mix["details"]["dynamic_padding"], mix["details"]["fixed_padding"])
    assert all(0 < row["dmlm"] <= 1 for name, row in rows.items() if name.startswith("E-fill"))
    assert rows["E-time-mix"]["unit"] == "microseconds per sample"
