"""Data sets of different tokens are refused with what would make them fit."""

from pathlib import Path

import pytest

from dmlm.pipeline.errors import FingerprintMismatchError
from dmlm.pipeline.samples import Modality, UnitInventory
from dmlm.pipeline.tokenizers import Fingerprint, check_same_tokens

ONE, OTHER = (UnitInventory(name=name, num_tokens=100).fingerprint for name in ("one", "other"))
WHISPER: Fingerprint = {"encoder": "whisper", "batch_seconds": 30.0, "layer": 3}


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (WHISPER, {**WHISPER, "layer": 4}, r"layer is 3 in a and 4 in b; .* with one --codebook"),
        (
            ONE,
            OTHER,
            r"name is one in a and other in b; .*elsewhere: .* the same --units-name and --num-units",
        ),
        (ONE, WHISPER, r"those of a were made elsewhere, and those of b by dmlm"),
        (WHISPER, ONE, r"those of b were made elsewhere, and those of a by dmlm"),
    ],
)
def test_the_refusal_says_what_would_make_the_tokens_fit(
    a: Fingerprint, b: Fingerprint, message: str
) -> None:
    with pytest.raises(FingerprintMismatchError, match=f"^speech tokens differ: {message}"):
        check_same_tokens(Modality.SPEECH, (Path("a"), a), (Path("b"), b))
    check_same_tokens(Modality.SPEECH, (Path("a"), a), (Path("b"), a))
