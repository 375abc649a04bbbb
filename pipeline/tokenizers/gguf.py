"""The text tokenizer inside a GGUF file: byte-level BPE with the splitting rule that the file names.

transformers' own reader takes GPT-2's splitting rule for all of them, which gives other ids, for instance
where white space stands before a digit.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from dmlm.pipeline.converters.gguf import GgufFile, open_gguf
from dmlm.pipeline.errors import ConfigError, CorruptInputError

_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5
"""Kinds of tokens, as llama.cpp numbers them."""

_LETTER_RULE: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{DIGITS}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_RULE: Final = _LETTER_RULE.replace("{DIGITS}", "{1,3}")
QWEN2_RULE: Final = _LETTER_RULE.replace("{DIGITS}", "")


def read_gguf_tokenizer(path: Path) -> Any:
    """Tokenizer of a GGUF file, as transformers' PreTrainedTokenizerFast, without a sequence template.

    Raises:
        ConfigError: It is of a kind that cannot be read exactly.
        CorruptInputError: The file is damaged.
    """
    from transformers import PreTrainedTokenizerFast

    file = open_gguf(path)
    try:
        backend = _build_backend(file)
        names = _text_tokens(file.metadata)
        given = {
            "bos_token": file.metadata.get("tokenizer.ggml.bos_token_id"),
            "eos_token": file.metadata.get("tokenizer.ggml.eos_token_id"),
            "pad_token": file.metadata.get("tokenizer.ggml.padding_token_id"),
        }
        special = {role: names[index] for role, index in given.items() if index is not None}
    except (KeyError, IndexError, TypeError) as error:
        raise CorruptInputError(f"{path}: the tokenizer is incomplete: {error!r}") from error
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def _build_backend(file: GgufFile) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    kind, rule = (str(file.metadata.get(f"tokenizer.ggml.{name}")) for name in ("model", "pre"))
    if kind != "gpt2" or rule not in _SPLITTERS:
        raise ConfigError(
            f"{file.path}: its text tokenizer ({kind}, {rule}) cannot be read exactly, only gpt2 with one of "
            f"{', '.join(_SPLITTERS)}; use the model's Hugging Face folder instead"
        )
    vocabulary, merges = _read_merges(file)
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=rule == "llama-bpe"))
    if rule == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _SPLITTERS[rule]()
    backend.decoder = decoders.ByteLevel()
    kinds = file.metadata["tokenizer.ggml.token_type"]
    added = [
        AddedToken(name, normalized=False, special=kinds[index] == _CONTROL)
        for name, index in vocabulary.items()
        if kinds[index] in (_CONTROL, _USER_DEFINED)
    ]
    backend.add_tokens(added)
    return backend


def _read_merges(file: GgufFile) -> tuple[dict[str, int], list[tuple[str, str]]]:
    names = _text_tokens(file.metadata)
    vocabulary = {name: index for index, name in enumerate(names)}
    merges = []
    for merge in file.metadata["tokenizer.ggml.merges"]:
        left, _, right = merge.partition(" ")
        merges.append((left, right))
        if not {left, right, left + right} <= vocabulary.keys():
            raise CorruptInputError(f"{file.path}: the text tokenizer merges {merge!r}, no tokens of its own")
    if len(vocabulary) < len(names):
        raise CorruptInputError(f"{file.path}: a token of the text tokenizer occurs twice")
    return vocabulary, merges


def _text_tokens(metadata: Mapping[str, Any]) -> list[str]:
    """Names of all tokens but the unused ones at the end, which only fill the embedding."""
    names, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"].tolist()
    num_tokens = len(names)
    while num_tokens and kinds[num_tokens - 1] == _UNUSED:
        num_tokens -= 1
    return list(names[:num_tokens])


def _split_as_gpt2() -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _split_as_smollm() -> Any:
    """Digits one by one, the rest as GPT-2."""
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _split_as_gpt2()])


def _split_by(pattern: str) -> Callable[[], Any]:
    def build() -> Any:
        from tokenizers import Regex, pre_tokenizers

        split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([split, as_bytes])

    return build


_SPLITTERS: Final[Mapping[str, Callable[[], Any]]] = {
    "gpt-2": _split_as_gpt2,
    "smollm": _split_as_smollm,
    "llama-bpe": _split_by(LLAMA3_RULE),
    "qwen2": _split_by(QWEN2_RULE),
}
"""By llama.cpp's name of the rule."""
