"""The endless stream of packed rows, and its exact state.

TrainingData -> Mix -> Packer -> RowBuilder -> PackedBatch

What comes next is planned from the lengths in the index alone, which is cheap. So every rank plans all rows
and builds its own, and the rows of a step are the same on any number of ranks: none can run dry.
"""

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from dmlm.pipeline.errors import CheckpointError, ConfigError
from dmlm.trainer.config import Recipe
from dmlm.trainer.data.dataset import TrainingData
from dmlm.trainer.data.mix import Mix, build_groups
from dmlm.trainer.data.packing import PackedBatch, Packer
from dmlm.trainer.data.rows import RowBuilder

if TYPE_CHECKING:
    from dmlm.trainer.data.sequences import SequenceDataset

ROWS_AT_ONCE: Final = 16


class TokenStream:
    """Packed rows without end; the same data, recipe and seed always give the same rows."""

    def __init__(
        self, data: TrainingData, recipe: Recipe, seed: int, *, rank: int = 0, world_size: int = 1
    ) -> None:
        """Plans the groups from the index alone.

        Raises:
            ConfigError: No sample fits any entry of the mix, or the rows of a step cannot be shared evenly.
        """
        if recipe.batch.num_micro_batches % world_size:
            raise ConfigError(
                f"batch.num_micro_batches {recipe.batch.num_micro_batches} cannot be shared evenly by "
                f"{world_size} ranks; make it a multiple of {world_size}"
            )
        self.groups = build_groups(data, recipe)
        self._data, self._recipe, self._seed = data, recipe, seed
        self._rank, self._world_size = rank, world_size
        self._mix = Mix(self.groups, seed)
        self._packer = Packer(recipe.batch.max_tokens, recipe.batch.pool_size, self._mix.draw)
        self._builder = RowBuilder(data, self._mix, recipe.sequence, seed)
        self._num_planned = 0
        self._built: deque[tuple[list[PackedBatch], dict[str, Any]]] = deque()
        self._state = self._planned_state()

    def next_step(self) -> list[PackedBatch]:
        """Micro-batches of this rank for the next optimizer step.

        Of all micro-batches of the step, number i is of rank i mod world size.

        Raises:
            ShardCorruptError: A sample's tokens are damaged, or its index does not fit them.
        """
        if not self._built:
            self._build_steps()
        batches, self._state = self._built.popleft()
        return batches

    def state(self) -> dict[str, Any]:
        """Plain json from which `restore` goes on exactly behind the last step given.

        It is the same on every rank.
        """
        return self._state

    @property
    def reading(self) -> str:
        """Name of the shard that is, or was last, read."""
        return self._builder.reading

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on where a stream of the same data, recipe and seed gave `state`, on any number of ranks.

        Raises:
            CheckpointError: The state is of another version, or of another mix.
        """
        wanted = self._state.keys()
        if state.keys() != wanted:
            raise CheckpointError(
                f"the stream's state holds {', '.join(state)}; this version wants {', '.join(wanted)}: "
                "go on with the version that wrote it, or train again"
            )
        self._mix.restore(state["groups"])
        self._packer.pool = [(draw, self._mix.lengths_D.item(draw)) for draw in state["pool"]]
        self._num_planned = state["num_steps"]
        self._built.clear()
        self._state = self._planned_state()

    def as_webdataset(self) -> "SequenceDataset":
        """The sequences one by one, for a training loop of your own; see `SequenceDataset`.

        It begins at the first draw, whatever this stream has given already.
        """
        from dmlm.trainer.data.sequences import SequenceDataset

        return SequenceDataset(
            self._data, self._recipe, self._seed, rank=self._rank, world_size=self._world_size
        )

    def _build_steps(self) -> None:
        """Builds some steps ahead: a row at a time would cost several times as much."""
        num_rows = self._recipe.batch.num_micro_batches
        planned: dict[int, list[int]] = {}
        states = []
        while len(planned) < ROWS_AT_ONCE:
            rows = [self._packer.next_row() for _ in range(num_rows)]
            for place in range(self._rank, num_rows, self._world_size):
                planned[self._num_planned * num_rows + place] = rows[place]
            self._num_planned += 1
            states.append(self._planned_state())
        batches = self._builder.build_rows(planned)
        num_mine = num_rows // self._world_size
        self._built.extend(
            (batches[step * num_mine : (step + 1) * num_mine], state) for step, state in enumerate(states)
        )

    def _planned_state(self) -> dict[str, Any]:
        return {
            "num_steps": self._num_planned,
            "groups": self._mix.state(),
            "pool": [draw for draw, _ in self._packer.pool],
        }
