"""A folder may bring code of its own: it is never run, not even for somebody who says yes to everything."""

import json
from pathlib import Path

import pytest
from transformers import dynamic_module_utils

from dmlm.pipeline.encoders import WindowMode
from dmlm.pipeline.encoders.registry import open_encoder
from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.vocabulary import Vocabulary
from dmlm.trainer.models.model import save_tokenizer


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model and a tokenizer of kinds of their own, whose code makes `canary` when it is imported."""
    # What is run is copied there first, and kept.
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("builtins.input", lambda prompt: "y")
    monkeypatch.syspath_prepend(tmp_path / "modules")
    directory = tmp_path / "theirs"
    directory.mkdir()
    classes = {"AutoConfig": "code.Own", "AutoFeatureExtractor": "code.Own", "AutoModel": "code.Own"}
    config = {"model_type": "own", "auto_map": classes}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "preprocessor_config.json").write_text(json.dumps({"auto_map": classes}))
    tokenizer = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["code.Own", None]}}
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (directory / "code.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'canary')!r})\nclass Own: ...\n")
    return directory


def test_code_of_an_encoder_is_not_run(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="custom code"):
        open_encoder(f"hubert:{folder}", layer=None, window=WindowMode.EXACT, device="cpu")
    assert not (tmp_path / "canary").exists()


def test_code_of_the_tokenizer_of_a_data_set_is_not_run(folder: Path, tmp_path: Path) -> None:
    vocabulary = Vocabulary(num_text=400, num_speech=16, num_image=0, bos_id=0, eos_id=0)
    with pytest.raises(ValueError, match="custom code"):
        save_tokenizer(folder, vocabulary, tmp_path / "saved")
    assert not (tmp_path / "canary").exists()
