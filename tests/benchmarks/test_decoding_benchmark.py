def test_row_f_gives_the_ids_of_generate_at_both_batch_sizes(run_benchmark) -> None:
    sizes = ("--prompts", "6", "--single", "2", "--longest", "12", "--threads", "1")
    rows = run_benchmark("decoding", *sizes, "--rounds", "0")
    assert list(rows) == [f"F-{name}-batch{size}" for name in ("llama", "opt") for size in (1, 32)]
    for row in rows.values():
        assert row["details"]["of_equal_ids"] == 1
        assert row["details"]["longest_output"] > 9
        assert set(row["peers"]) == {"generate", "generate, static cache"}
