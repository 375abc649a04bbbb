"""`inspect --codebook`: a codebook folder and held-out speech -> InspectionReport (table, json, page)."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dmlm.pipeline.codebooks.codebook import Codebook, load_codebook
from dmlm.pipeline.codebooks.corpus_sampling import SourceShare, draw_sample
from dmlm.pipeline.codebooks.measuring import CodebookQuality, Recording, load_recordings, measure_codebooks
from dmlm.pipeline.encoders import SpeechEncoder, WindowMode
from dmlm.pipeline.encoders.registry import FAMILIES, family_of
from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.samples import Modality
from dmlm.pipeline.sources import DEFAULT_OPTIONS, SourceOptions, open_source
from dmlm.pipeline.tokenizers import Fingerprint
from dmlm.pipeline.tokenizers.kmeans import check_same_features, open_encoder_of
from dmlm.pipeline.tokenizers.pretrained import read_part
from dmlm.pipeline.tokenizers.registry import load_tokenizers

HELD_OUT = ("dev", "val", "test")
"""How held-out splits begin; those for choosing settings come first."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectCodebookConfig:
    """Settings of `inspect --codebook`; the defaults are the command's."""

    codebook_dir: Path
    source: str
    root: Path
    splits: tuple[str, ...] | None = None
    """None: the development splits, else the test splits, else all."""
    options: SourceOptions = DEFAULT_OPTIONS
    limit: int = 100
    """Utterances, drawn from all over the splits."""
    seed: int = 0
    device: str = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectionReport:
    """A codebook's quality, and what it was measured on."""

    encoder: str
    features: Fingerprint
    codebook_sha256: str
    source: str
    splits: tuple[str, ...]
    limit: int
    seed: int
    quality: CodebookQuality

    def to_json(self) -> dict[str, Any]:
        """Content of the result file."""
        return asdict(self)

    @property
    def title(self) -> str:
        """Encoder, layer, window and K in a few words."""
        settings = [f"{name} {self.features[name]}" for name in ("layer", "window") if name in self.features]
        return ", ".join([self.encoder, *settings, f"K {self.quality.num_clusters}"])

    @property
    def origin(self) -> str:
        """What it was measured on, in a few words."""
        quality = self.quality
        return (
            f"{quality.num_recordings} utterances ({quality.audio_seconds:.0f} s) of {self.source}"
            f" {', '.join(self.splits)}, seed {self.seed}"
        )

    def table(self) -> str:
        """A few lines to print."""
        rows = describe_quality(self.quality)
        width = max(len(name) for name, _ in rows)
        lines = [f"{name:{width}}  {value}" for name, value in rows]
        return "\n".join([self.title, f"measured on {self.origin}", *lines])


def inspect_codebook(config: InspectCodebookConfig) -> InspectionReport:
    """Judges the speech codebook of a folder that `build-codebook` wrote.

    Raises:
        ConfigError: No codebook, none of speech that was fitted, or no speech in the source.
        CorruptInputError: The codebook is damaged.
        FingerprintMismatchError: The weights found are not those that the codebook was fitted on.
    """
    codebook = _load_speech_codebook(config.codebook_dir)
    splits = held_out_splits(config.source, config.root, config.splits, config.options)
    recordings = draw_recordings(
        config.source, config.root, splits, config.options, limit=config.limit, seed=config.seed
    )
    encoder, other_window = _open_encoders(codebook, config.device)
    (quality,) = measure_codebooks(encoder, [codebook], recordings, other_window)
    return InspectionReport(
        encoder=codebook.encoder,
        features=dict(codebook.features),
        codebook_sha256=codebook.sha256,
        source=config.source,
        splits=splits,
        limit=config.limit,
        seed=config.seed,
        quality=quality,
    )


def held_out_splits(
    source: str, root: Path, asked: Sequence[str] | None, options: SourceOptions
) -> tuple[str, ...]:
    """Splits asked for; None: those for development, else for tests, else all, with a warning."""
    present = open_source(source, root, asked, options).splits
    if asked:
        return present
    for start in HELD_OUT:
        if splits := tuple(split for split in present if split.startswith(start)):
            return splits
    _logger.warning("%s: no held-out split, so the codebook is judged on %s", source, ", ".join(present))
    return present


def draw_recordings(
    source: str, root: Path, splits: Sequence[str] | None, options: SourceOptions, *, limit: int, seed: int
) -> list[Recording]:
    """At most `limit` readable utterances from all over the splits; None: the training splits.

    Raises:
        ConfigError: There is no readable speech.
    """
    sample = draw_sample(
        [SourceShare(name=source)], root, splits=splits, options=options, limit=None, seed=seed
    )
    (part,) = sample.parts
    text_rule = open_source(source, root, part.splits, options).text_rule
    recordings = list(load_recordings(part.utterances[:limit], text_rule))
    if not recordings:
        raise ConfigError(f"{source} {', '.join(part.splits)}: no readable speech; name another --split")
    return recordings


def describe_quality(quality: CodebookQuality) -> list[tuple[str, str]]:
    """Name and value of each measure, for people."""
    rows = [
        ("units used", f"{quality.num_clusters - quality.num_dead} of {quality.num_clusters}"),
        ("perplexity", f"{quality.perplexity:.1f}"),
        ("units a second", f"{quality.tokens_per_second:.1f}"),
        ("after collapsing runs", f"{quality.collapsed_tokens_per_second:.1f}"),
        ("mean run length", f"{quality.mean_run_length:.2f}"),
        ("error over norm", f"{quality.relative_error:.3f}"),
        ("unexplained variance", f"{quality.unexplained_variance:.3f}"),
        ("error over that of the fit", f"{quality.error_growth:.3f}"),
    ]
    if quality.window_agreement is not None:
        rows.append(("same unit in the other window", f"{quality.window_agreement:.1%}"))
    if quality.shift_agreement is not None:
        rows.append(("same unit a second later", f"{quality.shift_agreement:.1%}"))
    if letters := quality.letters:
        rows += [
            ("letter purity", f"{letters.purity:.3f} (by chance {letters.purity_by_chance:.3f})"),
            (
                "letter information",
                f"{letters.information:.3f} (by chance {letters.information_by_chance:.3f})",
            ),
        ]
    return rows


def _load_speech_codebook(directory: Path) -> Codebook:
    load_tokenizers(directory)  # checks every file
    part_dir = directory / Modality.SPEECH
    if not part_dir.is_dir():
        raise ConfigError(f"{directory}: holds no speech codebook; build one from a source with speech")
    if part := read_part(part_dir):
        raise ConfigError(f"{directory}: names {part.name}, which was not fitted here; nothing to judge")
    return load_codebook(part_dir)


def _open_encoders(codebook: Codebook, device: str) -> tuple[SpeechEncoder, SpeechEncoder | None]:
    """The codebook's encoder, and the same in the other window mode where it has one."""
    encoder = open_encoder_of(codebook, device)
    check_same_features(encoder.fingerprint, codebook.features)
    if not FAMILIES[family_of(codebook.encoder)].has_windows:
        return encoder, None
    (other,) = set(WindowMode) - {encoder.fingerprint["window"]}
    return encoder, open_encoder_of(
        replace(codebook, features={**codebook.features, "window": str(other)}), device
    )
