"""Where Whisper weights are: a path, an installed package with pinned weights, or the user's own cache.

Nothing is ever downloaded.
"""

import importlib.util
from pathlib import Path

from dmlm.pipeline.errors import ConfigError, CorruptInputError
from dmlm.pipeline.manifests import PackagedWeights, load_weights_manifest
from dmlm.pipeline.storage import sha256_file, user_cache_dir

WHISPER = "whisper:"


def find_whisper_weights(encoder: str) -> Path:
    """Checkpoint of an encoder such as `whisper:tiny.en`, `whisper:PATH` or `PATH`.

    Raises:
        ConfigError: It is in none of the three places.
        CorruptInputError: The packaged file is not the pinned one.
    """
    name = encoder.removeprefix(WHISPER)
    if (path := Path(name).expanduser()).exists():
        return path
    entry = load_weights_manifest().find(WHISPER + name)
    if entry is not None and (packaged := find_packaged(entry)) is not None:
        return packaged
    cached = user_cache_dir() / "whisper" / f"{name}.pt"
    if cached.is_file():
        return cached
    package = (
        f"the package {entry.package} (`{entry.install}`)" if entry else "a pinned package (there is none)"
    )
    raise ConfigError(f"encoder {encoder}: no such path, not in {package}, and no {cached} of openai-whisper")


def find_packaged(entry: PackagedWeights) -> Path | None:
    """File of the installed package, None where it is not installed; its code is not run.

    Raises:
        CorruptInputError: It is not the pinned file.
    """
    spec = importlib.util.find_spec(entry.package)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / entry.path
    if not path.is_file() or (found := sha256_file(path)) != entry.sha256:
        reason = f"sha256 {found}, expected {entry.sha256}" if path.is_file() else "is missing"
        raise CorruptInputError(f"{path}: {reason}; install it again: {entry.install}")
    return path
