"""Several data sets as one."""

from collections.abc import Callable
from pathlib import Path

from dmlm.pipeline.shards import iter_samples
from dmlm.trainer.data.dataset import open_training_data


def test_the_vocabulary_holds_what_any_data_set_has_in_any_order(
    token_shards: Path, write_shards: Callable[..., Path], tmp_path: Path
) -> None:
    spoken = [sample for sample in iter_samples(token_shards) if sample.image_tokens is None]
    directories = [write_shards(tmp_path / "spoken", spoken, has_images=False), token_shards]
    expected = open_training_data([token_shards]).vocabulary
    for order in (directories, directories[::-1]):
        assert open_training_data(order).vocabulary == expected
