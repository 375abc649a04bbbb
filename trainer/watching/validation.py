"""Validation while a run goes on: each task's loss on held-out sequences, and a few answers to look at.

Nothing random and nothing of the training is touched, so a run with validation trains exactly as one without.
The ranks share the rows; the answers come from the first.

Suffixes: K task of the validation set, M modality, N token that carries loss, T token of an answer.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor

from dmlm.pipeline.samples import Modality, TokenArray
from dmlm.pipeline.tokenizers import TextTokenizer
from dmlm.pipeline.tokenizers.text import load_text_tokenizer
from dmlm.pipeline.vocabulary import Vocabulary
from dmlm.trainer.config import Recipe, ValidationConfig
from dmlm.trainer.data.dataset import TrainingData
from dmlm.trainer.data.mix import Group, task_shares
from dmlm.trainer.data.tasks import MODALITIES
from dmlm.trainer.decoding import DecodingConfig, constraint_of, decode
from dmlm.trainer.distributed import Ranks, whole_model
from dmlm.trainer.loss import NUM_MODALITIES, sum_by_task
from dmlm.trainer.models.packed_forward import PackedModel
from dmlm.trainer.watching.plan import FloatArray
from dmlm.trainer.watching.validation_set import TaskValidationSet, build_validation_set, sha256_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NUM_SPARE_TOKENS: Final = 16
"""An answer may be twice as long as the sample's own, and so much longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskLoss:
    """Teacher-forced loss of one task."""

    num_sequences: int
    nats_per_token: Mapping[str, float]
    """By modality."""
    nats_per_character: float | None
    """Of the text with its end, where the task answers with text: comparable between text tokenizers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the model makes of one sample: text, or numbers of units or codes."""

    task: str
    key: str
    expected: str
    given: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """A line of `validation.jsonl`."""

    step: int
    """Steps done."""
    loss: float
    """The recipe's loss with the tasks mixed as in training: what the best checkpoint is chosen by."""
    is_best: bool
    """Whether it is lower than ever before on these sequences."""
    set_sha256: str
    """Of the sequences."""
    tasks: Mapping[str, TaskLoss]
    answers: tuple[Answer, ...]
    """Empty on all ranks but the first."""
    seconds: float

    def figures(self) -> Iterator[tuple[str, float]]:
        """Name and value of everything that makes a curve."""
        yield "validation/loss", self.loss
        for task, loss in self.tasks.items():
            for modality, value in loss.nats_per_token.items():
                yield f"validation/{task}/{modality}", value
            if loss.nats_per_character is not None:
                yield f"validation/{task}/nats_per_character", loss.nats_per_character


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """Validations of a run so far."""

    best_step: int = 0
    """Of those on the same sequences; 0: none."""
    best_loss: float = math.inf
    newest_step: int = 0


class Validator:
    """Validates a model again and again on the same sequences."""

    def __init__(
        self,
        sets: Sequence[TaskValidationSet],
        recipe: Recipe,
        *,
        unseen_tasks: Sequence[str],
        vocabulary: Vocabulary,
        text_tokenizer: TextTokenizer,
        products: torch.dtype,
        ranks: Ranks,
    ) -> None:
        self.sets, self.set_sha256 = sets, sha256_of(sets)
        self.unseen_tasks = unseen_tasks
        """Tasks that are trained and of which nothing is held out."""
        self.history = History()
        """May be set to go on from there."""
        self._recipe, self._products, self._ranks = recipe, products, ranks
        self._vocabulary, self._text_tokenizer = vocabulary, text_tokenizer

    def is_due(self, step: int) -> bool:
        """Whether the recipe wants a validation behind step `step`, and there was none."""
        is_time = step % self._recipe.validation.every_steps == 0 or step == self._recipe.num_steps
        return is_time and step > self.history.newest_step

    def __call__(self, model: "PreTrainedModel", step: int) -> Validation:
        """Validates a model behind step `step`; every rank has to ask for it.

        The model, whole or a shard of it, is left as it was.
        """
        start = time.monotonic()
        whole = _runnable(model)
        with _evaluating(whole, self._recipe):
            sums_KM, tokens_KM = self._sum_losses(whole)
            answers = tuple(self._answers(whole)) if self._ranks.is_first else ()
        loss = self._mixed_loss(sums_KM, tokens_KM)
        is_best = loss < self.history.best_loss
        if is_best:
            self.history = History(best_step=step, best_loss=loss, newest_step=step)
        else:
            self.history = replace(self.history, newest_step=step)
        return Validation(
            step=step,
            loss=loss,
            is_best=is_best,
            set_sha256=self.set_sha256,
            tasks={
                task_set.task.name: self._task_loss(task_set, sums_M, tokens_M)
                for task_set, sums_M, tokens_M in zip(self.sets, sums_KM, tokens_KM, strict=True)
            },
            answers=answers,
            seconds=time.monotonic() - start,
        )

    @torch.no_grad()
    def _sum_losses(self, model: "PreTrainedModel") -> tuple[FloatArray, FloatArray]:
        """Cross-entropies and numbers of tokens K × M, over all ranks."""
        packed = PackedModel(model, products=self._products)
        sums = torch.zeros(2, len(self.sets), NUM_MODALITIES, dtype=torch.float64, device=model.device)
        rows = [(number, row) for number, task_set in enumerate(self.sets) for row in task_set.rows]
        for number, row in rows[self._ranks.rank :: self._ranks.world_size]:
            batch = row.to(model.device)
            losses_N: Tensor = packed(batch, torch.ones(batch.num_targets, device=model.device))[1]
            sums[0, number] += sum_by_task(losses_N[:, None], batch).sum(dim=(0, 2))
            sums[1, number] += batch.count_targets(NUM_MODALITIES)
        sums_KM, tokens_KM = self._ranks.sum(sums).cpu().numpy()
        return sums_KM, tokens_KM

    def _mixed_loss(self, sums_KM: FloatArray, tokens_KM: FloatArray) -> float:
        """Loss of the recipe if the tasks had their training shares of the tokens."""
        config = self._recipe.loss
        scale_K = np.array([task_set.share / task_set.num_tokens for task_set in self.sets])
        sums_M, tokens_M = scale_K @ sums_KM, scale_K @ tokens_KM
        if config.normalise == "none":
            return float(sums_M.sum() / tokens_M.sum())
        lambdas_M = np.array([getattr(config, modality) for modality in MODALITIES])
        present_M = tokens_M > 0
        return float((lambdas_M[present_M] * sums_M[present_M] / tokens_M[present_M]).sum())

    def _task_loss(self, task_set: TaskValidationSet, sums_M: FloatArray, tokens_M: FloatArray) -> TaskLoss:
        per_character = None
        if task_set.target_modality is Modality.TEXT:
            texts = [self._text_tokenizer.decode(target_T) for target_T in task_set.targets]
            text = MODALITIES.index(Modality.TEXT)
            per_character = float(sums_M[text] / max(sum(map(len, texts)), 1))
        return TaskLoss(
            num_sequences=task_set.num_sequences,
            nats_per_token={
                str(modality): float(total / num_tokens)
                for modality, total, num_tokens in zip(MODALITIES, sums_M, tokens_M, strict=True)
                if num_tokens
            },
            nats_per_character=per_character,
        )

    def _answers(self, model: "PreTrainedModel") -> Iterator[Answer]:
        # The attention of packed rows knows no cache of keys and values.
        model.set_attn_implementation("sdpa")
        for task_set in self.sets:
            task, questions = task_set.task.name, task_set.questions
            outputs = decode(
                model,
                [question.prompt_T for question in questions],
                constraint_of(task, self._vocabulary),
                DecodingConfig(),
                max_new_tokens=[2 * len(q.target_T) + NUM_SPARE_TOKENS for q in questions],
            )
            for output in sorted(outputs, key=lambda output: output.index):
                question = questions[output.index]
                yield Answer(
                    task=task,
                    key=question.key,
                    expected=self._read(task_set.target_modality, question.target_T),
                    given=self._read(task_set.target_modality, output.tokens),
                )

    def _read(self, modality: Modality, tokens_T: TokenArray) -> str:
        if modality is Modality.TEXT:
            return self._text_tokenizer.decode(tokens_T).strip()
        return " ".join(map(str, (tokens_T - self._vocabulary.range_of(modality).start).tolist()))


def _runnable(model: "PreTrainedModel") -> "PreTrainedModel":
    """The model, or a whole copy on the same device if its parameters are shards."""
    whole = whole_model(model)
    if whole is not model:
        # Buffers that no checkpoint holds, such as rotary frequencies; no rank has a shard of those.
        for name, buffer in model.named_buffers(remove_duplicate=False):
            parent, _, leaf = name.rpartition(".")
            setattr(whole.get_submodule(parent), leaf, buffer)
        whole = whole.to(model.device)
    return whole


@contextmanager
def _evaluating(model: "PreTrainedModel", recipe: Recipe) -> Iterator[None]:
    """Puts the model into evaluation mode and leaves it as it was."""
    was_training, attention = model.training, model.config._attn_implementation
    model.eval()
    try:
        # What was compiled for training need not be compiled again for this.
        with torch.compiler.set_stance("force_eager") if recipe.torch_compile else nullcontext():
            yield
    finally:
        model.train(was_training)
        model.set_attn_implementation(attention)


def open_validator(
    data: TrainingData, recipe: Recipe, groups: Sequence[Group], products: torch.dtype, ranks: Ranks
) -> Validator | None:
    """Validator of a run that trains on `groups`; None where none is wanted, or nothing is held out."""
    if not recipe.validation.every_steps:
        return None
    sets = build_validation_set(data, recipe, groups)
    if not sets:
        return None
    seen = {task_set.task.name for task_set in sets}
    return Validator(
        sets,
        recipe,
        unseen_tasks=[task for task in task_shares(groups) if task not in seen],
        vocabulary=data.vocabulary,
        text_tokenizer=load_text_tokenizer(data.codebook_dirs[Modality.TEXT]),
        products=products,
        ranks=ranks,
    )


def describe_validator(validator: Validator | None, config: ValidationConfig) -> str:
    """What will be validated, for the console and `plan.txt`."""
    if not config.every_steps:
        return "no validation: the recipe has validation.every_steps 0"
    if validator is None:
        splits = ", ".join(config.splits)
        return (
            f"no validation: no sample of what is trained is in a split that is held out and matches {splits}"
        )
    held_out = ", ".join(f"{s.task.name} {s.num_sequences}" for s in validator.sets)
    shown = f"validation every {config.every_steps} steps on held-out sequences: {held_out}"
    if unseen := ", ".join(validator.unseen_tasks):
        shown += f"; none of {unseen}, without which the best checkpoint is chosen"
    return shown
