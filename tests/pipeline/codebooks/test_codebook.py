import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmlm.pipeline.codebooks import nearest as nearest_module
from dmlm.pipeline.codebooks.codebook import Codebook, FitStatistics, NearestCentroid, load_codebook
from dmlm.pipeline.errors import ConfigError, CorruptInputError, NotFiniteError


def make_codebook(num_clusters: int = 4) -> Codebook:
    statistics = FitStatistics(
        seed=0, num_seen=9, num_kept=8, inertia=1.0, variance=2.0, num_used=4, perplexity=3.5
    )
    centroids_KD = np.random.default_rng(0).standard_normal((num_clusters, 3)).astype(np.float32)
    return Codebook(centroids_KD=centroids_KD, encoder="test", features={"layer": 3}, statistics=statistics)


def test_saved_codebook_comes_back_equal(tmp_path: Path) -> None:
    codebook = make_codebook()
    codebook.save(tmp_path)
    loaded = load_codebook(tmp_path)
    assert np.array_equal(loaded.centroids_KD, codebook.centroids_KD)
    assert (loaded.encoder, loaded.features, loaded.statistics) == ("test", {"layer": 3}, codebook.statistics)
    assert loaded.sha256 == codebook.sha256


def test_damaged_codebook_is_corrupt(tmp_path: Path) -> None:
    make_codebook().save(tmp_path)
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


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_vector_that_is_not_finite_has_no_unit(value: float) -> None:
    vectors_FD = np.ones((3, 2), np.float32)
    vectors_FD[1, 0] = value
    nearest = NearestCentroid(np.array([[1.0, 1.0], [-40.0, 2.0]], np.float32))
    with pytest.raises(NotFiniteError, match="not finite; try --device cpu"):
        nearest(torch.from_numpy(vectors_FD))


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
    monkeypatch.setattr(nearest_module, "MAX_SCORES_OF_THREAD", 500 * 700)
    assert torch.equal(nearest(vectors_FD), one)
