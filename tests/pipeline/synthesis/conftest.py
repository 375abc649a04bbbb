"""A small sample, written once for all tests of this folder."""

import pytest

from dmlm.pipeline.synthesis.corpora import SampleConfig, write_sample_corpora
from dmlm.pipeline.synthesis.reports import SampleReport


@pytest.fixture(scope="session")
def small_sample(tmp_path_factory: pytest.TempPathFactory) -> SampleReport:
    """Report of a sample with at most six utterances or images per split, made by two workers."""
    out_dir = tmp_path_factory.mktemp("samples") / "small"
    return write_sample_corpora(SampleConfig(out_dir=out_dir, seed=3, limit=6, num_workers=2))
