"""Licences of weights that tokens are made with: beside the weights, and in every codebook fitted on them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from dmlm.pipeline.errors import CorruptInputError
from dmlm.pipeline.samples import Modality
from dmlm.pipeline.storage import write_bytes, write_json

SEAMLESS, DALLE = "seamless", "dalle"
TERMS_NAME = "terms.json"


@dataclass(frozen=True, slots=True)
class WeightsTerms:
    """What may be done with a set of weights, and with what is made with it."""

    title: str
    modality: Modality
    licence: str
    is_commercial: bool

    def __str__(self) -> str:
        use = "" if self.is_commercial else ", not for commercial use"
        return f"{self.modality} tokens made with {self.title} weights ({self.licence}{use})"


TERMS: Mapping[str, WeightsTerms] = {
    SEAMLESS: WeightsTerms("Seamless", Modality.SPEECH, "CC BY-NC 4.0", is_commercial=False),
    DALLE: WeightsTerms("DALL-E", Modality.IMAGE, "modified MIT", is_commercial=True),
}


def write_terms(directory: Path, terms: WeightsTerms) -> None:
    """Puts the licence of weights beside them."""
    write_json(directory / TERMS_NAME, asdict(terms), is_shared=True)


def copy_terms(encoder: str, directory: Path) -> None:
    """Takes over into a codebook what lies beside the weights of an encoder such as `wav2vec2:DIR`."""
    place = Path(encoder.partition(":")[2])
    if place.is_absolute() and (place / TERMS_NAME).is_file():
        write_bytes(directory / TERMS_NAME, (place / TERMS_NAME).read_bytes())


def load_terms(directory: Path) -> WeightsTerms | None:
    """Licence that lies in a folder; None: there is none.

    Raises:
        CorruptInputError: It is damaged.
    """
    path = directory / TERMS_NAME
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_bytes())
        return WeightsTerms(**{**content, "modality": Modality(content["modality"])})
    except (ValueError, TypeError, KeyError) as error:
        raise CorruptInputError(f"{path}: damaged ({error}); build the codebook again") from error
