import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmlm.pipeline import codebook as codebook_module
from dmlm.pipeline.codebook import (
    Codebook,
    NearestCentroid,
    Vectors,
    VectorSample,
    fit_codebook,
    load_codebook,
)
from dmlm.pipeline.errors import ConfigError, CorruptInputError, MissingDependencyError

CENTRES = np.array([[0, 0], [10, 0], [0, 10], [10, 10]], np.float32)


def stream(num_arrays: int = 20, seed: int = 0) -> Iterator[Vectors]:
    """Four clusters of width 0.1, in arrays of different lengths."""
    rng = np.random.default_rng(seed)
    for index in range(num_arrays):
        ids = rng.integers(0, 4, 10 + index)
        yield (CENTRES[ids] + rng.normal(0, 0.1, (len(ids), 2))).astype(np.float32)


def fit(num_clusters: int = 4, seed: int = 0, num_arrays: int = 20) -> Codebook:
    return fit_codebook(
        stream(num_arrays), num_clusters=num_clusters, seed=seed, encoder="test", features={"layer": 3}
    )


def test_centroids_and_statistics_describe_the_clusters() -> None:
    codebook = fit()
    found = codebook.centroids_KD[np.lexsort(codebook.centroids_KD.T)]
    assert np.abs(found - CENTRES).max() < 0.1
    statistics = codebook.statistics
    assert statistics.num_seen == statistics.num_kept == sum(map(len, stream()))
    assert statistics.inertia == pytest.approx(2 * 0.1**2, rel=0.2)
    assert statistics.variance == pytest.approx(np.concatenate(list(stream())).var(axis=0).sum(), rel=1e-5)
    assert statistics.num_used == 4
    assert 3.5 < statistics.perplexity <= 4


def test_same_stream_and_seed_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        fit(num_clusters=7).save(tmp_path / name)
    files = ("codebook.safetensors", "codebook.json")
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
    assert fit(num_clusters=7, seed=1).sha256 != fit(num_clusters=7).sha256


def test_more_clusters_than_distinct_vectors_leave_no_centroid_undefined() -> None:
    vectors = [np.repeat(CENTRES, 5, axis=0)]
    codebook = fit_codebook(vectors, num_clusters=6, seed=0, encoder="test", features={})
    assert np.isfinite(codebook.centroids_KD).all()
    assert codebook.statistics.num_used <= 4 + 2


def test_too_few_vectors_are_a_config_error_with_both_numbers() -> None:
    with pytest.raises(ConfigError, match="10 vectors of test are too few for 11 clusters"):
        fit(num_clusters=11, num_arrays=1)
    with pytest.raises(ConfigError, match="0 vectors"):
        fit(num_arrays=0)


def test_missing_faiss_names_both_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingDependencyError, match=r"dmlm\[cpu\].*dmlm\[gpu\]"):
        fit()


def test_sample_is_bounded_and_uniform_over_the_stream() -> None:
    counts: Counter[int] = Counter()
    for seed in range(400):
        sample = VectorSample(10, np.random.default_rng(seed))
        for start in range(0, 40, 8):
            sample.add(np.arange(start, start + 8, dtype=np.float32)[:, None])
        assert sample.num_seen == 40
        assert len(sample.vectors) == len(set(sample.vectors.ravel().tolist())) == 10
        counts.update(int(value) for value in sample.vectors.ravel())
    # Binomial(400, 1/4): mean 100, standard deviation 8.7.
    assert all(60 < counts[value] < 140 for value in range(40))


def test_saved_codebook_comes_back_equal(tmp_path: Path) -> None:
    codebook = fit()
    codebook.save(tmp_path)
    loaded = load_codebook(tmp_path)
    assert np.array_equal(loaded.centroids_KD, codebook.centroids_KD)
    assert (loaded.encoder, loaded.features, loaded.statistics) == ("test", {"layer": 3}, codebook.statistics)
    assert loaded.sha256 == codebook.sha256


def test_damaged_codebook_is_corrupt(tmp_path: Path) -> None:
    fit().save(tmp_path)
    path, card = tmp_path / "codebook.safetensors", tmp_path / "codebook.json"
    content = path.read_bytes()
    for damaged in (content[:-1], content[:-1] + bytes([content[-1] ^ 1]), b""):
        path.write_bytes(damaged)
        with pytest.raises(CorruptInputError, match="sha256"):
            load_codebook(tmp_path)
    path.unlink()
    with pytest.raises(CorruptInputError, match="missing"):
        load_codebook(tmp_path)
    for text in ("{", "[]", json.dumps({"encoder": "test"})):
        card.write_text(text)
        with pytest.raises(CorruptInputError, match=r"codebook\.json"):
            load_codebook(tmp_path)


def test_missing_codebook_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="build-codebook"):
        load_codebook(tmp_path / "none")


def codebook_of(centroids_KD: Vectors) -> Codebook:
    return Codebook(centroids_KD=centroids_KD, encoder="test", features={}, statistics=fit().statistics)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_nearest_centroid_is_the_lowest_id_of_least_distance(
    num_vectors: int, num_clusters: int, width: int, seed: int
) -> None:
    # Small integers: float32 is exact, and ties are common.
    rng = np.random.default_rng(seed)
    vectors_FD = rng.integers(-3, 4, (num_vectors, width)).astype(np.float32)
    centroids_KD = rng.integers(-3, 4, (num_clusters, width)).astype(np.float32)
    expected = np.square(vectors_FD[:, None] - centroids_KD).sum(axis=2).argmin(axis=1)
    found = NearestCentroid(centroids_KD)(torch.from_numpy(vectors_FD))
    assert np.array_equal(found.numpy(), expected)


def test_assignment_is_the_same_for_any_number_of_threads_and_any_split(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    nearest = NearestCentroid(rng.standard_normal((500, 384)).astype(np.float32))
    vectors_FD = torch.from_numpy(rng.standard_normal((3_000, 384)).astype(np.float32))
    num_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = nearest(vectors_FD)
        torch.set_num_threads(4)
        assert torch.equal(nearest(vectors_FD), one)
    finally:
        torch.set_num_threads(num_threads)
    monkeypatch.setattr(codebook_module, "MAX_SCORES", 500 * 700)
    assert torch.equal(nearest(vectors_FD), one)
