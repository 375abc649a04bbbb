"""DALL-E's tokens through the commands, with a narrow dVAE of random weights and all 8,192 codes."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dmlm.cli import run
from dmlm.pipeline.encoders.dvae import Encoder
from dmlm.pipeline.shards import load_dataset_card
from dmlm.pipeline.tokenizers.registry import load_tokenizers


@pytest.fixture
def dalle(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    (tmp_path / "dalle").mkdir()
    save_file(Encoder(8, 8192).state_dict(), tmp_path / "dalle" / "encoder.safetensors")
    return tmp_path / "dalle"


def tokenize_coco(root: Path, out_dir: Path, *options: str) -> int:
    arguments = ["--source", "coco", "--root", str(root), "--out", str(out_dir), "--device", "cpu"]
    return run(["tokenize", *arguments, *options])


def test_images_need_no_codebook(tiny_corpora: Path, dalle: Path, tmp_path: Path) -> None:
    options = ["--image-tokenizer", f"dalle:{dalle}", "--image-resolution", "112"]
    assert tokenize_coco(tiny_corpora, tmp_path / "out", *options, "--text-tokenizer", "bpe:256") == 0
    card = load_dataset_card(tmp_path / "out")
    assert card.vocabulary.num_image == 8192
    assert card.totals.num_tokens.image == card.totals.num_out * (112 // 8) ** 2
    assert "image tokens made with DALL-E weights" in card.licence
    tokenizers = load_tokenizers(tmp_path / "out" / "codebook", "cpu")
    assert tokenizers.speech is None
    assert tokenizers.image is not None
    assert tokenizers.image.fingerprint.items() <= card.fingerprints["image"].items()


def test_codebook_that_names_dalle_gives_the_same_tokens(
    tiny_corpora: Path, dalle: Path, tmp_path: Path
) -> None:
    named = ["--image-tokenizer", f"dalle:{dalle}", "--image-resolution", "112"]
    common = ["--root", str(tiny_corpora), "--out", str(tmp_path / "codebook"), "--device", "cpu"]
    build = ["build-codebook", "--source", "coco", "--text-tokenizer", "bpe:256", *common]
    assert run([*build, *named]) == 0
    assert tokenize_coco(tiny_corpora, tmp_path / "a", "--codebook", str(tmp_path / "codebook")) == 0
    assert tokenize_coco(tiny_corpora, tmp_path / "b", *named, "--text-tokenizer", "bpe:256") == 0
    a, b = (load_dataset_card(tmp_path / name) for name in "ab")
    assert a.fingerprints == b.fingerprints
    assert [shard.tar_sha256 for shard in a.shards] == [shard.tar_sha256 for shard in b.shards]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image-resolution", "64"], "256, 128 or 112"),
        (["--speech-tokenizer", "seamless"], "seamless"),
        (["--unit-backend", "fairseq2"], "--unit-backend: coco has nothing to encode"),
    ],
)
def test_options_that_cannot_be_honoured_leave_nothing_behind(
    options: list[str],
    message: str,
    tiny_corpora: Path,
    dalle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    named = ["--image-tokenizer", f"dalle:{dalle}", "--text-tokenizer", "bpe:256"]
    assert tokenize_coco(tiny_corpora, tmp_path / "out", *named, *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_dry_run_writes_nothing(
    tiny_corpora: Path, dalle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--image-tokenizer", f"dalle:{dalle}", "--text-tokenizer", "bpe:256", "--dry-run"]
    assert tokenize_coco(tiny_corpora, tmp_path / "out", *options) == 0
    assert f"{12 * 256} image tokens" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dry-run"], "--dry-run builds nothing, and codebook is not there; run `dmlm-cli build-codebook`"),
        (["--task-index", "0", "--num-tasks", "2"], "every task would build a codebook of its own"),
    ],
)
def test_dry_runs_and_tasks_of_a_job_array_build_no_codebook(
    tiny_corpora: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert tokenize_coco(tiny_corpora, tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_codebook_is_built_where_root_is_the_corpus_folder_itself(
    tiny_corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert tokenize_coco(tiny_corpora / "coco", tmp_path / "out") == 0
    assert "building it first, from coco" in capsys.readouterr().err
    assert load_dataset_card(tmp_path / "out").totals.num_out == 12
