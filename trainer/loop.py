"""The training loop: stream -> packed rows -> logits -> loss -> step; checkpoints, resume, interruption.

Everything random about a step follows from the seed and the step's number, and the stream's state is plain
json, so a resumed run gives the same losses as one that was never stopped.
"""

import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import torch

from dmlm.pipeline.devices import open_device
from dmlm.pipeline.errors import ConfigError, NotFiniteError
from dmlm.pipeline.randomness import generator_for
from dmlm.pipeline.samples import Modality
from dmlm.pipeline.storage import write_json
from dmlm.trainer.checkpoint import TrainerState, latest_checkpoint, load_trainer_state, save_checkpoint
from dmlm.trainer.config import Recipe, TrainConfig
from dmlm.trainer.dataset import open_training_data
from dmlm.trainer.loss import count_loss_tokens, loss_terms, token_losses, token_weights, weighted_loss
from dmlm.trainer.metrics import Record, RunLog, StepResult, describe_plan
from dmlm.trainer.model import build_model, load_model, packed_logits, use_packed_attention
from dmlm.trainer.optim import (
    build_optimizer,
    clip_gradient,
    learning_rate,
    optimizer_tensors,
    restore_optimizer,
    update,
)
from dmlm.trainer.packing import PackedBatch
from dmlm.trainer.settings import RunSettings, check_same_run, read_settings
from dmlm.trainer.stream import TokenStream

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NUM_NAMED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainReport:
    """What a run did."""

    checkpoint: Path
    """The last one."""
    num_steps: int
    last: Record | None
    """Of the last few steps; None when the run was complete before."""
    total: Record | None
    """Of all steps of this process."""

    def table(self) -> str:
        """The report for the console."""
        if self.last is None or self.total is None:
            return f"all {self.num_steps} steps were done before; checkpoint: {self.checkpoint}"
        return (
            f"trained {self.num_steps} steps: {self.total.num_tokens} tokens, "
            f"{self.total.num_sequences} sequences in {self.total.seconds:.0f} s\n"
            f"on average: {self.total.line()}\n"
            f"at the end: {self.last.line()}\n"
            f"checkpoint: {self.checkpoint}"
        )


def train(config: TrainConfig) -> TrainReport:
    """Trains a model and writes checkpoints, `metrics.jsonl` and the resolved config to `config.out_dir`.

    Raises:
        ConfigError: The config cannot be honoured, or `out_dir` holds another run.
        FingerprintMismatchError: Data sets, model or checkpoint differ in tokenizers or settings.
        NotFiniteError: The loss or the gradient became NaN or infinite; the checkpoints before are kept.
        KeyboardInterrupt: SIGINT or SIGTERM came; a checkpoint was saved.
    """
    run = _Run(config)
    sys.stderr.write(run.plan + "\n")
    with torch.random.fork_rng(devices=[]), _stop_signal() as stopped:
        return run.train(stopped)


class _Run:
    """Model, optimizer and stream of a run, at the step where it begins or goes on."""

    def __init__(self, config: TrainConfig) -> None:
        recipe = _with_init(config.recipe, config.init or config.recipe.model.init)
        device = open_device(config.device)
        data = open_training_data(config.shards, config.limit)
        self._recipe, self._seed, self._out_dir, self._device = recipe, config.seed, config.out_dir, device
        self._codebook_dirs = data.codebook_dirs
        self._settings = RunSettings(
            recipe=_with_init(recipe, _shareable_name(recipe.model.init)),
            seed=config.seed,
            limit=config.limit,
            datasets=data.identities,
            fingerprints=data.fingerprints,
            vocabulary=data.vocabulary,
        )
        self._checkpoint = self._find_checkpoint(config.resume)
        self._stream = TokenStream(data, recipe, config.seed)
        self._model = self._build_model().to(device)
        use_packed_attention(self._model)
        self._optimizer = build_optimizer(self._model, recipe.optimizer)
        self._num_done = 0
        if self._checkpoint is not None:
            self._restore(self._checkpoint)

    @property
    def plan(self) -> str:
        """What the run will do, for the console."""
        num_parameters = sum(parameter.numel() for parameter in self._model.parameters())
        start = f"going on from {self._checkpoint}" if self._checkpoint else "from the first step"
        return (
            f"{num_parameters / 1e6:.2f} M parameters on {self._device}, {start}\n"
            f"{describe_plan(self._stream.groups, self._recipe)}"
        )

    def train(self, stopped: Callable[[], bool]) -> TrainReport:
        """Runs the steps that are left; when `stopped`, saves and raises KeyboardInterrupt."""
        recipe = self._recipe
        write_json(self._out_dir / "config.json", self._settings.to_json())
        log = RunLog(self._out_dir, recipe, self._num_done)
        while self._num_done < recipe.num_steps:
            result = self._train_step()
            self._num_done += 1
            log.add(self._num_done, result)
            stopping = stopped()
            if (
                stopping
                or self._num_done % recipe.save_every_steps == 0
                or self._num_done == recipe.num_steps
            ):
                self._checkpoint = self._save()
            if stopping:
                raise KeyboardInterrupt(f"stopped and saved {self._checkpoint}; go on with --resume")
        assert self._checkpoint is not None, "the last step saves"
        return TrainReport(
            checkpoint=self._checkpoint, num_steps=recipe.num_steps, last=log.last, total=log.total
        )

    def _train_step(self) -> StepResult:
        # Dropout depends on the step alone, so no state of a generator has to be saved.
        torch.manual_seed(int(generator_for(self._seed, "step", self._num_done).integers(2**63)))
        batches = [
            self._stream.next_batch().to(self._device) for _ in range(self._recipe.batch.num_micro_batches)
        ]
        counts = count_loss_tokens(batches)
        loss, terms = 0.0, []
        for batch in batches:
            losses_N = token_losses(packed_logits(self._model, batch), batch.targets_N)
            batch_loss = weighted_loss(losses_N, token_weights(batch, counts, self._recipe.loss))
            if not math.isfinite(batch_loss.item()):
                raise self._not_finite("loss", _keys_of_bad_losses(batch, losses_N))
            batch_loss.backward()  # type: ignore[no-untyped-call]
            loss += batch_loss.item()
            terms.append(loss_terms(losses_N, batch))
        gradient_norm = clip_gradient(self._model, self._recipe.optimizer.max_gradient_norm)
        if not math.isfinite(gradient_norm):
            raise self._not_finite("gradient", [key for batch in batches for key in batch.keys])
        rate = learning_rate(self._num_done, self._recipe.num_steps, self._recipe.optimizer)
        update(self._optimizer, rate)
        return StepResult(
            loss=loss,
            terms=reduce(add, terms),
            learning_rate=rate,
            gradient_norm=gradient_norm,
            batches=batches,
        )

    def _not_finite(self, what: str, keys: Sequence[str]) -> NotFiniteError:
        more = f" and {len(keys) - NUM_NAMED} more" if len(keys) > NUM_NAMED else ""
        return NotFiniteError(
            f"step {self._num_done + 1}: the {what} is not finite: {', '.join(keys[:NUM_NAMED])}{more}; "
            "lower the learning rate, or look at these samples"
        )

    def _find_checkpoint(self, resume: bool) -> Path | None:
        newest = latest_checkpoint(self._out_dir)
        if newest is None:
            return None
        if not resume:
            raise ConfigError(
                f"{self._out_dir} holds a run already: add --resume to go on, or choose another --out"
            )
        check_same_run(newest, read_settings(newest)[1], self._settings)
        return newest

    def _build_model(self) -> "PreTrainedModel":
        if self._checkpoint is not None:
            return load_model(self._checkpoint)
        return build_model(
            self._recipe.model,
            self._settings.vocabulary,
            text_dir=self._codebook_dirs[Modality.TEXT],
            max_length=self._recipe.sequence.max_length,
            seed=self._seed,
        )

    def _restore(self, checkpoint: Path) -> None:
        state = load_trainer_state(checkpoint)
        restore_optimizer(self._model, self._optimizer, state.optimizer)
        self._stream.restore(state.stream)
        self._num_done = state.step

    def _save(self) -> Path:
        state = TrainerState(
            step=self._num_done,
            optimizer=optimizer_tensors(self._model, self._optimizer),
            stream=self._stream.state(),
        )
        return save_checkpoint(
            self._out_dir,
            model=self._model,
            state=state,
            settings=self._settings,
            codebook_dirs=self._codebook_dirs,
        )


def _with_init(recipe: Recipe, init: str | None) -> Recipe:
    return replace(recipe, model=replace(recipe.model, init=init))


def _shareable_name(init: str | None) -> str | None:
    """What a checkpoint tells of its beginning: a hub's name, or a folder's without this machine's path."""
    return Path(init).resolve().name if init is not None and Path(init).is_dir() else init


def _keys_of_bad_losses(batch: PackedBatch, losses_N: torch.Tensor) -> list[str]:
    numbers = batch.sequence_N[~torch.isfinite(losses_N)].tolist()
    return [batch.keys[number] for number in sorted(set(numbers))]


@contextmanager
def _stop_signal() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether SIGINT or SIGTERM came; a second one acts at once."""
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for name, handler in handlers.items():
            signal.signal(name, handler)

    in_main_thread = threading.current_thread() is threading.main_thread()
    names = (signal.SIGINT, signal.SIGTERM) if in_main_thread else ()
    handlers = {name: signal.signal(name, receive) for name in names}
    try:
        yield lambda: bool(received)
    finally:
        for name, handler in handlers.items():
            signal.signal(name, handler)
