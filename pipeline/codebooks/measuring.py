"""A codebook on held-out speech: recordings -> encoder -> unit and error of each frame -> CodebookQuality.

Several codebooks of one encoder are measured in one pass; only norm, units and errors of a frame are kept.
Suffixes: F frame, D width, K cluster, C column (the norm, then unit and error of each codebook).
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dmlm.pipeline.audio import SAMPLING_RATE_HZ, load_utterance
from dmlm.pipeline.codebooks.codebook import Codebook, FitStatistics, NearestCentroid
from dmlm.pipeline.codebooks.quality import (
    LetterMatch,
    agreement,
    count_run_lengths,
    count_units,
    letters_of,
    loud_span,
    match_letters,
    perplexity,
)
from dmlm.pipeline.encoders import SpeechEncoder
from dmlm.pipeline.errors import SampleError
from dmlm.pipeline.progress import track
from dmlm.pipeline.samples import TokenArray, Utterance, Waveform
from dmlm.pipeline.text_rules import apply_text_rule

if TYPE_CHECKING:
    import torch

SHIFT_SECONDS = 1.0
SETTLING_SECONDS = 0.5
"""After the later beginning; units near an edge differ for another reason: they hear less."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """Speech to judge a codebook on."""

    waveform: Waveform
    letters: str
    """Of its text; empty where there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodebookQuality:
    """What a codebook makes of held-out recordings; ratios are 0 where there is nothing to divide by."""

    num_clusters: int
    num_recordings: int
    audio_seconds: float
    counts: tuple[int, ...]
    """Frames of each unit."""
    num_dead: int
    """Units of no frame."""
    perplexity: float
    run_counts: tuple[int, ...]
    """Number of runs by length, from 0."""
    mean_run_length: float
    tokens_per_second: float
    collapsed_tokens_per_second: float
    """After one unit is made of each run."""
    relative_error: float
    """Mean distance to the centroid over the mean norm of the activations."""
    unexplained_variance: float
    """Mean squared distance to the centroid over the variance of the frames of the fit."""
    error_growth: float
    """Mean squared distance to the centroid over that of the fit."""
    window_agreement: float | None
    """Share of units that are the same in the other window mode; None: the encoder has no other."""
    shift_agreement: float | None
    """Share of units that stay the same when the recording begins a second later; None: all are too short."""
    letters: LetterMatch | None
    """None: fewer than two recordings have text."""


@dataclass(frozen=True, slots=True, eq=False)
class _Frames:
    """One codebook's view of the recordings."""

    units: list[TokenArray]
    errors_F: npt.NDArray[np.float64]
    """Distances to the centroids, of all recordings."""
    norms_F: npt.NDArray[np.float64]


def load_recordings(utterances: Iterable[Utterance], text_rule: str) -> Iterator[Recording]:
    """Yields what can be read; the rest is named and left out."""
    for utterance in utterances:
        try:
            waveform = load_utterance(utterance)
        except SampleError as error:
            _logger.warning("left out %s: %s", utterance.key, error)
        else:
            yield Recording(waveform, letters_of(apply_text_rule(text_rule, utterance.text or "")))


def measure_codebooks(
    encoder: SpeechEncoder,
    codebooks: Sequence[Codebook],
    recordings: Sequence[Recording],
    other_window: SpeechEncoder | None = None,
) -> list[CodebookQuality]:
    """Judges codebooks of one encoder.

    Args:
        encoder: What the codebooks were fitted on.
        codebooks: All are measured in one pass.
        recordings: At 16 kHz; a second pass hears them from their second second.
        other_window: The same encoder in the other window mode, for another pass; None: without.
    """
    waveforms = [recording.waveform for recording in recordings]
    frames = _quantise(encoder, codebooks, waveforms)
    num_shift_samples = int(SHIFT_SECONDS * SAMPLING_RATE_HZ)
    shifted = _quantise(encoder, codebooks, [waveform[num_shift_samples:] for waveform in waveforms])
    others = _quantise(other_window, codebooks, waveforms) if other_window else [None] * len(codebooks)
    return [
        _judge(codebook.statistics, codebook.num_clusters, recordings, own, late, other)
        for codebook, own, late, other in zip(codebooks, frames, shifted, others, strict=True)
    ]


def _quantise(
    encoder: SpeechEncoder, codebooks: Sequence[Codebook], waveforms: Sequence[Waveform]
) -> list[_Frames]:
    parts = [
        columns_FC.cpu().numpy()
        for columns_FC in track(
            encoder.map_frames(waveforms, _measurer(codebooks, encoder.device)),
            "measuring",
            len(waveforms),
            "recordings",
        )
    ]
    columns_FC = np.concatenate(parts).astype(np.float64)
    return [
        _Frames(
            units=[part[:, column].astype(np.int32) for part in parts],
            errors_F=columns_FC[:, column + 1],
            norms_F=columns_FC[:, 0],
        )
        for column in range(1, 1 + 2 * len(codebooks), 2)
    ]


def _measurer(
    codebooks: Sequence[Codebook], device: "torch.device"
) -> "Callable[[torch.Tensor], torch.Tensor]":
    """Function from frames [F, D] to [F, C], in float32, where ids are exact up to 2**24."""
    import torch

    centroids = [torch.tensor(codebook.centroids_KD, device=device) for codebook in codebooks]
    nearest = [NearestCentroid(codebook.centroids_KD, device) for codebook in codebooks]

    def measure(frames_FD: torch.Tensor) -> torch.Tensor:
        frames_FD = frames_FD.float()
        columns = [frames_FD.norm(dim=1)]
        for centroids_KD, find in zip(centroids, nearest, strict=True):
            ids_F = find(frames_FD)
            columns += [ids_F.float(), (frames_FD - centroids_KD[ids_F]).norm(dim=1)]
        return torch.stack(columns, dim=1)

    return measure


def _judge(
    fit: FitStatistics,
    num_clusters: int,
    recordings: Sequence[Recording],
    frames: _Frames,
    shifted: _Frames,
    other: _Frames | None,
) -> CodebookQuality:
    counts = count_units(frames.units, num_clusters)
    run_counts = count_run_lengths(frames.units)
    num_frames, num_runs = int(counts.sum()), int(run_counts.sum())
    audio_seconds = sum(len(recording.waveform) for recording in recordings) / SAMPLING_RATE_HZ
    squared_error = float(np.square(frames.errors_F).mean())
    return CodebookQuality(
        num_clusters=num_clusters,
        num_recordings=len(recordings),
        audio_seconds=audio_seconds,
        counts=tuple(counts.tolist()),
        num_dead=int((counts == 0).sum()),
        perplexity=perplexity(counts),
        run_counts=tuple(run_counts.tolist()),
        mean_run_length=_over(num_frames, num_runs),
        tokens_per_second=_over(num_frames, audio_seconds),
        collapsed_tokens_per_second=_over(num_runs, audio_seconds),
        relative_error=_over(float(frames.errors_F.mean()), float(frames.norms_F.mean())),
        unexplained_variance=_over(squared_error, fit.variance),
        error_growth=_over(squared_error, fit.inertia),
        window_agreement=agreement(frames.units, other.units) if other else None,
        shift_agreement=_compare_shifted(frames.units, shifted.units, _over(num_frames, audio_seconds)),
        letters=_match_letters(recordings, frames.units, num_clusters),
    )


def _compare_shifted(
    units: Sequence[TokenArray], shifted: Sequence[TokenArray], frames_per_second: float
) -> float | None:
    num_settling = round(SETTLING_SECONDS * frames_per_second)
    later = [units_F[num_settling:] for units_F in shifted]
    if not any(map(len, later)):
        return None
    # Both end with their recording, so they are aligned from the end.
    return agreement(
        [own_F[len(own_F) - len(late_F) :] for own_F, late_F in zip(units, later, strict=True)], later
    )


def _match_letters(
    recordings: Sequence[Recording], units: Sequence[TokenArray], num_clusters: int
) -> LetterMatch | None:
    spoken = [
        (units_F[loud_span(recording.waveform, len(units_F))], recording.letters)
        for recording, units_F in zip(recordings, units, strict=True)
        if recording.letters
    ]
    if len(spoken) < 2:
        return None
    return match_letters([part for part, _ in spoken], [letters for _, letters in spoken], num_clusters)


def _over(value: float, divisor: float) -> float:
    return value / divisor if divisor else 0.0
