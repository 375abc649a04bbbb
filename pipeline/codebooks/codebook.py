"""Codebooks: centroids with what they are centroids of, their files, and the nearest of them.

A codebook is a folder of `codebook.safetensors` (centroids_KD) and `codebook.json` (what the vectors
were, how the fit went, sha256 of the centroids). Suffixes: F vector, D width, K cluster.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dmlm.pipeline.errors import ConfigError, CorruptInputError, NotFiniteError
from dmlm.pipeline.storage import write_bytes, write_json
from dmlm.pipeline.tokenizers import Fingerprint
from dmlm.pipeline.weights_terms import copy_terms

if TYPE_CHECKING:
    import torch

Vectors = npt.NDArray[np.float32]

_FILE, _CARD = "codebook.safetensors", "codebook.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class FitStatistics:
    """How a fit went, measured on the vectors that were kept: a uniform sample of those that streamed by."""

    seed: int
    num_seen: int
    """Vectors that streamed by."""
    num_kept: int
    """Vectors that the statistics are measured on; `sample` clustered these alone, `stream` all."""
    inertia: float
    """Mean squared distance to the nearest centroid."""
    variance: float
    """Mean squared distance to the mean: what one single centroid would have left."""
    num_used: int
    """Clusters that at least one vector belongs to."""
    perplexity: float
    """exp(entropy) of the clusters' shares: K when all are used equally."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Codebook:
    """Centroids, and what they are centroids of."""

    centroids_KD: Vectors
    encoder: str
    """Name that opens the encoder again, such as `whisper:tiny.en`."""
    features: Fingerprint
    """What the vectors depend on: the encoder's fingerprint."""
    statistics: FitStatistics

    @property
    def num_clusters(self) -> int:
        """K."""
        return len(self.centroids_KD)

    @cached_property
    def sha256(self) -> str:
        """sha256 of the file that holds the centroids."""
        return hashlib.sha256(self._encode()).hexdigest()

    def save(self, directory: Path) -> None:
        """Writes the codebook into `directory`, with the licence of its weights; the json comes last."""
        write_bytes(directory / _FILE, self._encode())
        copy_terms(self.encoder, directory)
        card = {
            "encoder": self.encoder,
            "features": dict(self.features),
            "num_clusters": self.num_clusters,
            "width": self.centroids_KD.shape[1],
            **asdict(self.statistics),
            "sha256": self.sha256,
        }
        write_json(directory / _CARD, card)

    def _encode(self) -> bytes:
        from safetensors.numpy import save

        return save({"centroids_KD": self.centroids_KD})


class NearestCentroid:
    """Callable that maps vectors to the ids of their nearest centroids, on one device."""

    def __init__(self, centroids_KD: Vectors, device: "torch.device | str" = "cpu") -> None:
        """Copies the centroids to `device`."""
        import torch

        self._centroids_KD = torch.tensor(centroids_KD, device=device)

    def __call__(self, vectors_FD: "torch.Tensor") -> "torch.Tensor":
        """Ids [F], int64; of equally near centroids the lowest. Always in float32.

        Raises:
            NotFiniteError: No centroid is nearest to a vector that holds NaN or overflows.
        """
        from dmlm.pipeline.codebooks.nearest import find_nearest

        ids_F, scores_F = find_nearest(vectors_FD.float(), self._centroids_KD)
        if not scores_F.isfinite().all():
            raise NotFiniteError(
                "the encoder gives vectors that are not finite; try --device cpu, or check its weights"
            )
        return ids_F


def load_codebook(directory: Path) -> Codebook:
    """Reads and checks a codebook folder.

    Raises:
        ConfigError: There is no codebook.
        CorruptInputError: A file is missing, damaged or does not belong to the other.
    """
    if not (directory / _CARD).is_file():
        raise ConfigError(f"{directory}: no codebook; run `dmlm-cli build-codebook`")
    try:
        card = json.loads((directory / _CARD).read_bytes())
        statistics = FitStatistics(**{name: card[name] for name in FitStatistics.__slots__})
        encoder, features, sha256 = str(card["encoder"]), dict(card["features"]), card["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptInputError(
            f"{directory / _CARD}: damaged ({error}); build the codebook again"
        ) from error
    centroids_KD = _read_centroids(directory / _FILE, sha256)
    return Codebook(centroids_KD=centroids_KD, encoder=encoder, features=features, statistics=statistics)


def _read_centroids(path: Path, sha256: str) -> Vectors:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    if not path.is_file():
        raise CorruptInputError(f"{path} is missing; build the codebook again")
    content = path.read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise CorruptInputError(f"{path}: sha256 is {found}, {_CARD} says {sha256}; build the codebook again")
    try:
        centroids_KD: Vectors = load(content)["centroids_KD"]
    except (SafetensorError, KeyError) as error:
        raise CorruptInputError(f"{path}: not a codebook: {error}") from error
    if centroids_KD.dtype != np.float32 or centroids_KD.ndim != 2 or not np.isfinite(centroids_KD).all():
        raise CorruptInputError(f"{path}: centroids must be a matrix of finite float32 values")
    return centroids_KD
