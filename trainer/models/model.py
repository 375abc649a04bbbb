"""The language model: a plain transformers causal LM, from scratch or grown from a pretrained one."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from dmlm.pipeline.errors import ConfigError, FingerprintMismatchError
from dmlm.pipeline.storage import as_os_errors
from dmlm.pipeline.vocabulary import Vocabulary
from dmlm.trainer.config import ModelConfig
from dmlm.trainer.models.architectures import new_model
from dmlm.trainer.models.gguf import is_gguf, load_gguf_model
from dmlm.trainer.models.pretrained import (
    TESTED_MODELS,
    add_modalities,
    check_packing,
    check_text_tokenizer,
    extend_table,
    extend_vocabulary,
    read_init_config,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

VOCABULARY_NAME: Final = "vocabulary.json"


def build_model(
    config: ModelConfig, vocabulary: Vocabulary, *, text_dir: Path, max_length: int, seed: int
) -> "PreTrainedModel":
    """Model with one shared embedding for the whole vocabulary and at least `max_length` positions.

    Args:
        config: Shape, or what to start from.
        vocabulary: Of the shards.
        text_dir: Their text tokenizer.
        max_length: Longest sequence.
        seed: Of the new weights.

    Raises:
        ConfigError: `config.init` cannot be loaded or cannot be grown to the vocabulary or the length.
        FingerprintMismatchError: `config.init` has another text tokenizer, or another vocabulary; or the text
            tokenizer has a token of ours, so that no checkpoint could be saved.
    """
    _extend_tokenizer(text_dir, vocabulary)
    if config.init is None:
        return _with_token_ids(new_model(config, vocabulary.size, max_length, seed), vocabulary)
    with _as_config_errors(config.init):
        model = _load_init(config.init, read_init_config(config, max_length))
        extend_table(model, config.init, max_length)
        theirs = read_vocabulary(config.init)
        if theirs is None:
            check_text_tokenizer(config.init, text_dir)
            extend_vocabulary(model, vocabulary, seed)
        elif theirs != vocabulary:
            _check_grown(config.init, theirs, vocabulary)
            add_modalities(model, theirs, vocabulary, seed)
        check_packing(model, config.init)
    return _with_token_ids(model, vocabulary)


def load_model(name_or_path: str | Path, config: "PretrainedConfig | None" = None) -> "PreTrainedModel":
    """Causal LM from a Hugging Face name or folder, in float32 and training mode.

    Args:
        name_or_path: What to load.
        config: In place of its own.

    Raises:
        OSError, ValueError: It is not there or is no causal LM with safetensors weights.
    """
    from transformers import AutoModelForCausalLM

    with _no_progress_bars():
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            name_or_path,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
        )
    return model.train()


def save_model(model: "PreTrainedModel", directory: Path) -> None:
    """Writes the model as a Hugging Face folder, with safetensors weights."""
    with _no_progress_bars():
        model.save_pretrained(directory)


def read_vocabulary(directory: str | Path) -> Vocabulary | None:
    """Vocabulary of a checkpoint of dmlm; None of another model.

    Raises:
        CorruptInputError: It is damaged.
    """
    path = Path(directory) / VOCABULARY_NAME
    return Vocabulary.from_json(json.loads(path.read_bytes())) if path.is_file() else None


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def save_tokenizer(text_dir: Path, vocabulary: Vocabulary, directory: Path) -> None:
    """Writes the text tokenizer of `text_dir` to `directory`, with every token of the vocabulary added.

    Raises:
        FingerprintMismatchError: The ids would not be those of the vocabulary.
        OSError: The disk is full or fails.
    """
    tokenizer = _extend_tokenizer(text_dir, vocabulary)
    with as_os_errors(directory):
        tokenizer.save_pretrained(directory)


def _extend_tokenizer(text_dir: Path, vocabulary: Vocabulary) -> Any:
    from transformers import AddedToken, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(text_dir, trust_remote_code=False)
    if len(tokenizer) != vocabulary.num_text:
        raise FingerprintMismatchError(
            f"{text_dir}: {len(tokenizer)} entries, the vocabulary has {vocabulary.num_text} text tokens"
        )
    names, known = vocabulary.added_tokens(), tokenizer.get_vocab()
    # Units are no special tokens, so that decoding with `skip_special_tokens` keeps what the model said.
    tokenizer.add_tokens(
        [AddedToken(name, normalized=False, special=name in vocabulary.special_tokens) for name in names]
    )
    if tokenizer.convert_tokens_to_ids(names) != list(range(vocabulary.num_text, vocabulary.num_used)):
        taken = next((name for name in names if name in known), names[0])
        raise FingerprintMismatchError(
            f"{text_dir}: this text tokenizer has {taken} already, which is a token of dmlm; "
            "build a codebook with another --text-tokenizer"
        )
    return tokenizer


def _load_init(init: str, config: "PretrainedConfig") -> "PreTrainedModel":
    from safetensors import SafetensorError

    if is_gguf(init):
        with _no_progress_bars():
            return load_gguf_model(Path(init), config)
    try:
        return load_model(init, config)
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(
            f"--init {init}: no readable safetensors weights: {str(error).splitlines()[0]}\n"
            f'others are converted once: python -c \'import transformers as t; a, b = "{init}", "converted"; '
            "[k.from_pretrained(a).save_pretrained(b) for k in (t.AutoTokenizer, t.AutoModelForCausalLM)]'"
        ) from error


@contextmanager
def _as_config_errors(init: str) -> Iterator[None]:
    """Names the model where transformers stumbles over one that dmlm has never met."""
    try:
        yield
    except (AttributeError, TypeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(
            f"--init {init}: such a model cannot be grown or run on packed rows ({reason}); "
            f"take {TESTED_MODELS}, or a shorter sequence.max_length"
        ) from error


def _check_grown(init: str, theirs: Vocabulary, vocabulary: Vocabulary) -> None:
    """Raises FingerprintMismatchError unless `vocabulary` is the checkpoint's, or has a modality more."""
    grown = replace(
        theirs,
        num_speech=theirs.num_speech or vocabulary.num_speech,
        num_image=theirs.num_image or vocabulary.num_image,
    )
    if grown != vocabulary:
        raise FingerprintMismatchError(
            f"--init {init}: its vocabulary is {_sizes(theirs)}, that of the shards {_sizes(vocabulary)}; "
            "use shards of the same codebook"
        )


def _sizes(vocabulary: Vocabulary) -> str:
    return f"{vocabulary.num_text} text, {vocabulary.num_speech} speech, {vocabulary.num_image} image"


def _with_token_ids(model: "PreTrainedModel", vocabulary: Vocabulary) -> "PreTrainedModel":
    for config in (model.config, model.generation_config):
        config.bos_token_id, config.eos_token_id = vocabulary.bos_id, vocabulary.eos_id
    model.generation_config.pad_token_id = vocabulary.eos_id
    # A pretrained one may lie behind the text, where another token is now; its row would get no gradient.
    model.config.pad_token_id = model.get_input_embeddings().padding_idx = None
    return model
