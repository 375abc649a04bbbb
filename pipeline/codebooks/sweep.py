"""`experiment codebook-sweep`: which layer and how many clusters, judged on a small sample.

Fits on training splits, measures on held-out ones. Frames of one layer are held in memory at a time.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dmlm.pipeline.codebooks.fitting import fit_codebook
from dmlm.pipeline.codebooks.inspection import draw_recordings, held_out_splits
from dmlm.pipeline.codebooks.measuring import CodebookQuality, Recording, measure_codebooks
from dmlm.pipeline.encoders import SpeechEncoder, WindowMode
from dmlm.pipeline.encoders.registry import absolute_encoder, open_encoder
from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.progress import track
from dmlm.pipeline.sources import DEFAULT_OPTIONS, SourceOptions, open_source

LAST = "last"


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepConfig:
    """Settings of `experiment codebook-sweep`; the defaults are the command's."""

    source: str
    root: Path
    clusters: tuple[int, ...]
    layers: tuple[int | None, ...] | None = None
    """Encoder blocks from 1, and None: after the final norm; in the place of all: every block, and None."""
    splits: tuple[str, ...] | None = None
    """To measure on; None: the development splits, else the test splits."""
    options: SourceOptions = DEFAULT_OPTIONS
    encoder: str = "whisper:tiny.en"
    window: str = WindowMode.EXACT
    limit: int = 100
    """Utterances to fit on, and as many to measure on."""
    seed: int = 0
    device: str = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPoint:
    """One codebook of the sweep."""

    layer: int | str
    quality: CodebookQuality


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepReport:
    """All codebooks, layer by layer, and what they were fitted and measured on."""

    encoder: str
    window: str
    source: str
    fit_splits: tuple[str, ...]
    splits: tuple[str, ...]
    limit: int
    seed: int
    points: tuple[SweepPoint, ...]

    def to_json(self) -> dict[str, Any]:
        """Content of the result file."""
        return asdict(self)

    @property
    def origin(self) -> str:
        """What it was measured on, in a few words."""
        num_measured = self.points[0].quality.num_recordings
        return (
            f"fitted on up to {self.limit} utterances of {self.source} {', '.join(self.fit_splits)},"
            f" measured on {num_measured} of {', '.join(self.splits)}, seed {self.seed}"
        )

    def table(self) -> str:
        """A line for each codebook."""
        head = (
            f"{'layer':>5} {'K':>6} {'dead':>5} {'perplexity':>10} {'units/s':>8} {'collapsed':>9}"
            f" {'unexplained':>11} {'shifted':>7} {'information':>11} {'by chance':>9}"
        )
        title = f"{self.encoder}, window {self.window}"
        return "\n".join([title, self.origin, head, *map(_describe, self.points)])


def sweep_codebooks(config: SweepConfig) -> SweepReport:
    """Fits and measures a codebook for every layer and number of clusters.

    Raises:
        ConfigError: No such layer, no training split, one that is measured on too, no speech, or too
            little of it.
    """
    layers = _choose_layers(config)
    splits = held_out_splits(config.source, config.root, config.splits, config.options)
    fit_splits = _fit_splits(config, splits)
    training, held_out = (
        draw_recordings(
            config.source, config.root, some, config.options, limit=config.limit, seed=config.seed
        )
        for some in (fit_splits, splits)
    )
    points = [point for layer in layers for point in _sweep_layer(config, layer, training, held_out)]
    return SweepReport(
        encoder=absolute_encoder(config.encoder),
        window=config.window,
        source=config.source,
        fit_splits=fit_splits,
        splits=splits,
        limit=config.limit,
        seed=config.seed,
        points=tuple(points),
    )


def _choose_layers(config: SweepConfig) -> tuple[int | None, ...]:
    """Those asked for, by default all."""
    # A layer that is not there would else be found when others have been measured, and lose them.
    deepest = max((layer for layer in config.layers or () if layer is not None), default=None)
    encoder = _open_encoder(config, deepest)
    return config.layers or (*range(1, encoder.num_layers + 1), None)


def _fit_splits(config: SweepConfig, held_out: Sequence[str]) -> tuple[str, ...]:
    present = open_source(config.source, config.root, None, config.options).splits
    training = tuple(split for split in present if split.startswith("train") and split not in held_out)
    if not training:
        raise ConfigError(
            f"{config.source}: no training split beside {', '.join(held_out)}, so there is nothing to fit on"
        )
    return training


def _open_encoder(config: SweepConfig, layer: int | None) -> SpeechEncoder:
    return open_encoder(config.encoder, layer=layer, window=WindowMode(config.window), device=config.device)


def _sweep_layer(
    config: SweepConfig, layer: int | None, training: Sequence[Recording], held_out: Sequence[Recording]
) -> list[SweepPoint]:
    encoder = _open_encoder(config, layer)
    name = LAST if layer is None else layer
    encoded = encoder.encode(recording.waveform for recording in training)
    frames = [
        item.activations_FD.cpu().numpy()
        for item in track(encoded, f"layer {name}", len(training), "recordings")
    ]
    codebooks = [
        fit_codebook(
            frames,
            num_clusters=num_clusters,
            seed=config.seed,
            encoder=config.encoder,
            features=encoder.fingerprint,
        )
        for num_clusters in config.clusters
    ]
    return [
        SweepPoint(layer=name, quality=quality) for quality in measure_codebooks(encoder, codebooks, held_out)
    ]


def _describe(point: SweepPoint) -> str:
    quality, letters = point.quality, point.quality.letters
    shifted = "-" if quality.shift_agreement is None else f"{quality.shift_agreement:.1%}"
    told = (
        f"{letters.information:11.3f} {letters.information_by_chance:9.3f}"
        if letters
        else f"{'-':>11} {'-':>9}"
    )
    return (
        f"{point.layer:>5} {quality.num_clusters:6} {quality.num_dead:5} {quality.perplexity:10.1f}"
        f" {quality.tokens_per_second:8.1f} {quality.collapsed_tokens_per_second:9.1f}"
        f" {quality.unexplained_variance:11.3f} {shifted:>7} {told}"
    )
