"""Training steps with the Hugging Face Trainer, padded in its ways or flattened: the peer of row D."""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from dmlm.trainer.data.tasks import GIVEN, TaskSequence

LEARNING_RATE = 1e-2
"""Of every side."""


def run_trainer(
    model: PreTrainedModel, steps: Sequence[Sequence[TaskSequence]], options: argparse.Namespace
) -> tuple[list[float], list[float]]:
    """Times of the ends of the steps, and their losses.

    Args:
        model: Trained in place.
        steps: Sequences of each step.
        options: `side` says how they are padded, `max_length` to how much at most.
    """
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *arguments: Any, **_: Any) -> None:
            ends.append(time.perf_counter())

    with TemporaryDirectory() as directory:
        settings = TrainingArguments(
            directory,
            per_device_train_batch_size=options.sequences,
            max_steps=len(steps),
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            optim="adamw_torch_fused",
            adam_beta2=0.98,
            weight_decay=0.01,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            train_sampling_strategy="sequential",
        )
        trainer = Trainer(
            model,
            settings,
            train_dataset=[_example(sequence) for step in steps for sequence in step],
            data_collator=_make_collator(options),
            callbacks=[Clock()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return ends, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def _example(sequence: TaskSequence) -> dict[str, list[int]]:
    labels = np.where(sequence.modality_T == GIVEN, -100, sequence.tokens_T)
    return {"input_ids": sequence.tokens_T.tolist(), "labels": labels.tolist()}


def _make_collator(options: argparse.Namespace) -> Callable[[list[dict[str, list[int]]]], Mapping[str, Any]]:
    from transformers import DataCollatorWithFlattening

    if options.side == "flattened":
        return DataCollatorWithFlattening()

    def pad(examples: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        lengths = [len(example["input_ids"]) for example in examples]
        width = options.max_length if options.side == "max" else max(lengths)

        def column(rows: list[list[int]], filler: int) -> torch.Tensor:
            return torch.tensor([row + [filler] * (width - len(row)) for row in rows])

        return {
            "input_ids": column([example["input_ids"] for example in examples], 0),
            "labels": column([example["labels"] for example in examples], -100),
            "attention_mask": column([[1] * length for length in lengths], 0),
        }

    return pad
