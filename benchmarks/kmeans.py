"""Row B: k-means, dmlm beside scikit-learn and FAISS, until each reaches the same inertia over all vectors.

The vectors are activations of Whisper tiny.en on `LibriSpeech/train-clean-100` of $DMLM_REAL_DATA, else
drawn clouds. A target is the inertia at which a peer stops by its own rule × 1.002. Each side is given the
fewest passes that reach it and timed with these; a side that never does is left out, and the details say how
near it came. For mini-batches, the details also have what each side takes and reaches by its own rule.

    pip install scikit-learn
    python benchmarks/kmeans.py [--vectors 40000] [--clusters 500] [--rounds 5] [--threads 2]
"""

import argparse
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from rows import SGEMM_OPERATIONS, Row, make_sgemm, time_sides
from sklearn.cluster import KMeans, MiniBatchKMeans
from threadpoolctl import threadpool_limits

from dmlm.pipeline.codebooks.fitting import FitMode, fit_codebook
from dmlm.pipeline.codebooks.kmeans import cluster
from dmlm.pipeline.codebooks.nearest import assign, choose_search, find_nearest

ENCODER = "whisper:tiny.en"
MARGIN = 1.002
WIDTH = 384
MAX_PASSES = 40
MAX_FAISS_PASSES = 100
MAX_PASSES_OF_BATCHES = 100
"""scikit-learn's own."""
LONG = 4096
"""Vectors of a larger mini-batch."""
ROUNDS_OF_ASSIGNMENT = 4
"""Times as many rounds: one takes half a second, and machines change their pace within seconds."""

Side = Callable[[], object]


@dataclass(frozen=True)
class Task:
    """What every side is given."""

    vectors_FD: torch.Tensor
    origin: str
    """What the vectors are: an encoder, or clouds."""
    num_clusters: int

    def inertia(self, centroids_KD: Any) -> float:
        """Mean squared distance of all vectors to these centroids."""
        centroids = torch.from_numpy(np.asarray(centroids_KD, np.float32))
        return assign(self.vectors_FD, centroids, choose_search("cpu")).inertia

    def cluster(self, max_passes: int | None = None) -> torch.Tensor:
        """The side of dmlm."""
        return cluster(
            self.vectors_FD,
            self.num_clusters,
            np.random.default_rng(0),
            search=choose_search("cpu"),
            max_passes=max_passes,
        )

    def fit_lloyd(self, max_passes: int, init: Any = "k-means++") -> KMeans:
        """scikit-learn's Lloyd."""
        kmeans = KMeans(
            self.num_clusters, init=init, n_init=1, algorithm="lloyd", max_iter=max_passes, random_state=0
        )
        return kmeans.fit(self.vectors_FD.numpy())

    def fit_batches(self, size: int, max_passes: int = MAX_PASSES_OF_BATCHES) -> MiniBatchKMeans:
        """scikit-learn's mini-batches, without the pass over all vectors that would assign them."""
        kmeans = MiniBatchKMeans(
            self.num_clusters,
            n_init=1,
            batch_size=size,
            max_iter=max_passes,
            compute_labels=False,
            random_state=0,
        )
        return kmeans.fit(self.vectors_FD.numpy())

    def fit_faiss(self, max_passes: int) -> Any:
        """FAISS on all vectors."""
        kmeans = faiss.Kmeans(
            WIDTH, self.num_clusters, niter=max_passes, seed=0, max_points_per_centroid=len(self.vectors_FD)
        )
        kmeans.train(self.vectors_FD.numpy())
        return kmeans


def main(arguments: list[str] | None = None) -> None:
    options = _parse(arguments)
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    with threadpool_limits(options.threads):
        task = Task(*_load_vectors(options.vectors), options.clusters)
        _report_lloyd(task, options.rounds)
        _report_batches(task, options.rounds)
        _report_assignment(task, options.rounds)
        _report_stream(task)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Row B: k-means.")
    parser.add_argument("--vectors", type=int, default=40_000)
    parser.add_argument("--clusters", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args(arguments)


def _load_vectors(num_vectors: int) -> tuple[torch.Tensor, str]:
    """Frames drawn from all over the corpus, in its order, or points of clouds; and which of the two."""
    rng = np.random.default_rng(0)
    corpus = Path(os.environ.get("DMLM_REAL_DATA", "")) / "LibriSpeech" / "train-clean-100"
    if not corpus.is_dir():
        centres = rng.normal(0, 1, (2_000, WIDTH)).astype(np.float32)
        noise = rng.standard_normal((num_vectors, WIDTH), np.float32)
        return torch.from_numpy(centres[rng.integers(0, len(centres), num_vectors)] + noise), "clouds"
    frames_FD = torch.cat(list(_encode(corpus)))
    rows = np.sort(rng.permutation(len(frames_FD))[:num_vectors])
    return frames_FD[torch.from_numpy(rows)], ENCODER


def _encode(corpus: Path) -> Iterator[torch.Tensor]:
    from dmlm.pipeline.audio import load_waveform
    from dmlm.pipeline.encoders import WindowMode
    from dmlm.pipeline.encoders.whisper import open_whisper_encoder

    encoder = open_whisper_encoder(ENCODER, layer=None, window=WindowMode.EXACT, device="cpu")
    for item in encoder.encode(load_waveform(path) for path in sorted(corpus.rglob("*.flac"))):
        yield item.activations_FD


def _report_lloyd(task: Task, num_rounds: int) -> None:
    final = task.fit_lloyd(300)
    target = MARGIN * task.inertia(final.cluster_centers_)
    num_passes = {"dmlm": _passes_of_dmlm(task, target), "sklearn": _passes_of_lloyd(task, target)}
    sides: dict[str, Side] = {
        "dmlm": lambda: task.cluster(num_passes["dmlm"]),
        "sklearn": lambda: task.fit_lloyd(num_passes["sklearn"]),
    }
    faiss_inertias = np.array(task.fit_faiss(MAX_FAISS_PASSES).obj) / len(task.vectors_FD)
    if (faiss_inertias <= target).any():
        num_passes["faiss"] = int((faiss_inertias <= target).argmax()) + 1
        sides["faiss"] = lambda: task.fit_faiss(num_passes["faiss"])
    seconds = time_sides(sides, num_rounds)
    Row(
        name="B-lloyd",
        title=f"k-means of {_describe(task)} to the final inertia of KMeans(lloyd) x {MARGIN}",
        dmlm=seconds.pop("dmlm"),
        peers=seconds,
        unit="s",
        target=2.0,
        smaller_is_better=True,
        details={
            "vectors": task.origin,
            "passes": num_passes,
            "target_inertia": target,
            "inertia": task.inertia(task.cluster(num_passes["dmlm"])),
            f"faiss_inertia_after_{MAX_FAISS_PASSES}_passes": float(faiss_inertias[-1]),
        },
    ).print()


def _report_batches(task: Task, num_rounds: int) -> None:
    """Each size of batch has a target of its own; the row is the one that dmlm is least ahead of."""
    rows = []
    for size in (1024, LONG):
        stopped = {
            "dmlm": task.inertia(task.cluster()),
            "sklearn": task.inertia(task.fit_batches(size).cluster_centers_),
        }
        target = MARGIN * stopped["sklearn"]
        passes = {
            "dmlm": _passes_of_dmlm(task, target),
            "sklearn": _passes_of_batches(task, size, target),
        }
        sides: dict[str, Side] = {
            "dmlm": partial(task.cluster, passes["dmlm"]),
            "sklearn": partial(task.fit_batches, size, passes["sklearn"]),
        }
        by_own_rule: dict[str, Side] = {"dmlm": task.cluster, "sklearn": partial(task.fit_batches, size)}
        seconds = time_sides(sides, num_rounds)
        row = Row(
            name="B-minibatch",
            title=f"k-means of {_describe(task)} to the final inertia of MiniBatchKMeans x {MARGIN}",
            dmlm=seconds.pop("dmlm"),
            peers=seconds,
            unit="s",
            target=2.0,
            smaller_is_better=True,
            details={
                "vectors": task.origin,
                "batch": size,
                "passes": passes,
                "target_inertia": target,
                "inertia_by_own_rule": stopped,
                "seconds_by_own_rule": time_sides(by_own_rule, num_rounds),
            },
        )
        rows.append(row)
    min(rows, key=lambda row: row.ratio).print()


def _report_assignment(task: Task, num_rounds: int) -> None:
    centroids_KD = task.vectors_FD[: task.num_clusters].clone()
    product_FK = torch.empty(len(task.vectors_FD), task.num_clusters)
    seconds = time_sides(
        {
            "nearest": lambda: find_nearest(task.vectors_FD, centroids_KD),
            "faiss": lambda: faiss.knn(task.vectors_FD.numpy(), centroids_KD.numpy(), 1),
            "pass": lambda: assign(task.vectors_FD, centroids_KD),
            "product": lambda: torch.mm(task.vectors_FD, centroids_KD.T, out=product_FK),
            "sgemm": make_sgemm(),
        },
        num_rounds * ROUNDS_OF_ASSIGNMENT,
    )
    num_operations = 2 * len(task.vectors_FD) * task.num_clusters * WIDTH
    rates = {name: num_operations / seconds[name] / 1e9 for name in ("nearest", "faiss", "pass", "product")}
    Row(
        name="B-assign",
        title=f"nearest centroids of {_describe(task)}",
        dmlm=rates["nearest"],
        peers={"bare sgemm": SGEMM_OPERATIONS / seconds["sgemm"] / 1e9},
        unit="GFLOP/s",
        target=0.9,
        details={
            "vectors": task.origin,
            "GFLOP/s with FAISS instead": rates["faiss"],
            "GFLOP/s with distances and the sums of the clusters": rates["pass"],
            "GFLOP/s of the product alone, all of it at once": rates["product"],
        },
    ).print()


def _report_stream(task: Task) -> None:
    """Inertia over all vectors of the one-pass fit beside that of the fit that holds them."""
    pieces = np.array_split(task.vectors_FD.numpy(), max(1, len(task.vectors_FD) // 500))
    pieces = [pieces[i] for i in np.random.default_rng(0).permutation(len(pieces))]
    codebook = fit_codebook(
        pieces, num_clusters=task.num_clusters, seed=0, encoder="", features={}, mode=FitMode.STREAM
    )
    Row(
        name="B-stream",
        title=f"inertia of {_describe(task)} after one pass in bounded memory",
        dmlm=task.inertia(codebook.centroids_KD),
        peers={"all vectors in memory": task.inertia(task.cluster())},
        unit="",
        target=None,
        smaller_is_better=True,
        details={"vectors": task.origin, "kept": codebook.statistics.num_kept},
    ).print()


def _passes_of_dmlm(task: Task, target: float) -> int:
    passes = range(1, MAX_PASSES)
    return next((n for n in passes if task.inertia(task.cluster(n)) <= target), MAX_PASSES)


def _passes_of_lloyd(task: Task, target: float) -> int:
    """Passes one by one, each from where the last ended: the same as all at once."""
    kmeans, num_passes = task.fit_lloyd(1), 1
    while task.inertia(kmeans.cluster_centers_) > target:
        kmeans, num_passes = task.fit_lloyd(1, kmeans.cluster_centers_), num_passes + 1
    return num_passes


def _passes_of_batches(task: Task, size: int, target: float) -> int:
    num_vectors = len(task.vectors_FD)
    fewest = math.ceil(2 * min(size, num_vectors) / num_vectors)  # scikit-learn fails on one batch alone
    passes = range(fewest, MAX_PASSES_OF_BATCHES)
    reached = (n for n in passes if task.inertia(task.fit_batches(size, n).cluster_centers_) <= target)
    return next(reached, MAX_PASSES_OF_BATCHES)


def _describe(task: Task) -> str:
    return f"{len(task.vectors_FD):,} vectors, K {task.num_clusters}"


if __name__ == "__main__":
    main()
