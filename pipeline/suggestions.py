"""What somebody may have meant who typed a name that there is not."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """Tail of an error message that names the nearest valid name; empty when there is none at all."""
    nearest = get_close_matches(name, list(valid), n=1, cutoff=0.0)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""
