def test_options_change_time_and_memory_but_not_the_losses(run_benchmark) -> None:
    size = ("--sequences", "4", "--width", "32", "--layers", "1", "--max-length", "256", "--steps", "2")
    rows = run_benchmark("step_options", "--only", "gradient_checkpointing", "dense", *size, "--rounds", "1")
    assert list(rows) == ["D-option-gradient_checkpointing", "D-option-dense"]
    for row in rows.values():
        losses = row["details"]["last_loss"]
        assert abs(losses["with"] - losses["without"]) < 1e-4
