"""The bytes of a sample: npy arrays and json, strict in both directions.

An npy payload is accepted only with the very header that the writer writes, so object arrays, pickles and
odd shapes cannot be expressed at all; json holds the plain fields of Sample and nothing else.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any, Final, Literal, Self

import numpy as np

from dmlm.pipeline.errors import AnnotationError, SampleError, ShardCorruptError
from dmlm.pipeline.samples import Modality, Sample, TokenArray
from dmlm.pipeline.shards.ustar import MAX_JSON_BYTES, MAX_MEMBER_BYTES, MAX_SAMPLE_BYTES, Span
from dmlm.pipeline.vocabulary import Vocabulary, check_ids

FORMAT_VERSION: Final = 1

TokenMember = Literal["speech", "image", "text", "translation"]
TOKEN_MEMBERS: Final[tuple[TokenMember, ...]] = ("speech", "image", "text", "translation")
MODALITY_OF: Final[Mapping[TokenMember, Modality]] = {
    "speech": Modality.SPEECH,
    "image": Modality.IMAGE,
    "text": Modality.TEXT,
    "translation": Modality.TEXT,
}
MemberSizes = Mapping[TokenMember, int]

NPY_HEADER_BYTES: Final = 128

# 80 letters of key and the longest suffix fit into the 100 bytes of a USTAR name.
_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")
_NUMBER_FIELDS = ("duration_seconds", "overlap_seconds")
_JSON_FIELDS = tuple(sorted(f.name for f in fields(Sample) if not f.name.endswith("_tokens")))


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCounts:
    """Number of tokens of each member; `translation` are text tokens too."""

    speech: int = 0
    image: int = 0
    text: int = 0
    translation: int = 0

    @classmethod
    def of(cls, sample: Sample) -> Self:
        """Counts of one sample."""
        return cls(**{name: len(tokens) for name, tokens in token_members(sample)})

    def __add__(self, other: "TokenCounts") -> "TokenCounts":
        theirs = asdict(other)
        return TokenCounts(**{name: count + theirs[name] for name, count in asdict(self).items()})

    def describe(self) -> str:
        """Those that are not zero, for people."""
        counts = (f"{count} {name} tokens" for name, count in asdict(self).items() if count)
        return ", ".join(counts) or "no tokens"


def token_members(sample: Sample) -> Iterator[tuple[TokenMember, TokenArray]]:
    """Yields the token arrays that the sample has, in the order of the tar."""
    for name in TOKEN_MEMBERS:
        tokens = getattr(sample, f"{name}_tokens")
        if tokens is not None:
            yield name, tokens


def count_ids(vocabulary: Vocabulary) -> MemberSizes:
    """Number of ids that the tokens of each member may have."""
    return {name: len(vocabulary.range_of(modality)) for name, modality in MODALITY_OF.items()}


def check_sample_ids(sample: Sample, num_ids: MemberSizes) -> None:
    """Raises CorruptInputError unless every id of the sample is in its member's range."""
    for name, tokens in token_members(sample):
        check_ids(tokens, num_ids[name], MODALITY_OF[name])


@lru_cache(maxsize=4096)
def npy_header(num_tokens: int) -> bytes:
    """Header of a 1-D little-endian int32 array, npy version 1.0, as `numpy.save` writes it."""
    description = f"{{'descr': '<i4', 'fortran_order': False, 'shape': ({num_tokens},), }}"
    size = NPY_HEADER_BYTES - 10
    return b"\x93NUMPY\x01\x00" + size.to_bytes(2, "little") + description.ljust(size - 1).encode() + b"\n"


def num_tokens_in(payload_bytes: int) -> int:
    """Number of tokens in a `.npy` payload of that size."""
    return max(payload_bytes - NPY_HEADER_BYTES, 0) // 4


def encode_npy(tokens: TokenArray) -> bytes:
    """Bytes of a `.npy` member."""
    return npy_header(len(tokens)) + tokens.astype("<i4", copy=False).tobytes()


def decode_npy(payload: memoryview) -> TokenArray:
    """Read-only view of the ids in a `.npy` payload, without a copy.

    Raises:
        ShardCorruptError: The payload is not a 1-D int32 array, written as the writer does.
    """
    num_tokens = num_tokens_in(len(payload))
    if payload[:NPY_HEADER_BYTES] != npy_header(num_tokens) or (len(payload) % 4):
        raise ShardCorruptError("not an npy array of int32 tokens")
    return np.frombuffer(payload, dtype="<i4", offset=NPY_HEADER_BYTES)


def encode_members(sample: Sample) -> list[tuple[str, bytes]]:
    """Members of a sample, as (suffix, payload) in the order of the tar.

    Raises:
        SampleError: The key cannot name a member, the text is not Unicode, or a size limit is exceeded.
    """
    if not _KEY.fullmatch(sample.key):
        raise AnnotationError(f"key {sample.key!r} must be 1 to 80 letters, digits, '_' or '-'")
    payloads = [("json", _encode_json(sample))]
    payloads += [(f"{name}.npy", encode_npy(tokens)) for name, tokens in token_members(sample)]
    sizes = [len(payload) for _, payload in payloads]
    if sizes[0] > MAX_JSON_BYTES or max(sizes) > MAX_MEMBER_BYTES or sum(sizes) > MAX_SAMPLE_BYTES:
        raise SampleError("text of more than 1 MiB, or tokens of more than 16 MiB (32 MiB in all)")
    return payloads


def _encode_json(sample: Sample) -> bytes:
    content = {name: getattr(sample, name) for name in _JSON_FIELDS}
    present = {name: value for name, value in content.items() if value is not None}
    try:
        return encode_compact_json(present)
    except ValueError as error:  # UnicodeEncodeError is one
        raise AnnotationError(f"cannot be written as UTF-8 json: {error}") from error


def encode_compact_json(content: Any) -> bytes:
    """One line of UTF-8 json: sorted keys, no spaces, no NaN."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
    return text.encode()


def decode_sample(tar: memoryview, spans: Mapping[str, Span]) -> Sample:
    """Sample whose members lie at `spans` (suffix to place) of the tar.

    Raises:
        ShardCorruptError: A member is not what the writer writes.
    """
    if "json" not in spans:
        raise ShardCorruptError("a sample has no json")
    content = _decode_json(bytes(spans["json"].of(tar)))
    for name in TOKEN_MEMBERS:
        if span := spans.get(f"{name}.npy"):
            content[f"{name}_tokens"] = decode_npy(span.of(tar))
    return Sample(**content)


def _decode_json(payload: bytes) -> dict[str, Any]:
    if len(payload) > MAX_JSON_BYTES:
        raise ShardCorruptError(f"sample json of {len(payload)} bytes, limit {MAX_JSON_BYTES}")
    try:
        content = json.loads(payload, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ShardCorruptError(f"sample json cannot be read: {error}") from error
    if not isinstance(content, dict) or not {"key", "source", "split"} <= content.keys():
        raise ShardCorruptError("sample json must be an object with key, source and split")
    for name, value in content.items():
        wanted = (int, float) if name in _NUMBER_FIELDS else str
        if name not in _JSON_FIELDS or not isinstance(value, wanted) or isinstance(value, bool):
            raise ShardCorruptError(f"sample json: unknown field or wrong type: {name[:80]!r}")
    return content


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not json")
