"""Weights are safetensors: a pickled checkpoint is never opened where one is asked for."""

import ast
import pickle
from pathlib import Path

import pytest
from transformers import OPTConfig, Wav2Vec2Config, WhisperConfig

from dmlm.pipeline.encoders import WindowMode
from dmlm.pipeline.encoders.registry import open_encoder
from dmlm.pipeline.errors import DmlmError
from dmlm.trainer.models.model import load_model

REPOSITORY = Path(__file__).parents[2]
PICKLED = ("pytorch_model.bin", "tf_model.h5", "model.pt", "pytorch_model-00001-of-00002.bin")


def write_pickled(folder: Path, config: OPTConfig | Wav2Vec2Config | WhisperConfig, canary: object) -> Path:
    config.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"feature_extractor_type": "Wav2Vec2FeatureExtractor"}')
    for name in PICKLED:
        (folder / name).write_bytes(pickle.dumps(canary))
    return folder


def test_pickled_language_model_is_refused_unread(tmp_path: Path, canary: object) -> None:
    folder = write_pickled(tmp_path / "model", OPTConfig(architectures=["OPTForCausalLM"]), canary)
    with pytest.raises(OSError, match="safetensors"):
        load_model(folder)


@pytest.mark.parametrize(
    ("name", "config"),
    [("wav2vec2", Wav2Vec2Config()), ("whisper", WhisperConfig())],
    ids=["wav2vec2", "whisper"],
)
def test_pickled_encoder_is_refused_unread(
    name: str, config: Wav2Vec2Config | WhisperConfig, tmp_path: Path, canary: object
) -> None:
    folder = write_pickled(tmp_path / "model", config, canary)
    with pytest.raises(DmlmError, match=r"safetensors"):
        open_encoder(f"{name}:{folder}", layer=None, window=WindowMode.EXACT, device="cpu")


def test_every_model_of_a_folder_is_asked_for_in_safetensors() -> None:
    calls = [
        node
        for half in ("pipeline", "trainer")
        for path in (REPOSITORY / half).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and "AutoModel" in (name := ast.unparse(node.func))
        if name.endswith(".from_pretrained")
    ]
    assert len(calls) >= 2
    for call in calls:
        arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert arguments.get("use_safetensors") == "True", ast.unparse(call)
