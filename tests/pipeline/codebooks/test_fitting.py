import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from dmlm.pipeline.codebooks import fitting as codebook_fitting
from dmlm.pipeline.codebooks.codebook import Codebook, Vectors
from dmlm.pipeline.codebooks.fitting import FitMode, VectorSample, fit_codebook
from dmlm.pipeline.errors import ConfigError, NotFiniteError

CENTRES = np.array([[0, 0], [10, 0], [0, 10], [10, 10]], np.float32)


def stream(num_arrays: int = 20, seed: int = 0) -> Iterator[Vectors]:
    """Four clusters of width 0.1, in arrays of different lengths."""
    rng = np.random.default_rng(seed)
    for index in range(num_arrays):
        ids = rng.integers(0, 4, 10 + index)
        yield (CENTRES[ids] + rng.normal(0, 0.1, (len(ids), 2))).astype(np.float32)


def fit(
    num_clusters: int = 4, seed: int = 0, num_arrays: int = 20, mode: FitMode = FitMode.SAMPLE
) -> Codebook:
    return fit_codebook(
        stream(num_arrays), num_clusters=num_clusters, seed=seed, encoder="test", features={}, mode=mode
    )


@pytest.fixture
def small_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """`stream` keeps few vectors, so that short streams go through all of it."""
    monkeypatch.setattr(codebook_fitting, "STREAM_BYTES", 800)


@pytest.mark.parametrize("mode", FitMode)
def test_centroids_and_statistics_describe_the_clusters(mode: FitMode) -> None:
    codebook = fit(mode=mode)
    found = codebook.centroids_KD[np.lexsort(codebook.centroids_KD.T)]
    assert np.abs(found - CENTRES).max() < 0.1
    statistics = codebook.statistics
    assert statistics.num_seen == statistics.num_kept == sum(map(len, stream()))
    assert statistics.inertia == pytest.approx(2 * 0.1**2, rel=0.2)
    assert statistics.variance == pytest.approx(np.concatenate(list(stream())).var(axis=0).sum(), rel=1e-5)
    assert statistics.num_used == 4
    assert 3.5 < statistics.perplexity <= 4


@pytest.mark.usefixtures("small_sample")
@pytest.mark.parametrize("mode", FitMode)
def test_same_stream_and_seed_give_the_same_bytes(mode: FitMode, tmp_path: Path) -> None:
    for name in ("a", "b"):
        fit(num_clusters=7, mode=mode).save(tmp_path / name)
    files = ("codebook.safetensors", "codebook.json")
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
    assert fit(num_clusters=7, seed=1, mode=mode).sha256 != fit(num_clusters=7, mode=mode).sha256


@pytest.mark.usefixtures("small_sample")
def test_stream_gives_the_same_bytes_again_on_several_threads() -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 8, (20, 600))  # few rows, which many vectors are added to at once
    centres = rng.normal(0, 9, (8, 64))
    vectors = [(centres[part] + rng.normal(0, 1, (600, 64))).astype(np.float32) for part in ids]
    num_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        fits = [
            fit_codebook(vectors, num_clusters=50, seed=0, encoder="x", features={}, mode=FitMode.STREAM)
            for _ in range(5)
        ]
    finally:
        torch.set_num_threads(num_threads)
    assert len({codebook.sha256 for codebook in fits}) == 1


@pytest.mark.usefixtures("small_sample")
def test_every_vector_of_a_stream_counts_though_few_are_kept() -> None:
    codebook = fit(mode=FitMode.STREAM)
    statistics = codebook.statistics
    assert (statistics.num_seen, statistics.num_kept) == (sum(map(len, stream())), 104)
    found = codebook.centroids_KD[np.lexsort(codebook.centroids_KD.T)]
    assert np.abs(found - CENTRES).max() < 0.05
    assert statistics.inertia == pytest.approx(2 * 0.1**2, rel=0.4)
    changed = [*stream(), CENTRES[:1]]
    other = fit_codebook(changed, num_clusters=4, seed=0, encoder="test", features={}, mode=FitMode.STREAM)
    assert not np.array_equal(other.centroids_KD, codebook.centroids_KD)


@pytest.mark.usefixtures("small_sample")
def test_a_stream_may_be_cut_into_arrays_anywhere() -> None:
    vectors = np.random.default_rng(0).standard_normal((400, 2)).astype(np.float32)
    num_first = 4 + 800 // vectors[0].nbytes  # all that is kept before the first step

    def fit_arrays(*arrays: Vectors) -> Codebook:
        return fit_codebook(arrays, num_clusters=4, seed=0, encoder="test", features={}, mode=FitMode.STREAM)

    whole, parts = fit_arrays(vectors), fit_arrays(vectors[:num_first], vectors[num_first:])
    np.testing.assert_array_equal(whole.centroids_KD, parts.centroids_KD)


@pytest.mark.usefixtures("small_sample")
def test_centroids_move_to_what_a_stream_turns_into() -> None:
    rng = np.random.default_rng(0)
    early = [rng.normal(0, 0.1, (50, 2)).astype(np.float32) for _ in range(8)]
    later = [(CENTRES + rng.normal(0, 0.1, (4, 2))).astype(np.float32).repeat(20, 0) for _ in range(200)]
    codebook = fit_codebook(
        early + later, num_clusters=4, seed=0, encoder="test", features={}, mode=FitMode.STREAM
    )
    found = codebook.centroids_KD[np.lexsort(codebook.centroids_KD.T)]
    assert np.abs(found - CENTRES).max() < 0.2
    assert codebook.statistics.num_used == 4


@pytest.mark.parametrize("mode", FitMode)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_vector_that_is_not_finite_is_refused(mode: FitMode, value: float) -> None:
    vectors = [*stream(), np.array([[0, value]], np.float32)]
    with pytest.raises(NotFiniteError, match="test gives vectors that are not finite"):
        fit_codebook(vectors, num_clusters=4, seed=0, encoder="test", features={}, mode=mode)


STREAM_MEMORY = """
import sys, numpy as np
from pathlib import Path
from dmlm.pipeline.codebooks import fitting as codebook_fitting
from dmlm.pipeline.codebooks import kmeans
from dmlm.pipeline.codebooks.fitting import FitMode, fit_codebook
codebook_fitting.STEP, kmeans.MAX_PASSES = 2, 2  # no less memory, but few vectors are enough
num_arrays, F, K, D = map(int, sys.argv[1:])
base_KD = np.random.default_rng(1).standard_normal((K, D)).astype(np.float32)
def vectors(num_arrays, D):
    rng = np.random.default_rng(0)
    for _ in range(num_arrays):
        yield base_KD[rng.integers(0, K, F), :D] + rng.standard_normal((F, D), np.float32)
def fit(num_arrays, D, num_clusters):
    settings = dict(num_clusters=num_clusters, seed=0, encoder="x", features={}, mode=FitMode.STREAM)
    fit_codebook(vectors(num_arrays, D), **settings)
    # Not ru_maxrss: a process begins with that of the one that started it.
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024
before = fit(2, 8, 10)
print(fit(num_arrays, D, K) - before)
"""


def measure_stream(*sizes: int) -> int:
    """Peak memory beyond that of a small fit: number of arrays, vectors in each, K, D."""
    command = [sys.executable, "-c", STREAM_MEMORY, *map(str, sizes)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_memory_of_a_stream_is_bounded_whatever_its_length() -> None:
    extra = [measure_stream(num_arrays, 500, 100, 1024) for num_arrays in (20, 60)]
    assert max(extra) <= (64 << 20) + 3 * 100 * 1024 * 4
    assert extra[1] - extra[0] < 8 << 20


def test_memory_of_a_stream_is_that_of_five_sets_of_many_centroids() -> None:
    """Of 37 MB each, which move once, and then by an exchange; the aim is 3 of them, see docs/tokens.md."""
    extra = measure_stream(170, 10, 450, 20_480)
    assert extra <= (64 << 20) + 5 * 450 * 20_480 * 4


def test_more_clusters_than_distinct_vectors_leave_no_centroid_undefined() -> None:
    vectors = [np.repeat(CENTRES, 5, axis=0)]
    codebook = fit_codebook(vectors, num_clusters=6, seed=0, encoder="test", features={})
    assert np.isfinite(codebook.centroids_KD).all()
    assert codebook.statistics.num_used == 4


@pytest.mark.parametrize("mode", FitMode)
def test_too_few_vectors_are_a_config_error_with_both_numbers(mode: FitMode) -> None:
    with pytest.raises(ConfigError, match=r"10 vectors of test are too few for 11 clusters; .* --clusters"):
        fit(num_clusters=11, num_arrays=1, mode=mode)
    with pytest.raises(ConfigError, match="0 vectors"):
        fit(num_arrays=0, mode=mode)


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
