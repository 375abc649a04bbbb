"""`tokenize --reuse`: the bytes of a run without it, and nothing encoded that was encoded before."""

import logging
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dmlm.pipeline.codebooks.building import BuildCodebookConfig, build_codebook
from dmlm.pipeline.encoders.whisper import WhisperEncoder
from dmlm.pipeline.errors import ConfigError, DmlmError, FingerprintMismatchError, ShardCorruptError
from dmlm.pipeline.shards import verify_dataset
from dmlm.pipeline.tokenization.planning import TokenizeConfig
from dmlm.pipeline.tokenization.running import tokenize
from dmlm.pipeline.tokenizers.patch import PatchTokenizer
from dmlm.pipeline.tokenizers.registry import read_card, write_card

RUN_KILLED_IN_SHARD_1 = """
import os, signal, sys
from pathlib import Path
from dmlm.pipeline.tokenization.item_encoding import ItemEncoder
from dmlm.pipeline.tokenization.planning import TokenizeConfig
from dmlm.pipeline.tokenization.running import tokenize

encode = ItemEncoder.encode

def deadly(self, task, *arguments):
    if task.name.endswith("000001"):
        os.kill(os.getpid(), signal.SIGKILL)
    return encode(self, task, *arguments)

ItemEncoder.encode = deadly
root, codebook_dir, out_dir, reuse_dir = map(Path, sys.argv[1:])
tokenize(
    TokenizeConfig(
        source="librispeech",
        root=root,
        codebook_dir=codebook_dir,
        out_dir=out_dir,
        reuse_dir=reuse_dir,
        samples_per_shard=3,
    )
)
"""


class EncoderUsedError(Exception):
    """The test's own: the tokenizer that must rest was called."""


@pytest.fixture(scope="module")
def changed_codebook(tiny_corpora: Path) -> Path:
    """Other clusters and other text; the encoder, its layer and the image size are the same."""
    directory = tiny_corpora / "changed"
    build_codebook(
        BuildCodebookConfig(
            root=tiny_corpora,
            out_dir=directory,
            num_clusters=8,
            num_image_clusters=8,
            image_resolution=32,
            text_tokenizer="bpe:262",
        )
    )
    return directory


@pytest.fixture
def resting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No speech and no image is encoded."""

    def refuse(*arguments: object) -> None:
        raise EncoderUsedError

    with monkeypatch.context() as patch:
        patch.setattr(WhisperEncoder, "_encode_batch", refuse)
        patch.setattr(PatchTokenizer, "encode", refuse)
        yield


def mixed_codebook(corpora: Path, changed: Path, changed_part: str, directory: Path) -> Path:
    """The codebook of the corpora, with one part of the changed one."""
    shutil.copytree(corpora / "codebook", directory)
    shutil.rmtree(directory / changed_part)
    shutil.copytree(changed / changed_part, directory / changed_part)
    card = read_card(corpora / "codebook")
    (directory / "codebook.json").unlink()
    write_card(directory, card["settings"])
    return directory


@pytest.mark.parametrize("source", ["librispeech", "coco"])
def test_other_text_tokenizer_costs_no_encoding_and_gives_the_same_bytes(
    settings: Callable[..., TokenizeConfig],
    content: Callable[[Path], dict[str, bytes]],
    source: str,
    tiny_corpora: Path,
    changed_codebook: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    first = settings(tiny_corpora, tmp_path / "first", source)
    tokenize(first)
    codebook = mixed_codebook(tiny_corpora, changed_codebook, "text", tmp_path / "codebook")
    changed = replace(first, codebook_dir=codebook, out_dir=tmp_path / "plain")
    tokenize(changed)
    request.getfixturevalue("resting")
    with pytest.raises(EncoderUsedError):
        tokenize(replace(changed, out_dir=tmp_path / "encoded"))
    tokenize(replace(changed, out_dir=tmp_path / "reused", reuse_dir=tmp_path / "first"))
    assert content(tmp_path / "reused") == content(tmp_path / "plain")
    assert content(tmp_path / "reused") != content(tmp_path / "first")
    verify_dataset(tmp_path / "reused")


def test_broken_and_unwritable_items_give_the_same_bytes(
    settings: Callable[..., TokenizeConfig],
    content: Callable[[Path], dict[str, bytes]],
    root: Path,
    changed_codebook: Path,
    tmp_path: Path,
) -> None:
    chapter = root / "LibriSpeech" / "train-tiny" / "7" / "9"
    (chapter / "7-9-0001.flac").write_bytes(b"fLaC")
    transcripts = chapter / "7-9.trans.txt"
    lines = transcripts.read_text().splitlines()
    lines[4] += " " + "LONG " * 300_000  # too much text for a sample, so that its units are not kept
    transcripts.write_text("\n".join(lines) + "\n")
    first = settings(root, tmp_path / "first")
    assert tokenize(first).num_quarantined == 2
    changed = replace(first, codebook_dir=mixed_codebook(root, changed_codebook, "text", tmp_path / "book"))
    tokenize(replace(changed, out_dir=tmp_path / "plain"))
    tokenize(replace(changed, out_dir=tmp_path / "reused", reuse_dir=tmp_path / "first"))
    assert content(tmp_path / "reused") == content(tmp_path / "plain")


def test_broken_image_stays_broken_without_being_opened(
    settings: Callable[..., TokenizeConfig],
    content: Callable[[Path], dict[str, bytes]],
    root: Path,
    changed_codebook: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    (root / "coco" / "train2017" / "000000000002.jpg").write_bytes(b"\xff\xd8")
    first = settings(root, tmp_path / "first", "coco")
    assert tokenize(first).num_quarantined == 3
    changed = replace(first, codebook_dir=mixed_codebook(root, changed_codebook, "text", tmp_path / "book"))
    tokenize(replace(changed, out_dir=tmp_path / "plain"))
    request.getfixturevalue("resting")
    tokenize(replace(changed, out_dir=tmp_path / "reused", reuse_dir=tmp_path / "first"))
    assert content(tmp_path / "reused") == content(tmp_path / "plain")


def test_other_speech_codebook_is_encoded_and_said_so(
    settings: Callable[..., TokenizeConfig],
    content: Callable[[Path], dict[str, bytes]],
    tiny_corpora: Path,
    tiny_dataset: Path,
    changed_codebook: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    codebook = mixed_codebook(tiny_corpora, changed_codebook, "speech", tmp_path / "codebook")
    config = settings(tiny_corpora, tmp_path / "plain", codebook_dir=codebook)
    tokenize(config)
    with caplog.at_level(logging.WARNING):
        tokenize(replace(config, out_dir=tmp_path / "reused", reuse_dir=tiny_dataset))
    assert "taking over nothing" in caplog.text
    assert content(tmp_path / "reused") == content(tmp_path / "plain")


def test_killed_run_goes_on_and_ends_with_the_same_bytes(
    settings: Callable[..., TokenizeConfig],
    content: Callable[[Path], dict[str, bytes]],
    tiny_corpora: Path,
    tiny_dataset: Path,
    changed_codebook: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    codebook = mixed_codebook(tiny_corpora, changed_codebook, "text", tmp_path / "codebook")
    config = settings(tiny_corpora, tmp_path / "plain", codebook_dir=codebook)
    tokenize(config)
    out_dir = tmp_path / "reused"
    folders = [str(path) for path in (tiny_corpora, codebook, out_dir, tiny_dataset)]
    killed = subprocess.run([sys.executable, "-c", RUN_KILLED_IN_SHARD_1, *folders], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in out_dir.glob("*.tar")] == ["librispeech-000000.tar"]
    request.getfixturevalue("resting")
    tokenize(replace(config, out_dir=out_dir, reuse_dir=tiny_dataset))
    assert content(out_dir) == content(tmp_path / "plain")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "coco"}, "source is librispeech there, coco now"),
        ({"limit": 2}, "limit is None there, 2 now"),
        ({"samples_per_shard": 4}, "samples_per_shard is 3 there, 4 now"),
    ],
)
def test_data_set_of_other_settings_is_refused(
    settings: Callable[..., TokenizeConfig],
    changes: dict[str, object],
    message: str,
    tiny_corpora: Path,
    tiny_dataset: Path,
    tmp_path: Path,
) -> None:
    config = settings(tiny_corpora, tmp_path / "out", reuse_dir=tiny_dataset, **changes)
    with pytest.raises(FingerprintMismatchError, match=message):
        tokenize(config)
    assert not (tmp_path / "out").exists()


def test_data_set_of_another_root_is_refused(
    settings: Callable[..., TokenizeConfig], root: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    (root / "LibriSpeech" / "train-tiny" / "7" / "9" / "7-9-0003.flac").write_bytes(b"another recording")
    with pytest.raises(FingerprintMismatchError, match="other items or files than --root holds"):
        tokenize(settings(root, tmp_path / "out", reuse_dir=tiny_dataset))
    assert not (tmp_path / "out").exists()


def test_unfinished_or_missing_data_set_is_refused(
    settings: Callable[..., TokenizeConfig], tiny_corpora: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    config = settings(tiny_corpora, tmp_path / "out")

    def refused(kind: type[DmlmError], message: str, **changes: object) -> None:
        with pytest.raises(kind, match=message):
            tokenize(replace(config, **changes))
        assert not (tmp_path / "out").exists()

    unfinished = shutil.copytree(tiny_dataset, tmp_path / "unfinished")
    (unfinished / "dataset.json").unlink()
    refused(ShardCorruptError, "not a finished data set", reuse_dir=unfinished)
    refused(ConfigError, "no such folder", reuse_dir=tmp_path / "none")
    refused(ConfigError, "is --out itself", reuse_dir=tmp_path / "out")


def test_damaged_shard_ends_the_run_instead_of_being_copied(
    settings: Callable[..., TokenizeConfig],
    tiny_corpora: Path,
    tiny_dataset: Path,
    changed_codebook: Path,
    tmp_path: Path,
) -> None:
    damaged = shutil.copytree(tiny_dataset, tmp_path / "damaged")
    tar = damaged / "librispeech-000001.tar"
    flipped = bytearray(tar.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    tar.write_bytes(flipped)
    codebook = mixed_codebook(tiny_corpora, changed_codebook, "text", tmp_path / "codebook")
    config = settings(tiny_corpora, tmp_path / "out", codebook_dir=codebook, reuse_dir=damaged)
    with pytest.raises(ShardCorruptError, match="librispeech-000001 is missing or damaged"):
        tokenize(config)
    assert not (tmp_path / "out" / "dataset.json").exists()
