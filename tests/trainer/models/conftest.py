from pathlib import Path

import pytest

from dmlm.pipeline.tokenizers.text import train_bpe


@pytest.fixture(scope="session")
def text_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a text tokenizer whose tokens are bytes."""
    directory = tmp_path_factory.mktemp("text")
    train_bpe([], 256).save(directory)
    return directory
