"""The mix for other people's loops: an iterable of plain dicts, as a webdataset pipeline yields them."""

from collections.abc import Iterator
from itertools import count, islice
from typing import Any, Final

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from dmlm.trainer.config import Recipe
from dmlm.trainer.data.dataset import TrainingData
from dmlm.trainer.data.mix import Mix, build_groups
from dmlm.trainer.data.packing import Parts
from dmlm.trainer.data.rows import RowBuilder

_NUM_AT_ONCE: Final = 64


class SequenceDataset(IterableDataset[dict[str, Any]]):
    """Sequences without end, shuffled and mixed by weight, not packed; every iteration begins at the first.

    Each is a dict: `__key__` of the sample, `task`, `tokens` (int64, what is predicted),
    `inputs` (int64, what the model sees: other tokens where the recipe asks for noise) and `modality` (int8,
    the place in `tasks.MODALITIES` of each token's loss, -1 where it carries none).

    Ranks, and the workers of a DataLoader or WebLoader, share the sequences among them:

        loader = webdataset.WebLoader(stream.as_webdataset(), batch_size=None, num_workers=2)
    """

    def __init__(
        self, data: TrainingData, recipe: Recipe, seed: int, *, rank: int = 0, world_size: int = 1
    ) -> None:
        self._data, self._recipe, self._seed = data, recipe, seed
        self._rank, self._world_size = rank, world_size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        place, num_places = self._rank, self._world_size
        if worker is not None:
            place, num_places = place * worker.num_workers + worker.id, num_places * worker.num_workers
        mix = Mix(build_groups(self._data, self._recipe), self._seed)
        builder = RowBuilder(self._data, mix, self._recipe.sequence, self._seed)
        draws = islice((mix.draw()[0] for _ in count()), place, None, num_places)
        for number in count(place, num_places):
            yield from _split(builder.build(list(islice(draws, _NUM_AT_ONCE)), number))


def _split(parts: Parts) -> Iterator[dict[str, Any]]:
    starts_S = np.cumsum(parts.num_parts_S) - parts.num_parts_S
    borders = np.cumsum(np.add.reduceat(parts.lengths_P, starts_S))[:-1]
    modality_T = np.repeat(parts.modality_P, parts.lengths_P)
    inputs_T = parts.tokens_T if parts.inputs_T is None else parts.inputs_T
    arrays = (parts.tokens_T.astype(np.int64), inputs_T.astype(np.int64), modality_T)
    pieces = zip(*(np.split(array, borders) for array in arrays), strict=True)
    for key, task, (tokens, inputs, codes) in zip(parts.keys, parts.tasks, pieces, strict=True):
        yield {
            "__key__": key,
            "task": task,
            "tokens": tokens,
            "inputs": inputs,
            "modality": codes,
        }
