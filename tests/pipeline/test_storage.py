"""Files are whole or absent."""

import errno
from pathlib import Path

import pytest

from dmlm.pipeline.storage import (
    as_os_errors,
    atomic_writer,
    check_writable,
    encode_json,
    is_vacant,
    publish_folder,
    remove_left_over,
    scratch_for,
    sha256_json,
    user_cache_dir,
    write_bytes,
)


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


def test_only_what_nobody_writes_any_more_is_left_over(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    with atomic_writer(path) as file:
        file.write(b"new")
        remove_left_over(Path(file.name))
    assert path.read_bytes() == b"new"
    left_over = tmp_path / "card.json.tmp"
    left_over.touch()
    for _ in range(2):  # the second finds nothing
        remove_left_over(left_over)
    assert [p.name for p in tmp_path.iterdir()] == ["card.json"]


def test_an_empty_variable_is_no_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert user_cache_dir() == Path.home() / ".cache"


def test_a_path_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        check_writable(tmp_path)
    with pytest.raises(NotADirectoryError, match="file"):
        check_writable(tmp_path / "file" / "new" / "out.json")
    check_writable(tmp_path / "file")
    check_writable(tmp_path / "new" / "out.json")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def write_folder(out_dir: Path) -> None:
    with scratch_for(out_dir) as scratch:
        (scratch / "text").mkdir()
        for name in ("card.json", "text/tokens.json"):
            (scratch / name).touch()
        publish_folder(scratch, out_dir, last="card.json")


def test_a_folder_that_is_there_is_filled_and_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, link, new = tmp_path / "there", tmp_path / "link", tmp_path / "new"
    there.mkdir()
    inode = there.stat().st_ino
    link.symlink_to("linked")
    write_folder(there)
    write_folder(link)
    write_folder(new)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write_folder(Path())
    assert there.stat().st_ino == inode  # a mount point cannot be replaced
    assert link.is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"there", "link", "linked", "new", "here"}
    for name in ("there", "linked", "new", "here"):
        assert {path.name for path in (tmp_path / name).iterdir()} == {"card.json", "text"}


def test_a_folder_that_is_there_is_whole_only_when_everything_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replace_all_but_the_card(source: Path, target: Path) -> None:
        if source.name == "card.json":
            raise KeyboardInterrupt
        source.rename(target)

    monkeypatch.setattr("os.replace", replace_all_but_the_card)
    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["text"]
    assert not is_vacant(tmp_path)


def test_what_another_process_put_there_meanwhile_stays_as_it_is(tmp_path: Path) -> None:
    with scratch_for(tmp_path, is_shared=True) as scratch:
        assert is_vacant(tmp_path)  # as another process sees it, and after a kill
        (scratch / "mine").touch()
        (tmp_path / "theirs").touch()
        with pytest.raises(OSError, match="not empty"):
            publish_folder(scratch, tmp_path, last="mine")
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


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
