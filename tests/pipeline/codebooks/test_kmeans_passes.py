"""K-means itself; what becomes a codebook of it is in test_codebook_fitting.py."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmlm.pipeline.codebooks import nearest
from dmlm.pipeline.codebooks.kmeans import cluster, exchange, move
from dmlm.pipeline.codebooks.nearest import (
    Assignment,
    assign,
    choose_search,
    search_with_faiss,
    search_with_torch,
)


def draw(num_vectors: int, width: int, seed: int = 0) -> torch.Tensor:
    """Forty clouds of different weight."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, 3, (40, width))
    ids = rng.choice(40, num_vectors, p=rng.dirichlet(np.full(40, 0.5)))
    return torch.from_numpy((centres[ids] + rng.normal(0, 1, (num_vectors, width))).astype(np.float32))


def test_sums_of_a_pass_equal_slow_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "MAX_SCORES_OF_THREAD", 700)
    vectors_FD, centroids_KD = draw(500, 5), draw(7, 5, seed=1)
    rows_F = torch.arange(0, 500, 3)
    found = assign(vectors_FD, centroids_KD, rows_F=rows_F)
    distances_FK = torch.cdist(vectors_FD[rows_F].double(), centroids_KD.double()).square().numpy()
    ids_F = distances_FK.argmin(axis=1)
    assert np.array_equal(found.ids_F, ids_F)
    for k in range(7):
        assert found.counts_K[k] == (ids_F == k).sum()
        assert found.errors_K[k] == pytest.approx(distances_FK[ids_F == k, k].sum(), rel=1e-4)
        torch.testing.assert_close(found.sums_KD[k], vectors_FD[rows_F][ids_F == k].sum(dim=0))
    assert found.inertia == pytest.approx(distances_FK.min(axis=1).mean(), rel=1e-5)


def test_a_centroid_of_no_vector_stays_where_it_is() -> None:
    found = Assignment(np.array([0, 0]), torch.tensor([[2.0], [0.0]]), np.array([2, 0]), np.zeros(2))
    assert move(torch.tensor([[9.0], [7.0]]), found).tolist() == [[1.0], [7.0]]


def test_same_seed_gives_the_same_bytes() -> None:
    vectors_FD = draw(3_000, 6)
    runs = [cluster(vectors_FD, 20, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert runs[0].numpy().tobytes() == runs[1].numpy().tobytes() != runs[2].numpy().tobytes()


@settings(max_examples=25)
@given(st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_every_distinct_vector_gets_a_centroid_when_there_are_enough(num_distinct: int, seed: int) -> None:
    """A random start takes the common vector many times: the clusters of the others are empty at first."""
    rng = np.random.default_rng(seed)
    rare_FD = rng.permutation(np.arange(1, 3 * num_distinct + 1).reshape(-1, 3)).astype(np.float32)
    vectors_FD = torch.from_numpy(np.concatenate([np.zeros((500, 3), np.float32), rare_FD]))
    found = assign(vectors_FD, cluster(vectors_FD, num_distinct + 1, np.random.default_rng(seed)))
    assert (found.counts_K > 0).all()
    assert found.inertia < 1e-3


@settings(max_examples=25)
@given(st.integers(2, 30), st.integers(0, 2**32 - 1))
def test_exchange_never_raises_the_error(num_clusters: int, seed: int) -> None:
    vectors_FD, rng = draw(300, 4, seed), np.random.default_rng(seed)
    start = rng.permutation(300)[:num_clusters]
    found = assign(vectors_FD, vectors_FD[start])
    centroids_KD = move(vectors_FD[start], found)
    before = float((vectors_FD - centroids_KD[found.ids_F]).square().sum(dim=1).mean())
    exchange(vectors_FD, centroids_KD, found, rng)
    assert assign(vectors_FD, centroids_KD).inertia <= before * (1 + 1e-5)


def test_exchange_takes_centroids_from_one_cloud_to_another() -> None:
    rng = np.random.default_rng(0)
    clouds = [rng.normal(x, 0.01, (100, 2)) for x in (0, 10, 20)]
    vectors_FD = torch.from_numpy(np.concatenate(clouds).astype(np.float32))
    found = assign(vectors_FD, torch.tensor([[0.0, 0.01], [0.01, 0.0], [15.0, 15.0]]))
    centroids_KD = move(torch.zeros(3, 2), found)
    assert exchange(vectors_FD, centroids_KD, found, rng) == 1
    assert sorted(centroids_KD[:, 0].round().tolist()) == [0, 10, 20]


def test_error_is_no_larger_than_of_25_passes_of_faiss() -> None:
    faiss = pytest.importorskip("faiss")
    vectors_FD = draw(8_000, 16)
    for seed in range(3):
        other = faiss.Kmeans(16, 60, niter=25, seed=seed, max_points_per_centroid=1_000)
        other.train(vectors_FD.numpy())
        ours = cluster(vectors_FD, 60, np.random.default_rng(seed))
        theirs = torch.from_numpy(np.array(other.centroids))
        assert assign(vectors_FD, ours).inertia <= assign(vectors_FD, theirs).inertia


def test_threads_share_the_vectors_and_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "MAX_SCORES_OF_THREAD", 700)
    vectors_FD, centroids_KD = draw(2_000, 5), draw(7, 5, seed=1)
    num_threads, found = torch.get_num_threads(), []
    for count in (1, 3):
        torch.set_num_threads(count)
        found.append(search_with_torch(vectors_FD, centroids_KD))
        assert torch.get_num_threads() == count
    torch.set_num_threads(num_threads)
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_faiss_is_used_on_gpus_where_it_is_built_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    faiss = pytest.importorskip("faiss")
    assert choose_search("cpu") is search_with_torch
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    assert choose_search("cuda:1") is search_with_torch
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    assert choose_search("cuda:1") is search_with_faiss
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert choose_search("cuda:1") is search_with_torch
