"""The tar of a shard: the headers that dmlm writes, and a walk that accepts nothing else.

A header is accepted only if it is, byte for byte, the one that the writer would have written. So links,
devices, paths, PAX overrides, sparse files and long names cannot be expressed at all.
"""

import re
import tarfile
from collections.abc import Iterator
from itertools import groupby
from typing import Final, NamedTuple

from dmlm.pipeline.errors import ShardCorruptError

BLOCK_BYTES: Final = 512
END_OF_TAR: Final = bytes(2 * BLOCK_BYTES)
MAX_MEMBER_BYTES: Final = 16 << 20
MAX_SAMPLE_BYTES: Final = 32 << 20
MAX_JSON_BYTES: Final = 1 << 20

SUFFIXES: Final = ("json", "speech.npy", "image.npy", "text.npy", "translation.npy")
"""Members of a sample, in the order of the tar; only the first is always there."""

_MEMBER_NAME = re.compile(rb"([A-Za-z0-9_-]{1,80})\.(json|(?:speech|image|text|translation)\.npy)")
_MEMBER_SIZE = re.compile(rb"([0-7]{11})\0")


class Span(NamedTuple):
    """Where a member's payload lies in its tar."""

    offset: int
    size: int

    def of(self, tar: memoryview) -> memoryview:
        """The payload itself, not copied."""
        return tar[self.offset : self.offset + self.size]


def tar_header(name: str, size: int) -> bytes:
    """USTAR header of a regular file with mode 0644 and no owner or time."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")


def padding_of(size: int) -> int:
    """Zero bytes between a payload of that size and the next header."""
    return -size % BLOCK_BYTES


def walk_samples(tar: memoryview) -> Iterator[tuple[str, dict[str, Span]]]:
    """Yields key and members (suffix to place) of each sample of a tar, in order.

    Raises:
        ShardCorruptError: Anything in the tar is not what the writer writes.
    """
    seen: set[str] = set()
    for key, members in groupby(_walk_members(tar), key=lambda member: member[0]):
        if key in seen:
            raise ShardCorruptError(f"key {key} occurs twice or its members are not together")
        seen.add(key)
        suffixes, spans = zip(*((suffix, span) for _, suffix, span in members), strict=True)
        _check_members(key, suffixes, spans)
        yield key, dict(zip(suffixes, spans, strict=True))


def _check_members(key: str, suffixes: tuple[str, ...], spans: tuple[Span, ...]) -> None:
    expected = ("json", *(suffix for suffix in SUFFIXES[1:] if suffix in suffixes))
    if suffixes != expected:
        raise ShardCorruptError(f"{key}: members {list(suffixes)} instead of {list(expected)}")
    if spans[0].size > MAX_JSON_BYTES or sum(span.size for span in spans) > MAX_SAMPLE_BYTES:
        raise ShardCorruptError(f"{key}: more bytes than a sample may have")


def _walk_members(tar: memoryview) -> Iterator[tuple[str, str, Span]]:
    end = len(tar) - len(END_OF_TAR)
    if end < 0 or tar[end:] != END_OF_TAR:
        raise ShardCorruptError("the end of the tar is missing")
    position = 0
    while position < end:
        key, suffix, size = _parse_header(bytes(tar[position : position + BLOCK_BYTES]), position)
        span = Span(position + BLOCK_BYTES, size)
        stop = span.offset + size
        position = stop + padding_of(size)
        if position > end or tar[stop:position] != bytes(position - stop):
            raise ShardCorruptError(f"{key}.{suffix} at byte {span.offset} is cut or badly padded")
        yield key, suffix, span


def _parse_header(header: bytes, position: int) -> tuple[str, str, int]:
    name = _MEMBER_NAME.fullmatch(header[:100].rstrip(b"\0"))
    size = _MEMBER_SIZE.fullmatch(header[124:136])
    if name and size and header == tar_header(name[0].decode(), num_bytes := int(size[1], 8)):
        if num_bytes > MAX_MEMBER_BYTES:
            raise ShardCorruptError(f"{name[0].decode()}: more than {MAX_MEMBER_BYTES} bytes")
        return name[1].decode(), name[2].decode(), num_bytes
    raise ShardCorruptError(f"byte {position}: not a tar header that dmlm writes")
