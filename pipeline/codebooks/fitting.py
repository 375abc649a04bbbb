"""Fits a codebook to a stream of vectors: keep a uniform sample and cluster it, or let every vector count.

`sample` keeps up to 256 vectors per cluster. `stream` keeps few, starts from the first of them, and then
moves centroids towards all later vectors in one pass; its memory does not grow. Suffixes: F vector,
D width, K cluster, U cluster that an array has vectors of.
"""

from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dmlm.pipeline.codebooks.codebook import Codebook, FitStatistics, Vectors
from dmlm.pipeline.errors import ConfigError, NotFiniteError
from dmlm.pipeline.randomness import generator_for
from dmlm.pipeline.tokenizers import Fingerprint
from dmlm.pipeline.tokenizers.patch import ENCODER as PATCH

if TYPE_CHECKING:
    import torch

    from dmlm.pipeline.codebooks.nearest import Search

VECTORS_PER_CLUSTER = 256
"""How much `sample` keeps; more makes k-means slower and hardly better."""
STREAM_BYTES = 24 << 20
"""Memory of the vectors that `stream` keeps, beside that of one for each cluster."""
STEP = 8
"""Vectors per cluster between two moves of the centroids in `stream`."""
RECENCY = 2.0
"""Weight of the last step over its weight in a plain mean: early steps were assigned by worse centroids."""


class FitMode(StrEnum):
    """What of a stream is clustered."""

    SAMPLE = "sample"
    """A uniform sample, held in memory."""
    STREAM = "stream"
    """Every vector, in one pass and little memory."""


def fit_codebook(
    vectors: Iterable[Vectors],
    *,
    num_clusters: int,
    seed: int,
    encoder: str,
    features: Fingerprint,
    mode: FitMode = FitMode.SAMPLE,
    device: "torch.device | str" = "cpu",
) -> Codebook:
    """Clusters a stream of arrays [F, D]; the same stream, seed and number of threads give the same codebook.

    Statistics are those of the vectors that were kept, a uniform sample of the stream in both modes.

    Raises:
        ConfigError: Fewer vectors than clusters.
        NotFiniteError: A vector is not finite.
    """
    from dmlm.pipeline.codebooks.nearest import choose_search

    rng, search = generator_for(seed, "codebook", encoder), choose_search(device)
    fit = _fit_stream if mode is FitMode.STREAM else _fit_sample
    sample, centroids_KD = fit(_finite(vectors, encoder), num_clusters, rng, device, search)
    if centroids_KD is None:
        option = "--image-clusters" if encoder == PATCH else "--clusters"
        raise ConfigError(
            f"{sample.num_seen} vectors of {encoder} are too few for {num_clusters} clusters;"
            f" give more data or ask for fewer clusters with {option}"
        )
    return Codebook(
        centroids_KD=centroids_KD.cpu().numpy(),
        encoder=encoder,
        features=features,
        statistics=_measure(sample, centroids_KD, seed, search),
    )


class VectorSample:
    """Uniform sample of a stream of vectors in bounded memory (reservoir sampling, algorithm R)."""

    def __init__(self, capacity: int, rng: np.random.Generator) -> None:
        """Keeps at most `capacity` vectors."""
        self.num_seen = 0
        self.capacity, self._rng = capacity, rng
        self._kept: Vectors | None = None

    def add(self, vectors_FD: Vectors) -> None:
        """Offers an array [F, D]."""
        if self._kept is None:
            self._kept = np.empty((self.capacity, vectors_FD.shape[1]), np.float32)
        slots = np.arange(self.num_seen, self.num_seen + len(vectors_FD))
        late = slots >= self.capacity
        slots[late] = self._rng.integers(0, slots[late] + 1)
        chosen = slots < self.capacity
        self._kept[slots[chosen]] = vectors_FD[chosen]
        self.num_seen += len(vectors_FD)

    @property
    def vectors(self) -> Vectors:
        """The vectors kept, [F, D]."""
        kept = np.empty((0, 0), np.float32) if self._kept is None else self._kept
        return kept[: self.num_seen]

    def on(self, device: "torch.device | str") -> "torch.Tensor":
        """The vectors kept, on a device; on the CPU no copy."""
        import torch

        return torch.from_numpy(self.vectors).to(device)


class CentroidStream:
    """Centroids that follow a stream of vectors, each of which counts; the state is of constant size.

    A step moves every centroid to the weighted mean of the vectors assigned to it so far, in which later
    steps weigh more (polynomial-decay averaging, Shamir and Zhang 2013).
    """

    def __init__(
        self, sample: VectorSample, centroids_KD: "torch.Tensor", rng: np.random.Generator, search: "Search"
    ) -> None:
        """`sample` must hold what the centroids were fitted on; the caller goes on adding to it."""
        self.centroids_KD = centroids_KD
        self._sample, self._rng, self._search = sample, rng, search
        self._num_steps = len(sample.vectors) / (STEP * len(centroids_KD))
        self._shares_K = self._share_of_sample()
        self._sums_KD: torch.Tensor | None = None  # until vectors come: an exchange needs the memory
        self._counts_K = np.zeros(len(centroids_KD), np.int64)
        self._next_exchange = 2 * sample.num_seen

    def add(self, vectors_FD: Vectors) -> None:
        """Assigns an array [F, D], and moves the centroids when enough have come."""
        import torch

        from dmlm.pipeline.codebooks.nearest import MAX_VECTORS, add_rows

        new_FD = torch.from_numpy(vectors_FD).to(self.centroids_KD)
        parts = torch.split(new_FD, MAX_VECTORS)
        ids_F = torch.cat([self._search(part_FD, self.centroids_KD)[0] for part_FD in parts])
        found_U, rows_F = torch.unique(ids_F, return_inverse=True)
        sums_UD = new_FD.new_zeros(len(found_U), new_FD.shape[1])
        add_rows(sums_UD, rows_F, new_FD)
        if self._sums_KD is None:
            self._sums_KD = torch.zeros_like(self.centroids_KD)
        self._sums_KD[found_U] += sums_UD
        self._counts_K += np.bincount(ids_F.cpu().numpy(), minlength=len(self.centroids_KD))
        if self._counts_K.sum() >= STEP * len(self.centroids_KD):
            self.step()

    def step(self) -> None:
        """Moves the centroids by the vectors since the last step."""
        if self._sums_KD is None:
            return
        self._move(self._sums_KD)
        self._sums_KD = None
        self._counts_K[:] = 0
        if self._sample.num_seen >= self._next_exchange:
            self._next_exchange = 2 * self._sample.num_seen
            self._exchange()

    def _move(self, sums_KD: "torch.Tensor") -> None:
        """Moves the centroids by the sums of the vectors since the last step, which are used up."""
        import torch

        num_vectors = self._counts_K.sum()
        self._num_steps += num_vectors / (STEP * len(self.centroids_KD))
        rate = min(1.0, RECENCY / (self._num_steps + RECENCY - 1))
        self._shares_K = (1 - rate) * self._shares_K + rate * self._counts_K / num_vectors
        pulls = torch.from_numpy(rate / num_vectors / np.maximum(self._shares_K, 1e-30)).to(self.centroids_KD)
        counts_K = torch.from_numpy(self._counts_K).to(self.centroids_KD)
        self.centroids_KD.mul_(1 - (pulls * counts_K)[:, None]).add_(sums_KD.mul_(pulls[:, None]))

    def _exchange(self) -> None:
        """Takes centroids from where few vectors are by now; the sample tells."""
        from dmlm.pipeline.codebooks.kmeans import exchange
        from dmlm.pipeline.codebooks.nearest import assign

        kept_FD = self._sample.on(self.centroids_KD.device)
        found = assign(kept_FD, self.centroids_KD, self._search)
        exchange(kept_FD, self.centroids_KD, found, self._rng)
        del found  # its sums are as large as the centroids
        self._shares_K = self._share_of_sample()

    def _share_of_sample(self) -> npt.NDArray[np.float64]:
        from dmlm.pipeline.codebooks.nearest import assign

        found = assign(self._sample.on(self.centroids_KD.device), self.centroids_KD, self._search)
        shares_K: npt.NDArray[np.float64] = found.counts_K / found.counts_K.sum()
        return shares_K


def _finite(vectors: Iterable[Vectors], encoder: str) -> Iterator[Vectors]:
    for vectors_FD in vectors:
        if not np.isfinite(vectors_FD).all():
            raise NotFiniteError(
                f"{encoder} gives vectors that are not finite; try --device cpu, or check its weights"
            )
        yield vectors_FD


def _fit_sample(
    vectors: Iterable[Vectors],
    num_clusters: int,
    rng: np.random.Generator,
    device: "torch.device | str",
    search: "Search",
) -> "tuple[VectorSample, torch.Tensor | None]":
    from dmlm.pipeline.codebooks.kmeans import cluster

    sample = VectorSample(num_clusters * VECTORS_PER_CLUSTER, rng)
    for vectors_FD in vectors:
        sample.add(vectors_FD)
    if sample.num_seen < num_clusters:
        return sample, None
    return sample, cluster(sample.on(device), num_clusters, rng, search=search)


def _fit_stream(
    vectors: Iterable[Vectors],
    num_clusters: int,
    rng: np.random.Generator,
    device: "torch.device | str",
    search: "Search",
) -> "tuple[VectorSample, torch.Tensor | None]":
    from dmlm.pipeline.codebooks.kmeans import cluster

    sample, centroids = VectorSample(0, rng), None
    for vectors_FD in vectors:
        if not sample.num_seen:
            sample = VectorSample(num_clusters + STREAM_BYTES // (4 * vectors_FD.shape[1]), rng)
        room = max(0, sample.capacity - sample.num_seen)
        sample.add(vectors_FD[:room])
        if len(vectors_FD) > room:
            if centroids is None:
                start_KD = cluster(sample.on(device), num_clusters, rng, search=search)
                centroids = CentroidStream(sample, start_KD, rng, search)
            sample.add(vectors_FD[room:])
            centroids.add(vectors_FD[room:])
    if centroids is not None:
        centroids.step()
        return sample, centroids.centroids_KD
    if sample.num_seen < num_clusters:
        return sample, None
    return sample, cluster(sample.on(device), num_clusters, rng, search=search)


def _measure(
    sample: VectorSample, centroids_KD: "torch.Tensor", seed: int, search: "Search"
) -> FitStatistics:
    from dmlm.pipeline.codebooks.nearest import assign

    found = assign(sample.on(centroids_KD.device), centroids_KD, search)
    shares = found.counts_K[found.counts_K > 0] / found.counts_K.sum()
    vectors_FD = sample.vectors
    mean_D = vectors_FD.mean(axis=0, dtype=np.float64)
    mean_square = np.einsum("fd,fd->", vectors_FD, vectors_FD, dtype=np.float64) / len(vectors_FD)
    return FitStatistics(
        seed=seed,
        num_seen=sample.num_seen,
        num_kept=len(vectors_FD),
        inertia=found.inertia,
        variance=float(mean_square - np.square(mean_D).sum()),
        num_used=len(shares),
        perplexity=float(np.exp(-(shares * np.log(shares)).sum())),
    )
