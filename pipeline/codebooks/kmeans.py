"""K-means that looks at part of the vectors first, and moves centroids from where they are of little use.

Passes over a random part, which doubles until it is everything, are followed by Lloyd's over all vectors.
After a pass over a part, pairs of clusters that are cheap to merge are merged wherever splitting another
cluster saves more squared error than that costs: exact gains, so that the error can only fall. It also
repairs empty clusters, whose removal costs nothing.

Suffixes: F vector, D width, K cluster.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from dmlm.pipeline.codebooks.nearest import (
    Assignment,
    Counts,
    Search,
    assign,
    num_rows_at_once,
    search_with_torch,
)

FIRST_PART = 32
"""Vectors per cluster in the first part."""
PASSES_PER_PART = 3
MAX_PASSES = 25
"""Most passes over all vectors."""
TOLERANCE = 1e-4
"""The passes end when one lowers the error by a smaller share."""
ROUNDS_OF_SPLIT = 4


def cluster(
    vectors_FD: torch.Tensor,
    num_clusters: int,
    rng: np.random.Generator,
    *,
    search: Search = search_with_torch,
    max_passes: int | None = None,
) -> torch.Tensor:
    """Centroids [K, D] of at least K finite vectors [F, D], on their device; given `rng`, always the same.

    `max_passes`, those over parts included, ends it before it has converged. With one thread of the CPU
    the centroids are the same bytewise. Beside the vectors memory is that of three sets of centroids and
    of a permutation.
    """
    order_F = torch.from_numpy(rng.permutation(len(vectors_FD)))
    centroids_KD = vectors_FD[order_F[:num_clusters]]
    sizes = [s for s in _part_sizes(len(vectors_FD), num_clusters) for _ in range(PASSES_PER_PART)]
    for size in sizes[:max_passes]:
        rows_F = order_F[:size]
        found = assign(vectors_FD, centroids_KD, search, rows_F)
        centroids_KD = move(centroids_KD, found)
        exchange(vectors_FD, centroids_KD, found, rng, rows_F)
    last = float("inf")
    for _ in range(MAX_PASSES if max_passes is None else max_passes - len(sizes)):
        found = assign(vectors_FD, centroids_KD, search)
        centroids_KD = move(centroids_KD, found)
        num_moved = exchange(vectors_FD, centroids_KD, found, rng) if (found.counts_K == 0).any() else 0
        if not num_moved and found.inertia > (1 - TOLERANCE) * last:
            break
        last = found.inertia
    return centroids_KD


def move(centroids_KD: torch.Tensor, found: Assignment) -> torch.Tensor:
    """The means of the clusters, in the memory of the sums; a centroid of no vector stays where it is."""
    counts_K = torch.from_numpy(found.counts_K).to(centroids_KD.device)
    means_KD = found.sums_KD.div_(counts_K.clamp(min=1)[:, None])
    means_KD[counts_K == 0] = centroids_KD[counts_K == 0]
    return means_KD


def exchange(
    vectors_FD: torch.Tensor,
    centroids_KD: torch.Tensor,
    found: Assignment,
    rng: np.random.Generator,
    rows_F: torch.Tensor | None = None,
) -> int:
    """Moves centroids from merged pairs to split clusters while that lowers the error; says how many.

    Args:
        vectors_FD: All vectors.
        centroids_KD: Means of the clusters; changed in place.
        found: The assignment that they are the means of.
        rng: Draws a direction for each split.
        rows_F: The vectors that were assigned; None: all.
    """
    costs_K, partners_K = _price_merges(centroids_KD, found.counts_K)
    merges = iter(np.argsort(costs_K, kind="stable"))
    touched = np.zeros(len(centroids_KD), bool)
    num_moved = 0
    offsets_of = _member_offsets(vectors_FD, centroids_KD, found, rows_F)
    for split in sorted(_try_splits(offsets_of, found, rng), key=lambda split: -split.gain):
        taken = split.cluster
        if touched[taken]:
            continue
        touched[taken] = True
        merged = next((k for k in merges if not touched[[k, partners_K[k]]].any()), None)
        if merged is None or costs_K[merged] >= split.gain:
            break
        partner = partners_K[merged]
        touched[[merged, partner]] = True
        _merge(centroids_KD, found.counts_K, int(merged), int(partner))
        _, left_D, right_D = _split_in_two(offsets_of(taken), split.first)
        centroids_KD[int(merged)] = centroids_KD[taken] + right_D
        centroids_KD[taken] += left_D
        num_moved += 1
    return num_moved


@dataclass(frozen=True, slots=True)
class _Split:
    """What it would save to split a cluster; its halves are found again if it is: all would fill K x D."""

    cluster: int
    first: int
    """Its vector that it is first divided along."""
    gain: float
    """Squared error that is saved."""


def _part_sizes(num_vectors: int, num_clusters: int) -> list[int]:
    """Sizes of the growing part; all vectors at once where they are few."""
    sizes, size = [], FIRST_PART * num_clusters
    while size < num_vectors:
        sizes.append(size)
        size *= 2
    return sizes or [num_vectors]


def _price_merges(
    centroids_KD: torch.Tensor, counts_K: Counts
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """What it costs to merge each cluster with its best partner (Ward); an empty one has itself, for 0."""
    num_clusters = len(centroids_KD)
    sizes_K = torch.from_numpy(counts_K).to(centroids_KD)
    num_rows, is_empty_K = num_rows_at_once(num_clusters), sizes_K == 0
    squares_K = torch.cat([part_XD.square().sum(dim=1) for part_XD in torch.split(centroids_KD, num_rows)])
    costs, partners = [], []
    for ids in torch.split(torch.arange(num_clusters, device=centroids_KD.device), num_rows):
        prices = torch.addmm(squares_K, centroids_KD[ids], centroids_KD.T, alpha=-2)
        prices.add_(squares_K[ids, None]).clamp_(min=0)
        prices.mul_(sizes_K).mul_(sizes_K[ids, None]).div_((sizes_K + sizes_K[ids, None]).clamp_(min=1))
        prices[:, is_empty_K] = torch.inf
        prices[is_empty_K[ids]] = torch.inf
        prices[torch.arange(len(ids)), ids] = torch.where(is_empty_K[ids], 0.0, torch.inf)
        least = prices.min(dim=1)
        costs.append(least.values.cpu().numpy())
        partners.append(least.indices.cpu().numpy())
    return np.concatenate(costs), np.concatenate(partners)


def _merge(centroids_KD: torch.Tensor, counts_K: Counts, one: int, other: int) -> None:
    """Puts the mean of both at `other`."""
    share = counts_K[one] / max(1, counts_K[one] + counts_K[other])
    centroids_KD[other].lerp_(centroids_KD[one], float(share))


def _member_offsets(
    vectors_FD: torch.Tensor, centroids_KD: torch.Tensor, found: Assignment, rows_F: torch.Tensor | None
) -> Callable[[int], torch.Tensor]:
    """Function that gives the offsets [F, D] of a cluster's vectors from its centroid."""
    order = np.argsort(found.ids_F, kind="stable")
    ends = np.cumsum(found.counts_K)

    def offsets_of(cluster: int) -> torch.Tensor:
        members = torch.from_numpy(order[ends[cluster] - found.counts_K[cluster] : ends[cluster]])
        return vectors_FD[members if rows_F is None else rows_F[members]].sub_(centroids_KD[cluster])

    return offsets_of


def _try_splits(
    offsets_of: Callable[[int], torch.Tensor], found: Assignment, rng: np.random.Generator
) -> Iterator[_Split]:
    """Splits that half of the clusters which have the largest errors."""
    num_clusters = len(found.counts_K)
    for cluster in np.argsort(-found.errors_K, kind="stable")[: (num_clusters + 1) // 2].tolist():
        if found.counts_K[cluster] > 1:
            first = int(rng.integers(found.counts_K[cluster]))
            yield _Split(cluster, first, gain=_split_in_two(offsets_of(cluster), first)[0])


def _split_in_two(offsets_FD: torch.Tensor, first: int) -> tuple[float, torch.Tensor, torch.Tensor]:
    """2-means of offsets from their mean, first divided along one of them: the gain and both means.

    Where they are all equal the gain is 0.
    """
    direction_D, middle = offsets_FD[first], torch.zeros((), device=offsets_FD.device)
    if not direction_D.any():  # that one is their mean
        direction_D = offsets_FD[offsets_FD.square().sum(dim=1).argmax()]
    for _ in range(ROUNDS_OF_SPLIT):
        is_left_F = offsets_FD @ direction_D > middle
        num_left = int(is_left_F.sum())
        num_right = len(offsets_FD) - num_left
        if not num_left or not num_right:
            return 0.0, direction_D, direction_D
        sum_D = is_left_F.to(offsets_FD.dtype) @ offsets_FD
        left_D, right_D = sum_D / num_left, (offsets_FD.sum(dim=0) - sum_D) / num_right
        direction_D = left_D - right_D
        middle = (left_D + right_D) @ direction_D / 2
    gain = num_left * num_right / len(offsets_FD) * float(direction_D.square().sum())
    return gain, left_D, right_D
