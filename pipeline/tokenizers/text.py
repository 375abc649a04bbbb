"""Text tokens: any Hugging Face tokenizer, or a byte-level BPE trained here.

A BPE of N entries has ids 0 `</s>` (begins and ends a sequence, as OPT's does), 1 `<pad>`, then the
256 bytes and N - 256 merges. Merges stay within words, so any string survives encode and decode.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np

from dmlm.pipeline.converters.gguf import SUFFIX as GGUF
from dmlm.pipeline.errors import AnnotationError, ConfigError
from dmlm.pipeline.samples import TokenArray
from dmlm.pipeline.storage import as_os_errors, sha256_json, write_bytes
from dmlm.pipeline.tokenizers import Fingerprint
from dmlm.pipeline.tokenizers.gguf import read_gguf_tokenizer

BPE = "bpe:"
"""Name of a BPE that is trained here, as in `bpe:400`."""
NUM_BYTES = 256
END, PAD = "</s>", "<pad>"
MIN_PAIR_COUNT = 2
"""A pair of tokens seen once is no reason for a merge."""

_NOT_IN_IDS = ("version", "truncation", "padding", "post_processor")
"""Parts of `tokenizer.json` that ids without special tokens do not depend on."""


class HuggingFaceTextTokenizer:
    """A Hugging Face tokenizer without its sequence templates; a TextTokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        """Takes a transformers tokenizer that is backed by the `tokenizers` library.

        Raises:
            ConfigError: It is not, or it has no end token.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ConfigError(f"{tokenizer.name_or_path}: not a fast tokenizer (no tokenizer.json)")
        if tokenizer.eos_token_id is None:
            raise ConfigError(f"{tokenizer.name_or_path}: this tokenizer has no end token")
        backend.no_truncation()
        backend.no_padding()
        # Text that spells out a special token is still text.
        backend.encode_special_tokens = True
        self._tokenizer, self._backend = tokenizer, backend
        self._num_tokens = len(tokenizer)

    @property
    def num_tokens(self) -> int:
        """Entries, special tokens included."""
        return self._num_tokens

    @property
    def bos_id(self) -> int:
        """Token that starts a sequence; the end token where there is none of its own."""
        begin = self._tokenizer.bos_token_id
        return int(self.eos_id if begin is None else begin)

    @property
    def eos_id(self) -> int:
        """Token that ends a sequence."""
        return int(self._tokenizer.eos_token_id)

    @property
    def fingerprint(self) -> Fingerprint:
        """sha256 of vocabulary, merges and rules, whatever files they came from."""
        content = json.loads(self._backend.to_str())
        rules = {name: part for name, part in content.items() if name not in _NOT_IN_IDS}
        return {
            "text_tokenizer_sha256": sha256_json(rules),
            "num_tokens": self.num_tokens,
            "bos_id": self.bos_id,
            "eos_id": self.eos_id,
        }

    def encode(self, text: str) -> TokenArray:
        """Ids of `text`, without BOS or EOS.

        Raises:
            AnnotationError: The text is not valid Unicode.
        """
        check_unicode(text)
        return np.array(self._backend.encode(text, add_special_tokens=False).ids, np.int32)

    def decode(self, tokens: TokenArray) -> str:
        """Text of the ids; special tokens are left out."""
        return str(self._backend.decode(tokens.tolist(), skip_special_tokens=True))

    def save(self, directory: Path) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json`, which transformers' AutoTokenizer reads."""
        with TemporaryDirectory() as scratch, as_os_errors(Path(scratch)):
            self._tokenizer.save_pretrained(scratch)
            # What is in a folder of its own are further chat templates, on which no id depends.
            for path in sorted(path for path in Path(scratch).iterdir() if path.is_file()):
                write_bytes(directory / path.name, path.read_bytes())

    @classmethod
    def from_backend(cls, backend: Any) -> Self:
        """Wraps a tokenizer of the `tokenizers` library that has `</s>` and `<pad>`."""
        from transformers import PreTrainedTokenizerFast

        return cls(
            PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=END, eos_token=END, pad_token=PAD)
        )


def load_text_tokenizer(name: str | Path) -> HuggingFaceTextTokenizer:
    """Tokenizer of a folder, of a GGUF file or of a Hugging Face name such as `facebook/opt-125m`.

    Raises:
        ConfigError: It cannot be found or read.
        CorruptInputError: The GGUF file is damaged.
    """
    from transformers import AutoTokenizer

    if str(name).endswith(GGUF):
        return HuggingFaceTextTokenizer(read_gguf_tokenizer(Path(name)))
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(name), trust_remote_code=False)
    except Exception as error:  # the package tokenizers raises nothing narrower
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"text tokenizer {name}: no readable folder, and no Hugging Face name that can be had ({reason})"
        ) from error
    return HuggingFaceTextTokenizer(tokenizer)


def train_bpe(texts: Iterable[str], num_entries: int) -> HuggingFaceTextTokenizer:
    """Byte-level BPE of 256 bytes and up to `num_entries` - 256 merges; two special tokens come on top.

    Raises:
        ConfigError: Fewer than 256 entries.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if num_entries < NUM_BYTES:
        raise ConfigError(f"bpe:{num_entries}: a byte-level BPE has at least {NUM_BYTES} entries")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special_tokens = [END, PAD]
    trainer = trainers.BpeTrainer(
        vocab_size=num_entries + len(special_tokens),
        min_frequency=MIN_PAIR_COUNT,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return HuggingFaceTextTokenizer.from_backend(tokenizer)


def check_unicode(text: str) -> None:
    """Raises AnnotationError when `text` holds lone surrogates, which UTF-8 cannot hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise AnnotationError(f"text is not valid Unicode: {error.reason} at {error.start}") from error
