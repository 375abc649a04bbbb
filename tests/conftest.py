"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real corpus slices; tests that use it are marked `realdata`."""
    folder = Path(os.environ.get("DMLM_REAL_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "LibriSpeech").is_dir():
        pytest.skip(f"no real corpus slices at {folder}; set DMLM_REAL_DATA")
    return folder
