"""The text tokenizer of a GGUF file gives the ids of the Hugging Face tokenizer that it was made of."""

import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmlm.pipeline.errors import ConfigError, CorruptInputError
from dmlm.pipeline.tokenizers.gguf import read_gguf_tokenizer
from dmlm.pipeline.tokenizers.text import HuggingFaceTextTokenizer, load_text_tokenizer, train_bpe

gguf = pytest.importorskip(
    "gguf", reason='GGUF files are written by the package gguf: pip install "dmlm[gguf]"'
)

TEXTS = (
    "the cat sat on the mat, didn't it?",
    "  two   spaces\n\n5 times 12345 IS 2² ½ é",
    "日本語 ñ ́x\t1 a\r\n b",
)
NORMAL, CONTROL, UNUSED = 1, 3, 5
LETTERS = " \n\t'aésZ15²½.,!日\r"
QWEN2_RULE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
LLAMA3_RULE = QWEN2_RULE.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
GPT2_RULE = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What a name in `tokenizer.ggml.pre` stands for (llama.cpp, src/llama-vocab.cpp)."""


@pytest.fixture(scope="module")
def original() -> HuggingFaceTextTokenizer:
    return train_bpe(TEXTS * 3, 300)


Write = Callable[..., Path]


@pytest.fixture
def write(original: HuggingFaceTextTokenizer, tmp_path: Path) -> Write:
    """Writes the tokenizer as a GGUF file does, with two spare entries at the end."""
    content = json.loads(original._backend.to_str())
    by_id = {index: name for name, index in content["model"]["vocab"].items()}

    def write(rule: str = "gpt-2", merges: Sequence[str] | None = None, model: str = "gpt2") -> Path:
        path = tmp_path / "tiny.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_tokenizer_model(model)
        writer.add_tokenizer_pre(rule)
        writer.add_token_list([*(by_id[i] for i in range(len(by_id))), "[PAD1]", "[PAD2]"])
        writer.add_token_types([CONTROL, CONTROL, *[NORMAL] * (len(by_id) - 2), UNUSED, UNUSED])
        pairs = [" ".join(pair) for pair in content["model"]["merges"]]
        writer.add_token_merges(pairs if merges is None else list(merges))
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(0)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def test_ids_are_those_of_the_original(original: HuggingFaceTextTokenizer, write: Write) -> None:
    ours = HuggingFaceTextTokenizer(read_gguf_tokenizer(write()))
    assert (ours.num_tokens, ours.bos_id, ours.eos_id) == (original.num_tokens, 0, 0)
    for text in TEXTS:
        assert ours.encode(text).tolist() == original.encode(text).tolist()
        assert ours.decode(ours.encode(text)) == text


def test_a_file_and_what_is_saved_of_it_open_as_the_same_tokenizer(write: Write, tmp_path: Path) -> None:
    ours = load_text_tokenizer(str(write("smollm")))
    ours.save(tmp_path / "text")
    assert load_text_tokenizer(tmp_path / "text").fingerprint == ours.fingerprint


@pytest.mark.parametrize(
    ("rule", "patterns"),
    [
        ("gpt-2", (GPT2_RULE,)),
        ("smollm", (r"\p{N}", GPT2_RULE)),
        ("llama-bpe", (LLAMA3_RULE,)),
        ("qwen2", (QWEN2_RULE,)),
    ],
)
def test_text_is_split_by_the_rule_that_the_file_names(
    rule: str, patterns: tuple[str, ...], write: Write
) -> None:
    regex = importlib.import_module("regex")
    tokenizer = read_gguf_tokenizer(write(rule)).backend_tokenizer

    def split(text: str) -> list[str]:
        pieces = [text]
        for pattern in patterns:  # one after the other, each keeping what lies between its matches
            pieces = [part for piece in pieces for part in regex.split(f"({pattern})", piece) if part]
        return pieces

    @given(st.text(LETTERS, max_size=30))
    def check(text: str) -> None:
        found = [text[start:stop] for _, (start, stop) in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
        assert found == split(text)

    check()


def test_white_space_before_a_digit_is_where_the_rules_differ(write: Write) -> None:
    splits = {
        rule: [
            piece
            for piece, _ in read_gguf_tokenizer(write(rule)).backend_tokenizer.pre_tokenizer.pre_tokenize_str(
                "a  5"
            )
        ]
        for rule in ("gpt-2", "smollm")
    }
    assert splits == {"gpt-2": ["a", "Ġ", "Ġ5"], "smollm": ["a", "ĠĠ", "5"]}


@pytest.mark.parametrize(("rule", "model"), [("tekken", "gpt2"), ("default", "llama")])
def test_a_rule_that_is_not_known_is_refused_by_name(rule: str, model: str, write: Write) -> None:
    with pytest.raises(ConfigError, match=rf"\({model}, {rule}\) cannot be read exactly"):
        read_gguf_tokenizer(write(rule, model=model))


def test_a_merge_of_unknown_tokens_is_refused(write: Write) -> None:
    with pytest.raises(CorruptInputError, match="merges 'q zz'"):
        read_gguf_tokenizer(write(merges=["q zz"]))


def test_a_file_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bare.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ConfigError, match="cannot be read exactly"):
        read_gguf_tokenizer(path)
