"""The training loop: stream -> packed rows -> logits -> loss -> step; checkpoints, resume, interruption.

Everything random about a step follows from the seed and the step's number, and the stream's state is plain
json, so a resumed run gives the same losses as one that was never stopped.
"""

import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from dmlm.pipeline.devices import open_device
from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.samples import Modality
from dmlm.pipeline.storage import write_bytes, write_json
from dmlm.trainer.checkpoint import (
    TrainerState,
    checkpoint_path,
    load_trainer_state,
    mark_best,
    save_checkpoint,
)
from dmlm.trainer.config import TrainConfig
from dmlm.trainer.data.dataset import open_training_data
from dmlm.trainer.data.prefetch import Prefetcher
from dmlm.trainer.data.shard_hashing import ShardHasher
from dmlm.trainer.data.stream import TokenStream
from dmlm.trainer.distributed import ALONE, Ranks, whole_model
from dmlm.trainer.interruption import stop_signal
from dmlm.trainer.models.model import build_model, load_model
from dmlm.trainer.optim import optimizer_tensors, restore_optimizer
from dmlm.trainer.resuming import (
    choose_checkpoint,
    read_codebooks,
    resolve_init,
    resumed_settings,
    shareable_init,
    with_init,
    with_vocabulary_of,
)
from dmlm.trainer.settings import (
    RUN_SETTINGS_NAME,
    RunSettings,
    all_trained,
    check_init_tokens,
    find_datasets_before,
    read_settings,
)
from dmlm.trainer.step import TrainStep
from dmlm.trainer.trained_tasks import trained_tasks
from dmlm.trainer.watching.metrics import Record
from dmlm.trainer.watching.plan import count_operations, make_plan
from dmlm.trainer.watching.run_log import NoLog, RunLog, read_history
from dmlm.trainer.watching.tables import describe_plan, describe_total
from dmlm.trainer.watching.trackers import open_trackers
from dmlm.trainer.watching.validation import describe_validator, open_validator

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PLAN_NAME: Final = "plan.txt"
HASH_WAIT_SECONDS: Final = 0.5
"""Between two looks at whether a run that waits for hashes is to stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainReport:
    """What a run did."""

    checkpoint: Path
    """The last one."""
    num_steps: int
    last: Record | None
    """Of the last few steps; None when the run was complete before."""
    total: Record | None
    """Of all steps, those before `--resume` included."""

    def table(self) -> str:
        """The report for the console."""
        if self.last is None or self.total is None:
            return f"all {self.num_steps} steps were done before; checkpoint: {self.checkpoint}"
        return (
            f"trained {self.num_steps} steps: {self.total.num_tokens} tokens, "
            f"{self.total.num_sequences} sequences in {self.total.seconds:.0f} s\n"
            f"{describe_total(self.total, self.last)}\n"
            f"checkpoint: {self.checkpoint}"
        )


def train(config: TrainConfig, ranks: Ranks = ALONE) -> TrainReport:
    """Trains a model; `config.out_dir` gets checkpoints, config, plan, `metrics.jsonl`, `validation.jsonl`.

    Where several `ranks` train together, each calls this with the same config, and the first one writes.

    Raises:
        ConfigError: The config cannot be honoured, or `out_dir` holds another run.
        MissingDependencyError: The package of a tracker is not installed.
        CheckpointError: What the run begins with is damaged, or all that it could go on from is.
        FingerprintMismatchError: Data sets, model or checkpoint differ in tokenizers or settings.
        NotFiniteError: The loss or the gradient became NaN or infinite; the checkpoints before are kept.
        ShardCorruptError: The bytes of a shard are not those of its card, whenever that is found.
        KeyboardInterrupt: SIGINT or SIGTERM came, to any rank; a checkpoint was saved.
    """
    run = _Run(config, ranks)
    if ranks.is_first:
        plan = f"{run.plan}\n"
        sys.stderr.write(plan)
        write_bytes(config.out_dir / PLAN_NAME, plan.encode())
    with torch.random.fork_rng(devices=[]), stop_signal() as is_asked_to_stop:
        return run.train(is_asked_to_stop)


class _Run:
    """Model, optimizer and stream of a run, at the step where it begins or goes on."""

    def __init__(self, config: TrainConfig, ranks: Ranks) -> None:
        recipe = with_init(config.recipe, config.init or config.recipe.model.init)
        device = open_device(ranks.device_name(config.device))
        self._recipe, self._seed, self._out_dir, self._ranks = recipe, config.seed, config.out_dir, ranks
        data = open_training_data(config.shards, config.limit)
        self._checkpoint = self._find_checkpoint(config.resume)
        if self._checkpoint is None:
            self._recipe = with_init(recipe, resolve_init(recipe.model.init, ranks))
        data = with_vocabulary_of(data, self._checkpoint or self._recipe.model.init)
        self._text_dir, self._shard_files = data.codebook_dirs[Modality.TEXT], data.files
        self._codebooks = read_codebooks(data.codebook_dirs) if ranks.is_first else {}
        self._settings = RunSettings(
            recipe=with_init(recipe, shareable_init(recipe.model.init)),
            seed=config.seed,
            limit=config.limit,
            datasets=data.identities,
            fingerprints=data.fingerprints,
            vocabulary=data.vocabulary,
        )
        if self._checkpoint is not None:
            self._settings = resumed_settings(self._checkpoint, self._settings, recipe.model.init)
        self._trackers = config.trackers
        self._stream = TokenStream(data, recipe, config.seed, rank=ranks.rank, world_size=ranks.world_size)
        self._model = self._build_model().to(device)
        self._settings = self._add_history(self._settings)
        ranks.wait_for_all()
        self._step = TrainStep(self._model, recipe, config.seed, ranks)
        self._num_done = 0
        self._metrics: Mapping[str, Any] = {}
        if self._checkpoint is not None:
            self._restore(self._checkpoint)
        self._plan = make_plan(self._stream.groups, recipe, config.seed)
        self._validator = open_validator(data, recipe, self._stream.groups, self._step.products, ranks)
        if self._validator is not None:
            set_sha256 = self._validator.set_sha256
            self._validator.history = read_history(self._out_dir, self._num_done, set_sha256)

    @property
    def plan(self) -> str:
        """What the run will do."""
        num_parameters = sum(parameter.numel() for parameter in self._model.parameters())
        ranks = f"{self._ranks.world_size} × " if self._ranks.joined else ""
        start = f"going on from {self._checkpoint.name}" if self._checkpoint else "from the first step"
        products = str(self._step.products).removeprefix("torch.")
        return (
            f"{num_parameters / 1e6:.2f} M parameters on {ranks}{self._model.device.type}, {start}; "
            f"products in {products}, attention: {self._step.kernel}\n"
            f"{describe_plan(self._plan)}\n"
            f"{describe_validator(self._validator, self._recipe.validation)}"
        )

    def train(self, is_asked_to_stop: Callable[[], bool]) -> TrainReport:
        """Runs the steps that are left; when a rank is asked to stop, saves and raises KeyboardInterrupt."""
        recipe = self._recipe
        on_gpu = self._model.device.type == "cuda"
        with (
            closing(self._open_log()) as log,
            closing(Prefetcher(self._stream, pin_memory=on_gpu)) as stream,
            closing(self._hash_shards()) as hasher,
        ):
            self._catch_up(log)
            self._ranks.wait_for_all()
            while self._num_done < recipe.num_steps:
                hasher.check()
                result = self._step(self._num_done, stream.next_step(), is_asked_to_stop)
                self._num_done += 1
                log.add(self._num_done, result)
                is_best = not result.is_stopping and self._validate(log)
                is_due = self._num_done == recipe.num_steps or self._num_done % recipe.save_every_steps == 0
                if result.is_stopping or is_due or is_best:
                    self._checkpoint = self._save(stream.state(), log.state(), is_best)
                if result.is_stopping:
                    raise KeyboardInterrupt(f"stopped and saved {self._checkpoint}; go on with --resume")
            _await_hashes(hasher, is_asked_to_stop)
        assert self._checkpoint is not None, "the last step saves"
        return TrainReport(
            checkpoint=self._checkpoint,
            num_steps=recipe.num_steps,
            last=log.last,
            total=log.total,
        )

    def _hash_shards(self) -> ShardHasher:
        # Once per machine is enough.
        return ShardHasher(self._shard_files if self._ranks.local_rank == 0 else (), self._out_dir)

    def _open_log(self) -> RunLog | NoLog:
        if not self._ranks.is_first:
            return NoLog()
        settings = self._settings.to_json()
        write_json(self._out_dir / RUN_SETTINGS_NAME, settings)
        operations = count_operations(self._model, self._stream.groups, self._ranks.world_size)
        trackers = open_trackers(self._trackers, self._out_dir, self._num_done, settings)
        return RunLog(self._out_dir, self._plan, operations, trackers, self._num_done, self._metrics)

    def _find_checkpoint(self, resume: bool) -> Path | None:
        newest = choose_checkpoint(self._out_dir, self._ranks)
        if newest is not None and not resume:
            raise ConfigError(
                f"{self._out_dir} holds a run already: add --resume to go on, or choose another --out"
            )
        return newest

    def _add_history(self, settings: RunSettings) -> RunSettings:
        init = self._recipe.model.init
        resumed = None if self._checkpoint is None else read_settings(self._checkpoint)[1]
        trained = all_trained(trained_tasks(self._stream.groups), init, resumed)
        return replace(settings, trained=trained, datasets_before=find_datasets_before(init, resumed))

    def _build_model(self) -> "PreTrainedModel":
        if self._checkpoint is not None:
            return load_model(self._checkpoint)
        config = self._recipe.model
        if config.init is not None:
            check_init_tokens(config.init, self._settings.fingerprints)
        return build_model(
            config,
            self._settings.vocabulary,
            text_dir=self._text_dir,
            max_length=self._recipe.sequence.max_length,
            seed=self._seed,
        )

    def _restore(self, checkpoint: Path) -> None:
        state = load_trainer_state(checkpoint)
        restore_optimizer(self._model, self._step.optimizer, state.optimizer)
        self._stream.restore(state.stream)
        self._num_done, self._metrics = state.step, state.metrics

    def _validate(self, log: RunLog | NoLog) -> bool:
        """Validates if it is time; whether the model is the best so far."""
        if self._validator is None or not self._validator.is_due(self._num_done):
            return False
        validation = self._validator(self._model, self._num_done)
        log.add_validation(validation)
        self._ranks.wait_for_all()  # the first one decodes
        return validation.is_best

    def _catch_up(self, log: RunLog | NoLog) -> None:
        """Does what a run left undone that stopped behind a step and saved it."""
        self._validate(log)
        if self._validator is not None and self._ranks.is_first:
            mark_best(self._out_dir, self._validator.history.best_step)

    def _save(self, stream: Mapping[str, Any], metrics: Mapping[str, Any], is_best: bool) -> Path:
        is_kept = self._ranks.is_first
        model = whole_model(self._model, is_kept=is_kept)
        state = TrainerState(
            step=self._num_done,
            optimizer=optimizer_tensors(self._model, self._step.optimizer, is_kept=is_kept),
            stream=stream,
            metrics=metrics,
        )
        if is_kept:
            save_checkpoint(
                self._out_dir,
                model=model,
                state=state,
                settings=self._settings,
                codebooks=self._codebooks,
                is_best=is_best,
            )
        self._ranks.wait_for_all()
        return checkpoint_path(self._out_dir, self._num_done)


def _await_hashes(hasher: ShardHasher, is_asked_to_stop: Callable[[], bool]) -> None:
    """No run ends well on shards that nobody has checked; one stopped here waits again with `--resume`."""
    if hasher.wait(0):
        return
    sys.stderr.write("all steps are saved; waiting until every shard has been hashed\n")
    while not hasher.wait(HASH_WAIT_SECONDS):
        if is_asked_to_stop():
            raise KeyboardInterrupt("all steps are saved, but not every shard is hashed; go on with --resume")
