"""A vocoder folder: `vocoder.safetensors`, and `vocoder.json`, which vouches for it and names its units."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch

import dmlm
from dmlm.pipeline.errors import CheckpointError, ConfigError, FingerprintMismatchError
from dmlm.pipeline.storage import atomic_writer, sha256_file, write_json
from dmlm.pipeline.strict_config import build_strictly
from dmlm.pipeline.tokenizers import Fingerprint, first_difference
from dmlm.trainer.vocoder.config import VocoderRecipe
from dmlm.trainer.vocoder.model import UnitVoice

FORMAT_VERSION: Final = 1
CARD, WEIGHTS = "vocoder.json", "vocoder.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Vocoder:
    """A trained net and what it was trained on."""

    voice: UnitVoice
    num_units: int
    fingerprint: Fingerprint
    """Of the speech tokenizer whose units it speaks."""
    recipe: VocoderRecipe
    seed: int


def prepare_folder(directory: Path) -> None:
    """Makes the folder; an older vocoder in it stays until another is saved.

    Raises:
        ConfigError: It is a file, or a folder that holds something else.
    """
    if directory.is_file():
        raise ConfigError(f"{directory} is a file; --out must be a folder")
    directory.mkdir(parents=True, exist_ok=True)
    ours = {CARD, WEIGHTS, f"{CARD}.tmp", f"{WEIGHTS}.tmp"}  # the latter of a save that was killed
    if others := sorted({path.name for path in directory.iterdir()} - ours):
        raise ConfigError(f"{directory} holds {others[0]}, which is no vocoder's; give another --out")


def is_vocoder(directory: Path) -> bool:
    """Whether a finished vocoder lies here; whether it is whole is seen when it is loaded."""
    return (directory / CARD).is_file()


def save_vocoder(directory: Path, vocoder: Vocoder) -> None:
    """Writes the folder, the card last; an older vocoder goes when the new weights are ready."""
    from safetensors.torch import save

    state = {name: tensor.detach().cpu().contiguous() for name, tensor in vocoder.voice.state_dict().items()}
    with atomic_writer(directory / WEIGHTS) as file:
        file.write(save(state))
        file.flush()
        (directory / CARD).unlink(missing_ok=True)
    content = {
        "format_version": FORMAT_VERSION,
        "fingerprint": dict(vocoder.fingerprint),
        "num_units": vocoder.num_units,
        "recipe": asdict(vocoder.recipe),
        "seed": vocoder.seed,
        "weights_sha256": sha256_file(directory / WEIGHTS),
        "versions": {"dmlm": dmlm.__version__, "torch": torch.__version__},
    }
    write_json(directory / CARD, content)


def load_vocoder(directory: Path) -> Vocoder:
    """Reads a vocoder folder.

    Raises:
        ConfigError: There is none.
        CheckpointError: It is damaged, or of another format version.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (directory / CARD).is_file():
        raise ConfigError(f"{directory}: no vocoder; run `dmlm-cli train-vocoder --out {directory}`")
    try:
        content = json.loads((directory / CARD).read_bytes())
        if content["format_version"] != FORMAT_VERSION:
            raise CheckpointError(
                f"{directory}: format version {content['format_version']}, not {FORMAT_VERSION}"
            )
        if sha256_file(directory / WEIGHTS) != content["weights_sha256"]:
            raise CheckpointError(f"{directory / WEIGHTS}: changed or damaged; train the vocoder again")
        vocoder = _empty_vocoder(content)
        vocoder.voice.load_state_dict(load_file(directory / WEIGHTS))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ConfigError, SafetensorError) as error:
        raise CheckpointError(f"{directory}: the vocoder cannot be read: {error}") from error
    vocoder.voice.eval().requires_grad_(False)
    return vocoder


def check_units(directory: Path, theirs: Fingerprint, ours: Fingerprint) -> None:
    """Raises FingerprintMismatchError, naming both sides, unless a vocoder speaks these units."""
    if name := first_difference(theirs, ours):
        raise FingerprintMismatchError(
            f"{directory} speaks other units: {name} is {theirs.get(name)} there and {ours.get(name)} in "
            "the model; run `dmlm-cli train-vocoder` on the shards that the model was trained on"
        )


def _empty_vocoder(content: Mapping[str, Any]) -> Vocoder:
    recipe = build_strictly(VocoderRecipe, content["recipe"], CARD)
    return Vocoder(
        voice=UnitVoice(content["num_units"], recipe.shape),
        num_units=content["num_units"],
        fingerprint=dict(content["fingerprint"]),
        recipe=recipe,
        seed=content["seed"],
    )
