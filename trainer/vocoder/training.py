"""`train-vocoder`: shards and their recordings -> units and mel spectrograms -> UnitVoice -> a folder.

Suffixes: B stretch, F frame of 20 ms, R run of equal units, T mel frame, M mel band.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dmlm.pipeline.audio import load_utterance
from dmlm.pipeline.devices import open_device
from dmlm.pipeline.errors import ConfigError, NotFiniteError
from dmlm.pipeline.progress import Progress, track
from dmlm.pipeline.randomness import generator_for
from dmlm.pipeline.tokenizers import UNITS_PER_SECOND
from dmlm.trainer.vocoder.checkpoint import Vocoder, prepare_folder, save_vocoder
from dmlm.trainer.vocoder.config import TrainVocoderConfig, VocoderRecipe
from dmlm.trainer.vocoder.mel import PADDING, SAMPLING_RATE_HZ, log_mel
from dmlm.trainer.vocoder.model import (
    MEL_FRAMES_PER_UNIT,
    UnitVoice,
    count_mel_frames,
    duration_loss,
    mask_of,
    mel_positions,
)
from dmlm.trainer.vocoder.recordings import check_length, common_fingerprint, draw_rows, find_utterances


@dataclass(frozen=True, slots=True, kw_only=True)
class VocoderReport:
    """What a run did."""

    num_utterances: int
    audio_seconds: float
    num_steps: int
    mel_loss: float
    """Mean absolute error of the log-mel spectrogram in the last tenth of the steps."""
    duration_loss: float
    reading_seconds: float
    training_seconds: float

    def table(self) -> str:
        """A line for people."""
        return (
            f"vocoder: {self.num_utterances} utterances ({self.audio_seconds:.0f} s), {self.num_steps} "
            f"steps, mel error {self.mel_loss:.3f}, {self.reading_seconds:.0f} s to read, "
            f"{self.training_seconds:.0f} s to train"
        )


class Example(NamedTuple):
    """An utterance to learn from."""

    units_F: Tensor
    mel_TM: Tensor


class Batch(NamedTuple):
    """Stretches for the spectrogram, and the runs of the same utterances for the durations."""

    units_BF: Tensor
    lengths_B: Tensor
    positions_BT: Tensor
    mel_BTM: Tensor
    mel_lengths_B: Tensor
    runs_BR: Tensor
    run_lengths_BR: Tensor
    num_runs_B: Tensor


def train_vocoder(config: TrainVocoderConfig) -> VocoderReport:
    """Learns to speak the units of the data sets, and writes `config.out_dir`.

    Raises:
        ConfigError: There is no speech or none with recordings long enough, no corpus at the root, or
            something else at `out_dir`.
        FingerprintMismatchError: The data sets differ in their units, or the root holds other audio.
        AudioError: A recording cannot be read.
        NotFiniteError: Training diverged.
    """
    recipe, device = config.recipe, open_device(config.device)
    fingerprint, num_units = common_fingerprint(config.shards)
    prepare_folder(config.out_dir)
    start = time.monotonic()
    examples = list(read_examples(config))
    if not examples:
        raise ConfigError("every recording drawn is too short to learn from: all are 17 ms or less")
    middle = time.monotonic()
    torch.manual_seed(int(generator_for(config.seed, "vocoder", "weights").integers(2**31)))
    voice = UnitVoice(num_units, recipe.shape).to(device)
    losses = _fit(voice, examples, recipe, config.seed)
    save_vocoder(
        config.out_dir,
        Vocoder(voice=voice, num_units=num_units, fingerprint=fingerprint, recipe=recipe, seed=config.seed),
    )
    return VocoderReport(
        num_utterances=len(examples),
        audio_seconds=sum(len(example.units_F) for example in examples) / UNITS_PER_SECOND,
        num_steps=recipe.num_steps,
        mel_loss=losses[0],
        duration_loss=losses[1],
        reading_seconds=middle - start,
        training_seconds=time.monotonic() - middle,
    )


def read_examples(config: TrainVocoderConfig) -> Iterator[Example]:
    """Yields units and spectrogram of utterances drawn from the training splits.

    Recordings of up to 17 ms are left out: they are too short for a spectrogram.
    """
    recipe = config.recipe
    drawn = draw_rows(config.shards, recipe.splits, recipe.max_audio_seconds, config.seed)
    rows = [(directory, row) for directory, group in drawn.items() for row in group]
    utterances = {
        directory: find_utterances(directory, config.root, [row.key for row in group])
        for directory, group in drawn.items()
    }
    for directory, row in track(rows, "read", total=len(rows), unit="utterances"):
        waveform = load_utterance(utterances[directory][row.key], SAMPLING_RATE_HZ)
        check_length(row, len(waveform), SAMPLING_RATE_HZ)
        if len(waveform) > PADDING:
            mel_TM = log_mel(torch.from_numpy(waveform))[: count_mel_frames(len(row.units))]
            yield Example(torch.from_numpy(row.units.astype(np.int64)), mel_TM)


def draw_batch(examples: Sequence[Example], recipe: VocoderRecipe, rng: np.random.Generator) -> Batch:
    """A stretch of each of some utterances, longer ones more often."""
    lengths = np.array([len(example.units_F) for example in examples])
    chosen = rng.choice(len(examples), recipe.batch_size, p=lengths / lengths.sum())
    stretches = [_cut(examples[number], recipe.stretch_units, rng) for number in chosen]
    units, positions, mels = ([stretch[part] for stretch in stretches] for part in range(3))
    runs = [torch.unique_consecutive(examples[n].units_F, return_counts=True) for n in chosen]
    return Batch(
        units_BF=pad_sequence(units, batch_first=True),
        lengths_B=torch.tensor(list(map(len, units))),
        positions_BT=pad_sequence(positions, batch_first=True),
        mel_BTM=pad_sequence(mels, batch_first=True),
        mel_lengths_B=torch.tensor(list(map(len, mels))),
        runs_BR=pad_sequence([run for run, _ in runs], batch_first=True),
        run_lengths_BR=pad_sequence([counts for _, counts in runs], batch_first=True, padding_value=1),
        num_runs_B=torch.tensor([len(run) for run, _ in runs]),
    )


def _cut(example: Example, max_units: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Units, positions of the mel frames among them, and these frames, of a random stretch."""
    num_units = min(max_units, len(example.units_F))
    first = int(rng.integers(0, len(example.units_F) - num_units + 1))
    first_frame = int(first * MEL_FRAMES_PER_UNIT)
    mel_TM = example.mel_TM[first_frame : first_frame + count_mel_frames(num_units)]
    positions_T = mel_positions(num_units, len(mel_TM), first_frame, first)
    return example.units_F[first : first + num_units], positions_T, mel_TM


def _fit(
    voice: UnitVoice, examples: Sequence[Example], recipe: VocoderRecipe, seed: int
) -> tuple[float, float]:
    """Mean losses of spectrogram and durations in the last tenth of the steps."""
    device = next(voice.parameters()).device
    optimizer = torch.optim.AdamW(
        voice.parameters(), recipe.learning_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay
    )
    # It needs a tenth of its steps to be more than one; a shorter run ends before it does.
    num_scheduled = max(11, recipe.num_steps)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=num_scheduled, pct_start=0.1, cycle_momentum=False
    )
    rng = generator_for(seed, "vocoder", "batches")
    progress, history = Progress("train", recipe.num_steps, "steps"), []
    for _ in range(recipe.num_steps):
        batch = Batch(*(tensor.to(device) for tensor in draw_batch(examples, recipe, rng)))
        losses = _losses(voice, batch)
        optimizer.zero_grad()
        sum(losses).backward()  # type: ignore[union-attr]
        torch.nn.utils.clip_grad_norm_(voice.parameters(), recipe.max_gradient_norm)
        optimizer.step()
        schedule.step()
        history.append([loss.item() for loss in losses])
        if not np.isfinite(history[-1]).all():
            raise NotFiniteError(
                f"vocoder: the loss is not finite in step {len(history)}; lower learning_rate"
            )
        progress.advance(note=f"mel error {history[-1][0]:.3f}")
    progress.close()
    mel, duration = np.mean(history[-max(1, len(history) // 10) :], axis=0).tolist()
    return mel, duration


def _losses(voice: UnitVoice, batch: Batch) -> tuple[Tensor, Tensor]:
    mel_BTM = voice(batch.units_BF, batch.lengths_B, batch.positions_BT, batch.mel_lengths_B)
    mask_BT = mask_of(batch.mel_lengths_B, mel_BTM.shape[1])
    error_BT = (mel_BTM - batch.mel_BTM).abs().mean(dim=2)
    log_rate_BR = voice.durations(batch.runs_BR, batch.num_runs_B)
    return (
        (error_BT * mask_BT).sum() / mask_BT.sum(),
        duration_loss(log_rate_BR, batch.run_lengths_BR, batch.num_runs_B),
    )
