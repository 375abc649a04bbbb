import errno
import json
import re
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from dmlm.pipeline.errors import AnnotationError, ConfigError
from dmlm.pipeline.tokenizers.text import HuggingFaceTextTokenizer, load_text_tokenizer, train_bpe

TEXTS = [
    "the cat sat on the mat",
    "the dog sat on the cat's mat, didn't it?",
    "nel mezzo del cammin di nostra vita",
    "what is seven plus twenty-two",
    "perché no? è già così",
] * 3
UNICODE = st.text(st.characters(exclude_categories=["Cs"]))


@cache
def trained_bpe() -> HuggingFaceTextTokenizer:
    return train_bpe(TEXTS, 300)


@pytest.fixture(scope="module")
def bpe() -> HuggingFaceTextTokenizer:
    return trained_bpe()


@pytest.fixture(scope="module")
def saved(bpe: HuggingFaceTextTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bpe")
    bpe.save(folder)
    return folder


@pytest.fixture(scope="module")
def opt_like(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files as OPT ships them: GPT-2's vocab.json and merges.txt, `</s>` (id 2) at both ends."""
    folder = tmp_path_factory.mktemp("opt")
    model = json.loads((saved / "tokenizer.json").read_text())["model"]
    words = [word for word in model["vocab"] if word not in ("</s>", "<pad>")]
    vocab = {word: index for index, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", *words])}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    config = {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "pad_token": "<pad>"}
    config |= {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@given(UNICODE)
def test_any_text_survives_encode_and_decode(text: str) -> None:
    tokenizer = trained_bpe()
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert tokens.dtype == np.int32
    assert all(2 <= token < tokenizer.num_tokens for token in tokens)


def test_special_tokens_spelt_out_are_text(bpe: HuggingFaceTextTokenizer) -> None:
    text = "a </s> b <pad>"
    tokens = bpe.encode(text)
    assert not {bpe.eos_id, 1} & set(tokens.tolist())
    assert bpe.decode(tokens) == text


def test_special_tokens_are_left_out_when_decoding(bpe: HuggingFaceTextTokenizer) -> None:
    tokens = np.array([bpe.bos_id, *bpe.encode("the cat"), bpe.eos_id, 1], np.int32)
    assert bpe.decode(tokens) == "the cat"


def test_entries_are_bytes_and_merges_with_two_special_tokens_on_top() -> None:
    only_bytes = train_bpe(TEXTS, 256)
    assert only_bytes.num_tokens == 258
    assert len(only_bytes.encode("perché")) == len("perché".encode())
    assert train_bpe(TEXTS, 270).num_tokens == 272
    assert (only_bytes.bos_id, only_bytes.eos_id) == (0, 0)
    assert train_bpe([], 300).num_tokens == 258  # nothing to merge


def test_merges_never_cross_words(saved: Path) -> None:
    vocabulary = json.loads((saved / "tokenizer.json").read_text())["model"]["vocab"]
    assert "Ġthe" in vocabulary
    for entry in vocabulary.keys() - {"</s>", "<pad>"}:
        assert re.fullmatch(r"Ġ?[^Ġ]+|Ġ+", entry), entry


def test_training_is_deterministic(bpe: HuggingFaceTextTokenizer) -> None:
    assert train_bpe(TEXTS, 300).fingerprint == bpe.fingerprint
    assert train_bpe([*TEXTS[:-1], "zebra zebra zebra"], 300).fingerprint != bpe.fingerprint


def test_fewer_entries_than_bytes_are_refused() -> None:
    with pytest.raises(ConfigError, match="256"):
        train_bpe(TEXTS, 255)


def test_saved_folder_loads_with_transformers_and_gives_the_same_ids(
    bpe: HuggingFaceTextTokenizer, saved: Path
) -> None:
    assert sorted(path.name for path in saved.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    stock = AutoTokenizer.from_pretrained(saved)
    assert (len(stock), stock.bos_token_id, stock.eos_token_id, stock.pad_token_id) == (
        bpe.num_tokens,
        0,
        0,
        1,
    )
    for text in TEXTS:
        assert stock(text, add_special_tokens=False)["input_ids"] == bpe.encode(text).tolist()
        assert stock.decode(bpe.encode(text).tolist()) == text


def test_loaded_tokenizer_has_the_same_fingerprint(
    bpe: HuggingFaceTextTokenizer, saved: Path, tmp_path: Path
) -> None:
    loaded = load_text_tokenizer(saved)
    assert loaded.fingerprint == bpe.fingerprint
    loaded.save(tmp_path)
    assert load_text_tokenizer(tmp_path).fingerprint == bpe.fingerprint


def test_tokenizer_of_several_chat_templates_is_saved_with_the_same_ids(saved: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(saved)
    tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    tokenizer.save_pretrained(tmp_path / "theirs")
    loaded = load_text_tokenizer(tmp_path / "theirs")
    loaded.save(tmp_path / "ours")
    assert load_text_tokenizer(tmp_path / "ours").fingerprint == loaded.fingerprint
    assert loaded.fingerprint == load_text_tokenizer(saved).fingerprint


def test_full_disk_is_an_os_error_though_tokenizers_has_none(
    files_up_to: Callable[[int], AbstractContextManager[None]],
    bpe: HuggingFaceTextTokenizer,
    saved: Path,
    tmp_path: Path,
) -> None:
    num_bytes = (saved / "tokenizer_config.json").stat().st_size  # tokenizer.json is larger
    with pytest.raises(OSError, match="File too large") as raised, files_up_to(num_bytes):
        bpe.save(tmp_path / "full")
    assert raised.value.errno == errno.EFBIG
    assert not (tmp_path / "full").exists()


def test_opt_files_start_and_end_with_their_id_2(opt_like: Path, tmp_path: Path) -> None:
    opt = load_text_tokenizer(opt_like)
    assert (opt.bos_id, opt.eos_id) == (2, 2)
    tokens = opt.encode("the cat sat")
    assert 2 not in tokens
    assert opt.decode(tokens) == "the cat sat"
    opt.save(tmp_path)
    again = load_text_tokenizer(tmp_path)
    assert again.fingerprint == opt.fingerprint
    assert np.array_equal(again.encode("the cat sat"), tokens)


def test_missing_or_damaged_tokenizer_is_a_config_error(saved: Path, tmp_path: Path) -> None:
    for name in (tmp_path / "none", "no-such-name"):
        with pytest.raises(ConfigError, match=r"none|no-such-name"):
            load_text_tokenizer(name)
    newer = (saved / "tokenizer.json").read_text().replace('"version": "1.0"', '"version": "9.0"')
    for name, content in (
        ("tokenizer_config.json", "{"),
        *(("tokenizer.json", content) for content in ("{}", "[]", newer)),
    ):
        damaged = shutil.copytree(saved, tmp_path / "damaged", dirs_exist_ok=True)
        (damaged / name).write_text(content)
        with pytest.raises(ConfigError, match="text tokenizer"):
            load_text_tokenizer(damaged)


def test_lone_surrogates_are_a_sample_error(bpe: HuggingFaceTextTokenizer) -> None:
    with pytest.raises(AnnotationError, match="Unicode"):
        bpe.encode("a\ud800b")
