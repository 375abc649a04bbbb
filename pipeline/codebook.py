"""Codebooks: FAISS k-means over a streamed sample of frames or patches, and nearest centroids.

A codebook is a folder of `codebook.safetensors` (centroids_KD) and `codebook.json` (what the vectors
were, how the fit went, sha256 of the centroids). Suffixes: F vector, D width, K cluster.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dmlm.pipeline.errors import ConfigError, CorruptInputError, MissingDependencyError
from dmlm.pipeline.randomness import generator_for
from dmlm.pipeline.storage import write_bytes, write_json
from dmlm.pipeline.tokenizers import Fingerprint

if TYPE_CHECKING:
    import torch

Vectors = npt.NDArray[np.float32]

VECTORS_PER_CLUSTER = 256
"""How much of the stream is kept; more makes k-means slower and hardly better."""
NUM_ITERATIONS = 25
MAX_SCORES = 1 << 24
"""Scores that exist at once while assigning: 64 MiB."""

_FILE, _CARD = "codebook.safetensors", "codebook.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class FitStatistics:
    """How a fit went, measured on the vectors that were kept."""

    seed: int
    num_seen: int
    """Vectors that streamed by."""
    num_kept: int
    """Vectors of the uniform sample that was clustered."""
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
        """Writes the codebook into `directory`; the json comes last."""
        write_bytes(directory / _FILE, self._encode())
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
        self._squares_K = self._centroids_KD.square().sum(dim=1)

    def __call__(self, vectors_FD: "torch.Tensor") -> "torch.Tensor":
        """Ids [F], int64; of equally near centroids the lowest.

        |x|² is the same for all centroids, so |c|² - 2xc decides; always in float32.
        """
        import torch

        num_rows = max(1, MAX_SCORES // len(self._centroids_KD))
        ids = [
            torch.addmm(self._squares_K, part_FD.float(), self._centroids_KD.T, alpha=-2).argmin(dim=1)
            for part_FD in torch.split(vectors_FD, num_rows)
        ]
        return torch.cat(ids)


def fit_codebook(
    vectors: Iterable[Vectors], *, num_clusters: int, seed: int, encoder: str, features: Fingerprint
) -> Codebook:
    """Clusters a stream of arrays [F, D] with FAISS; the same stream and seed give the same codebook.

    At most 256 vectors per cluster are kept, drawn uniformly from the whole stream.

    Raises:
        ConfigError: Fewer vectors than clusters.
        MissingDependencyError: FAISS is not installed.
    """
    _import_faiss()  # before hours of encoding, not after
    sample = VectorSample(num_clusters * VECTORS_PER_CLUSTER, generator_for(seed, "codebook", encoder))
    for vectors_FD in vectors:
        sample.add(vectors_FD)
    vectors_FD = sample.vectors
    if len(vectors_FD) < num_clusters:
        raise ConfigError(
            f"{len(vectors_FD)} vectors of {encoder} are too few for {num_clusters} clusters;"
            " give more data or ask for fewer clusters"
        )
    centroids_KD = _cluster(vectors_FD, num_clusters, seed)
    statistics = _measure(vectors_FD, centroids_KD, seed, sample.num_seen)
    return Codebook(centroids_KD=centroids_KD, encoder=encoder, features=features, statistics=statistics)


class VectorSample:
    """Uniform sample of a stream of vectors in bounded memory (reservoir sampling, algorithm R)."""

    def __init__(self, capacity: int, rng: np.random.Generator) -> None:
        """Keeps at most `capacity` vectors."""
        self.num_seen = 0
        self._capacity, self._rng = capacity, rng
        self._kept: Vectors | None = None

    def add(self, vectors_FD: Vectors) -> None:
        """Offers an array [F, D]."""
        if self._kept is None:
            self._kept = np.empty((self._capacity, vectors_FD.shape[1]), np.float32)
        slots = np.arange(self.num_seen, self.num_seen + len(vectors_FD))
        late = slots >= self._capacity
        slots[late] = self._rng.integers(0, slots[late] + 1)
        chosen = slots < self._capacity
        self._kept[slots[chosen]] = vectors_FD[chosen]
        self.num_seen += len(vectors_FD)

    @property
    def vectors(self) -> Vectors:
        """The vectors kept, [F, D]."""
        kept = np.empty((0, 0), np.float32) if self._kept is None else self._kept
        return kept[: self.num_seen]


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


def _import_faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise MissingDependencyError(
            'k-means needs faiss: pip install "dmlm[cpu]", or "dmlm[gpu]" where there is a GPU'
        ) from error
    return faiss


def _cluster(vectors_FD: Vectors, num_clusters: int, seed: int) -> Vectors:
    faiss = _import_faiss()
    kmeans = faiss.Kmeans(
        vectors_FD.shape[1],
        num_clusters,
        niter=NUM_ITERATIONS,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=VECTORS_PER_CLUSTER,
        gpu=faiss.get_num_gpus() > 0,
    )
    kmeans.train(vectors_FD)
    return np.array(kmeans.centroids, np.float32)


def _measure(vectors_FD: Vectors, centroids_KD: Vectors, seed: int, num_seen: int) -> FitStatistics:
    distances, ids = _import_faiss().knn(vectors_FD, centroids_KD, 1)
    counts = np.bincount(ids[:, 0], minlength=len(centroids_KD))
    shares = counts[counts > 0] / counts.sum()
    mean_D = vectors_FD.mean(axis=0, dtype=np.float64)
    mean_square = np.einsum("fd,fd->", vectors_FD, vectors_FD, dtype=np.float64) / len(vectors_FD)
    return FitStatistics(
        seed=seed,
        num_seen=num_seen,
        num_kept=len(vectors_FD),
        inertia=float(distances.mean(dtype=np.float64)),
        variance=float(mean_square - np.square(mean_D).sum()),
        num_used=int((counts > 0).sum()),
        perplexity=float(np.exp(-(shares * np.log(shares)).sum())),
    )
