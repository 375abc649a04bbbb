"""How tokens are chosen."""

from dataclasses import dataclass
from math import inf, isfinite

from dmlm.pipeline.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodingConfig:
    """Greedy search, unless beams or a temperature are asked for."""

    num_beams: int = 1
    length_penalty: float = 1.0
    """Of beam search: the log-probability is divided by the length to this power."""
    temperature: float = 0.0
    """Of sampling; 0: greedy."""
    top_p: float = 1.0
    """Of sampling: only the most probable tokens that together have this probability."""
    seed: int = 0
    """Of sampling; what comes out depends on it and on the place of the prompt, not on the batch."""
    batch_size: int = 32
    """Rows side by side; a prompt takes as many as it has beams."""
    max_new_tokens: int | None = None
    """Longest output; None: what the task makes plausible."""

    def __post_init__(self) -> None:
        """Raises ConfigError where a number is out of its range or would have no effect."""
        if self.num_beams < 1 or self.batch_size < 1:
            raise ConfigError("num_beams and batch_size must be at least 1")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ConfigError("max_new_tokens must be at least 1")
        if not 0 <= self.temperature < inf or not 0 < self.top_p <= 1:
            raise ConfigError("temperature must be 0 or more, and finite, and top_p must be in (0, 1]")
        if not isfinite(self.length_penalty):
            raise ConfigError("length_penalty must be finite")
        if self.num_beams > 1 and self.temperature > 0:
            raise ConfigError("beams and a temperature exclude each other: leave out one of them")
        if self.top_p < 1 and self.temperature == 0:
            raise ConfigError("top_p belongs to sampling: give a temperature, too, or leave it out")
        if self.seed != 0 and self.temperature == 0:
            raise ConfigError("seed belongs to sampling: give a temperature, too, or leave it out")
        if self.length_penalty != 1 and self.num_beams == 1:
            raise ConfigError("length_penalty belongs to beam search: give 2 or more beams, or leave it out")
