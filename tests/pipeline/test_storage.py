"""Files are whole or absent."""

from pathlib import Path

import pytest

from dmlm.pipeline.storage import atomic_writer, encode_json, sha256_json, write_bytes


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


def test_json_hash_does_not_depend_on_key_order() -> None:
    assert sha256_json({"a": 1, "b": [2]}) == sha256_json({"b": [2], "a": 1})
    assert sha256_json({"a": 1}) != sha256_json({"a": 2})


def test_json_refuses_nan() -> None:
    with pytest.raises(ValueError, match="JSON"):
        encode_json({"loss": float("nan")})
