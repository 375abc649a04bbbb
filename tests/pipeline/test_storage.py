"""Files are whole or absent."""

import errno
from pathlib import Path

import pytest

from dmlm.pipeline.storage import as_os_errors, atomic_writer, encode_json, sha256_json, write_bytes


def test_an_error_while_writing_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    write_bytes(path, b"old")

    def write_half() -> None:
        with atomic_writer(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["card.json"]


@pytest.mark.parametrize(
    "message",
    [
        "No space left on device (os error 28)",
        'Error while serializing: IoError(Os { code: 28, kind: StorageFull, message: "No space left" })',
    ],
)
def test_full_disk_that_is_only_told_in_words_is_an_os_error(message: str) -> None:
    with pytest.raises(OSError, match="No space left on device: 'x'") as raised, as_os_errors(Path("x")):
        raise RuntimeError(message)
    assert raised.value.errno == errno.ENOSPC
    assert str(raised.value.__cause__) == message


@pytest.mark.parametrize("error", [ValueError("28 tokens"), OSError(errno.EIO, "odd"), KeyboardInterrupt()])
def test_any_other_error_stays_what_it_is(error: BaseException) -> None:
    with pytest.raises(type(error)) as raised, as_os_errors(Path("x")):
        raise error
    assert raised.value is error


def test_json_hash_does_not_depend_on_key_order() -> None:
    assert sha256_json({"a": 1, "b": [2]}) == sha256_json({"b": [2], "a": 1})
    assert sha256_json({"a": 1}) != sha256_json({"a": 2})


def test_json_refuses_nan() -> None:
    with pytest.raises(ValueError, match="JSON"):
        encode_json({"loss": float("nan")})
