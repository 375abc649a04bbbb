"""Nearest centroids of many vectors, by torch or FAISS, and what a pass of k-means sums up about them.

Suffixes: F vector, D width, K cluster.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

MAX_SCORES = 1 << 20
"""Scores that exist at once: 4 MiB stay in the cache, between the product that makes them and its minima."""
MAX_SCORES_OF_THREAD = 1 << 18
"""Scores that each of several threads has at once."""
MAX_VECTORS = 1 << 14
"""Vectors that are searched, and summed up, at once."""

Counts = npt.NDArray[np.int64]
Search = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Vectors [F, D], centroids [K, D] -> ids [F] of the nearest, their squared distances [F]."""


@dataclass(frozen=True, slots=True, eq=False)
class Assignment:
    """Which centroid is nearest to each vector, summed up for each centroid."""

    ids_F: npt.NDArray[np.int64]
    sums_KD: torch.Tensor
    counts_K: Counts
    errors_K: npt.NDArray[np.float64]
    """Sums of squared distances."""

    @property
    def inertia(self) -> float:
        """Mean squared distance of a vector to its centroid."""
        return float(self.errors_K.sum() / max(1, self.counts_K.sum()))


def search_with_torch(
    vectors_FD: torch.Tensor, centroids_KD: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Nearest centroids and their squared distances, on the device of the vectors."""
    ids_F, scores_F = find_nearest(vectors_FD, centroids_KD)
    norms_F = torch.linalg.vector_norm(vectors_FD, dim=1)  # unlike a sum of squares, nothing in between
    return ids_F, norms_F.square_().add_(scores_F).clamp_(min=0)


def find_nearest(vectors_FD: torch.Tensor, centroids_KD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Nearest centroids, of equally near ones the lowest id, and their scores |c|² - 2xc; in float32.

    |x|² is the same for all centroids, so the score decides. On a CPU each thread searches for vectors of its
    own: faster than one product of many threads, and nothing depends on how many. Where one part is
    all, it is one product of all threads, and their number may decide between centroids almost equally near.
    """
    squares_K, own = centroids_KD.square().sum(dim=1), threading.local()
    num_clusters, on_cpu = len(centroids_KD), not vectors_FD.is_cuda
    num_rows = max(1, (MAX_SCORES_OF_THREAD if on_cpu else MAX_SCORES) // num_clusters)

    def search(part_FD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if not hasattr(own, "scores_FK"):  # kept for the next part: new memory costs as much as the minima
            own.scores_FK = vectors_FD.new_empty(num_rows, num_clusters)
        scores_FK = own.scores_FK[: len(part_FD)]
        torch.addmm(squares_K, part_FD, centroids_KD.T, alpha=-2, out=scores_FK)
        ids_F = _find_minima(scores_FK)
        return ids_F, scores_FK.gather(1, ids_F[:, None])[:, 0]

    parts = torch.split(vectors_FD, num_rows)
    if on_cpu and len(parts) > 1:
        with _single_threads() as pool:
            found = list(pool.map(search, parts))
    else:
        found = list(map(search, parts))
    ids, scores = zip(*found, strict=True)
    return torch.cat(ids), torch.cat(scores)


@contextmanager
def _single_threads() -> Iterator[ThreadPoolExecutor]:
    """As many threads as torch has, in each of which torch takes one."""
    num_threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(num_threads)  # the workers changed it for every thread to come


def _find_minima(scores_FK: torch.Tensor) -> torch.Tensor:
    """Column of the least score of each row, the first of several."""
    if scores_FK.is_cuda:
        return scores_FK.argmin(dim=1)
    # numpy's is vectorised and several times faster than torch's on a CPU.
    return torch.from_numpy(scores_FK.numpy().argmin(axis=1))


def num_rows_at_once(num_clusters: int) -> int:
    """Vectors whose scores are made at once."""
    return max(1, MAX_SCORES // num_clusters)


def search_with_faiss(
    vectors_FD: torch.Tensor, centroids_KD: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same by FAISS, on the GPU where the vectors are; ties as FAISS breaks them."""
    import faiss
    import faiss.contrib.torch_utils  # lets knn_gpu take tensors

    gpu = vectors_FD.device.index or 0
    distances, ids = faiss.knn_gpu(_open_gpu(), vectors_FD, centroids_KD, 1, device=gpu)
    return ids[:, 0], distances[:, 0]


@cache
def _open_gpu() -> Any:
    """FAISS's memory on the GPU, allocated once."""
    import faiss

    return faiss.StandardGpuResources()


def choose_search(device: torch.device | str) -> Search:
    """FAISS on a GPU if it is built for one; else torch, no slower than FAISS on a CPU (row B)."""
    if torch.device(device).type != "cuda":
        return search_with_torch
    try:
        import faiss
    except ImportError:
        return search_with_torch
    return search_with_faiss if faiss.get_num_gpus() else search_with_torch


def assign(
    vectors_FD: torch.Tensor,
    centroids_KD: torch.Tensor,
    search: Search = search_with_torch,
    rows_F: torch.Tensor | None = None,
) -> Assignment:
    """Assigns the vectors, or those of `rows_F`; vectors are never copied whole."""
    num_clusters, num_vectors = len(centroids_KD), len(vectors_FD if rows_F is None else rows_F)
    sums_KD = torch.zeros_like(centroids_KD)
    ids_F = np.empty(num_vectors, np.int64)
    errors_K = np.zeros(num_clusters)
    for start, part_FD in _split_rows(vectors_FD, rows_F, MAX_VECTORS):
        ids, distances = search(part_FD, centroids_KD)
        add_rows(sums_KD, ids, part_FD)
        ids_F[start : start + len(part_FD)] = found = ids.cpu().numpy()
        errors_K += np.bincount(found, distances.cpu().numpy(), minlength=num_clusters)
    return Assignment(ids_F, sums_KD, np.bincount(ids_F, minlength=num_clusters), errors_K)


def _split_rows(
    vectors_FD: torch.Tensor, rows_F: torch.Tensor | None, num_rows: int
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yields start and vectors of each part."""
    for start in range(0, len(vectors_FD if rows_F is None else rows_F), num_rows):
        part = slice(start, start + num_rows)
        yield start, vectors_FD[part] if rows_F is None else vectors_FD[rows_F[part]]


def add_rows(sums_KD: torch.Tensor, ids_F: torch.Tensor, vectors_FD: torch.Tensor) -> None:
    """Adds each vector to the row of its id, on every device in the same order each time."""
    if sums_KD.is_cuda:
        sums_KD.index_put_((ids_F,), vectors_FD, accumulate=True)  # index_add_ is not deterministic there
    else:
        sums_KD.index_add_(0, ids_F, vectors_FD)  # nor is index_put_ here, on many threads
