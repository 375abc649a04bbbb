"""States that a stream goes back to; test_stream.py has those that another stream goes on from."""

from pathlib import Path

from dmlm.trainer.config import recipe_from_json
from dmlm.trainer.data.dataset import open_training_data
from dmlm.trainer.data.stream import TokenStream

RECIPE = recipe_from_json(
    {
        "name": "r",
        "num_steps": 1,
        "mix": [{"task": "asr", "weight": 1}],
        "sequence": {"max_length": 64},
        "batch": {"max_tokens": 128, "num_micro_batches": 2, "pool_size": 8},
    }
)


def test_a_stream_goes_back_to_an_earlier_state_of_its_own(token_shards: Path) -> None:
    stream = TokenStream(open_training_data([token_shards]), RECIPE, seed=0)
    stream.next_step()
    state = stream.state()
    expected = [[row.keys for row in stream.next_step()] for _ in range(30)]
    stream.restore(state)
    assert [[row.keys for row in stream.next_step()] for _ in range(30)] == expected
