"""The language model: a plain transformers causal LM, from scratch or grown from a pretrained one.

Suffixes: B batch (1 when packed), H head, T token of the packed row, D width, N token that carries loss,
V vocabulary.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from dmlm.pipeline.errors import ConfigError, FingerprintMismatchError
from dmlm.pipeline.randomness import generator_for
from dmlm.pipeline.vocabulary import SPECIAL_TOKENS, Vocabulary
from dmlm.trainer.architectures import POSITION_TABLE, new_model
from dmlm.trainer.config import ModelConfig
from dmlm.trainer.packing import PackedBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VOCABULARY_NAME: Final = "vocabulary.json"
PACKED_ATTENTION: Final = "dmlm_packed"


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
        FingerprintMismatchError: `config.init` has another text tokenizer, or another vocabulary.
    """
    if config.init is None:
        return _with_token_ids(new_model(config, vocabulary.size, max_length, seed), vocabulary)
    try:
        model = load_model(config.init)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--init {config.init}: not a causal language model: {reason}") from error
    if not _knows_vocabulary(config.init, vocabulary):
        check_text_tokenizer(config.init, text_dir)
        _extend_vocabulary(model, vocabulary, seed)
    _extend_positions(model, max_length)
    model.config.dropout = config.dropout
    return _with_token_ids(model, vocabulary)


def load_model(name_or_path: str | Path) -> "PreTrainedModel":
    """Causal LM from a Hugging Face name or folder, in float32 and training mode.

    Raises:
        OSError, ValueError: It is not there or is no causal LM with safetensors weights.
    """
    from transformers import AutoModelForCausalLM

    with _no_progress_bars():
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            name_or_path, dtype=torch.float32, use_safetensors=True
        )
    return model.train()


def save_model(model: "PreTrainedModel", directory: Path) -> None:
    """Writes the model as a Hugging Face folder, with safetensors weights."""
    with _no_progress_bars():
        model.save_pretrained(directory)


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


def use_packed_attention(model: "PreTrainedModel") -> None:
    """Makes the model run on packed rows; see `packed_logits`."""
    from transformers import AttentionInterface

    # No mask function is registered under this name, so transformers builds no mask.
    AttentionInterface.register(PACKED_ATTENTION, packed_attention)
    model.set_attn_implementation(PACKED_ATTENTION)


def packed_attention(
    module: torch.nn.Module,
    query_BHTD: Tensor,
    key_BHTD: Tensor,
    value_BHTD: Tensor,
    attention_mask: None,
    *,
    lengths: tuple[int, ...],
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each sequence of a packed row: a transformers attention function.

    One call per sequence costs less than a block-diagonal mask: nothing is computed to be masked.
    """
    grouped = query_BHTD.shape[1] != key_BHTD.shape[1]
    parts = (torch.split(tensor, list(lengths), dim=2) for tensor in (query_BHTD, key_BHTD, value_BHTD))
    outputs = [
        scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scaling, dropout_p=dropout, enable_gqa=grouped
        )
        for q, k, v in zip(*parts, strict=True)
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def packed_logits(model: "PreTrainedModel", batch: PackedBatch) -> Tensor:
    """Logits N × V of the tokens that carry loss, and of no others."""
    hidden_BTD = model.base_model(
        input_ids=batch.tokens_T[None],
        position_ids=batch.positions_T[None],
        lengths=batch.lengths,
        use_cache=False,
    ).last_hidden_state
    hidden_ND = hidden_BTD[0].index_select(0, batch.predictors_N)
    logits_NV: Tensor = model.get_output_embeddings()(hidden_ND)
    return logits_NV


def save_tokenizer(text_dir: Path, vocabulary: Vocabulary, directory: Path) -> None:
    """Writes the text tokenizer of `text_dir` to `directory`, with every token of the vocabulary added.

    Raises:
        FingerprintMismatchError: The ids would not be those of the vocabulary.
    """
    from transformers import AddedToken, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(text_dir)
    if len(tokenizer) != vocabulary.num_text:
        raise FingerprintMismatchError(
            f"{text_dir}: {len(tokenizer)} entries, the vocabulary has {vocabulary.num_text} text tokens"
        )
    names = vocabulary.added_tokens()
    # Units are no special tokens, so that decoding with `skip_special_tokens` keeps what the model said.
    tokenizer.add_tokens(
        [AddedToken(name, normalized=False, special=name in SPECIAL_TOKENS) for name in names]
    )
    if tokenizer.convert_tokens_to_ids(names) != list(range(vocabulary.num_text, vocabulary.num_used)):
        raise FingerprintMismatchError(f"{text_dir}: already has tokens such as {names[0]}")
    tokenizer.save_pretrained(directory)


def check_text_tokenizer(init: str, text_dir: Path) -> None:
    """Raises FingerprintMismatchError unless the pretrained model's tokenizer gives the ids of the shards."""
    from transformers import AutoTokenizer

    try:
        theirs = AutoTokenizer.from_pretrained(init).get_vocab()
    except (OSError, ValueError) as error:
        raise ConfigError(f"--init {init}: no tokenizer: {str(error).splitlines()[0]}") from error
    ours = AutoTokenizer.from_pretrained(text_dir).get_vocab()
    if theirs != ours:
        raise FingerprintMismatchError(
            f"--init {init}: its text tokenizer ({len(theirs)} entries) is not the shards' ({len(ours)} "
            f"entries); run `dmlm-cli build-codebook --text-tokenizer {init}` and tokenize with that codebook"
        )


def _knows_vocabulary(init: str, vocabulary: Vocabulary) -> bool:
    """Whether `init` is a checkpoint of dmlm, whose embedding has every row already."""
    path = Path(init) / VOCABULARY_NAME
    if not path.is_file():
        return False
    theirs = Vocabulary.from_json(json.loads(path.read_bytes()))
    if theirs != vocabulary:
        raise FingerprintMismatchError(
            f"--init {init}: its vocabulary is {_sizes(theirs)}, that of the shards {_sizes(vocabulary)}; "
            "use shards of the same codebook"
        )
    return True


def _sizes(vocabulary: Vocabulary) -> str:
    return f"{vocabulary.num_text} text, {vocabulary.num_speech} speech, {vocabulary.num_image} image"


def _with_token_ids(model: "PreTrainedModel", vocabulary: Vocabulary) -> "PreTrainedModel":
    for config in (model.config, model.generation_config):
        config.bos_token_id, config.eos_token_id = vocabulary.bos_id, vocabulary.eos_id
    model.generation_config.pad_token_id = vocabulary.eos_id
    return model


def _extend_vocabulary(model: "PreTrainedModel", vocabulary: Vocabulary, seed: int) -> None:
    """Grows the embedding; rows behind the text, spare ones included, are drawn anew.

    A new row is normal with the mean and the standard deviation that the text rows have in each dimension.
    """
    num_rows = model.get_input_embeddings().weight.shape[0]
    if num_rows < vocabulary.num_text:
        raise ConfigError(
            f"--init: the model has {num_rows} embeddings, the text tokenizer of the shards "
            f"{vocabulary.num_text} entries"
        )
    model.resize_token_embeddings(vocabulary.size, mean_resizing=False)
    generator = torch.Generator().manual_seed(int(generator_for(seed, "embedding").integers(2**63)))
    embeddings_VD = model.get_input_embeddings().weight
    _redraw_rows(embeddings_VD, vocabulary.num_text, generator)
    if (head_VD := model.get_output_embeddings().weight) is not embeddings_VD:
        _redraw_rows(head_VD, vocabulary.num_text, generator)


@torch.no_grad()
def _redraw_rows(weight_VD: Tensor, start: int, generator: torch.Generator) -> None:
    text_VD = weight_VD[:start]
    noise_VD = torch.randn(weight_VD[start:].shape, generator=generator)
    weight_VD[start:] = text_VD.mean(dim=0) + noise_VD * text_VD.std(dim=0)


def _extend_positions(model: "PreTrainedModel", max_length: int) -> None:
    """Lengthens OPT's position table; new rows repeat the old ones from the first."""
    num_positions = model.config.max_position_embeddings
    if max_length <= num_positions:
        return
    if model.config.model_type != "opt":
        raise ConfigError(
            f"sequence.max_length {max_length}: the model has {num_positions} positions; "
            "only OPT's can be extended"
        )
    table = model.get_submodule(POSITION_TABLE)
    old = table.weight.data
    rows = torch.arange(max_length) % num_positions + table.offset
    table.weight = torch.nn.Parameter(torch.cat([old[: table.offset], old[rows]]))
    table.num_embeddings = len(table.weight)
    model.config.max_position_embeddings = max_length
