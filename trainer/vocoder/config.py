"""What a vocoder is made of: the recipe, and TrainVocoderConfig, one run of it."""

from dataclasses import dataclass, field
from pathlib import Path

from dmlm.trainer.vocoder.model import VoiceShape


@dataclass(frozen=True, slots=True, kw_only=True)
class VocoderRecipe:
    """Everything that a run does, apart from its data and its seed."""

    splits: tuple[str, ...] = ("train*",)
    """Globs on the splits to learn from."""
    max_audio_seconds: float = 1800.0
    """Of recordings drawn; their spectrograms are kept in memory, 28 kB a second."""
    shape: VoiceShape = field(default_factory=VoiceShape)
    num_steps: int = 300
    batch_size: int = 12
    """Stretches in a step."""
    stretch_units: int = 115
    """Longest stretch of an utterance in a batch: 2.3 s."""
    learning_rate: float = 1.5e-3
    """At its peak, after a tenth of the steps; a cosine before and after."""
    weight_decay: float = 0.01
    max_gradient_norm: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainVocoderConfig:
    """One run of a recipe."""

    shards: tuple[Path, ...]
    root: Path
    """Where the corpora are that the shards were made of."""
    out_dir: Path
    recipe: VocoderRecipe = field(default_factory=VocoderRecipe)
    seed: int = 0
    device: str = "auto"
