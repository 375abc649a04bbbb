"""A pretrained language model as the start of a run: loaded, and grown to a vocabulary and a length.

Any causal LM of transformers that leaves its attention to `AttentionInterface` (OPT, GPT-2, Llama, SmolLM2,
Qwen, GPT-NeoX, Phi, ...), from a Hugging Face name or folder, or from a GGUF file. See docs/models.md.

Suffixes: B batch (1), T token, V vocabulary, D width.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from dmlm.pipeline.errors import ConfigError, FingerprintMismatchError
from dmlm.pipeline.randomness import generator_for
from dmlm.pipeline.tokenizers.gguf import read_gguf_tokenizer
from dmlm.pipeline.vocabulary import Vocabulary
from dmlm.trainer.config import ModelConfig
from dmlm.trainer.models.attention import RowLayout, use_kernel
from dmlm.trainer.models.gguf import is_gguf, read_gguf_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

DROPOUT_FIELDS: Final = (
    ("dropout",),  # OPT
    (
        *("resid_pdrop", "embd_pdrop", "attn_pdrop"),  # GPT-2, Phi
        *("hidden_dropout", "residual_dropout", "embedding_dropout", "attention_dropout"),
    ),
)
"""Names that a config may have; the first group of which it has any is set."""

TESTED_MODELS: Final = "OPT, GPT-2, Llama, SmolLM2, Qwen2 or Qwen3"
"""For messages."""
NOISE_SHARE: Final = 0.5
"""How far new rows lie from each other, in standard deviations of the text rows; see docs/models.md."""
PROBE: Final = "Hello  World\n\n5 don't\tnaïve CAFÉ, cafe\u0301 12,345.67€ ﬁ １２ 東京 🙂 (a_b) \r\n  it's"
"""Cases, digits, white space, contractions, forms of letters: tokenizers treat each in their own way."""
_NUM_CHECKED: Final = 16
"""Tokens of the sequences that packing is checked with."""
_LOGIT_TOLERANCE: Final = 1e-3
"""Of the standard deviation of logits, for rounding in float32."""

_logger = logging.getLogger(__name__)


def read_init_config(config: ModelConfig, max_length: int) -> "PretrainedConfig":
    """Config of the pretrained model, with the dropout wanted and rotary positions for `max_length` tokens.

    Raises:
        ConfigError: `config.init` is no model that can run on packed rows, or it cannot be lengthened.
    """
    init = str(config.init)
    shape = read_gguf_config(Path(init)) if is_gguf(init) else _read_config(init)
    _check_attention(shape, init, max_length)
    _set_dropout(shape, init, config.dropout)
    _extend_rotary(shape, init, max_length)
    return shape


def check_text_tokenizer(init: str, text_dir: Path) -> None:
    """Checks the pretrained model's tokenizer against that of the shards.

    Their files may differ where ids do not, as those of a GGUF file and of a folder, so vocabularies are
    compared, and the ids of a text on which rules of splitting and normalising differ.

    Raises:
        FingerprintMismatchError: It has another vocabulary, or other rules.
    """
    from transformers import AutoTokenizer

    theirs = _load_tokenizer(init)
    ours = AutoTokenizer.from_pretrained(text_dir, trust_remote_code=False)
    remedy = f"run `dmlm-cli build-codebook --text-tokenizer {init}` and tokenize with that codebook"
    if theirs.get_vocab() != ours.get_vocab():
        raise FingerprintMismatchError(
            f"--init {init}: its text tokenizer ({len(theirs.get_vocab())} entries) is not the shards' "
            f"({len(ours.get_vocab())} entries); {remedy}"
        )
    if len({tuple(part(PROBE, add_special_tokens=False).input_ids) for part in (theirs, ours)}) > 1:
        raise FingerprintMismatchError(
            f"--init {init}: its text tokenizer has the shards' entries, but gives texts other ids; {remedy}"
        )


def extend_vocabulary(model: "PreTrainedModel", vocabulary: Vocabulary, seed: int) -> None:
    """Grows embedding and head; rows behind the text, spare ones included, are drawn anew.

    A new row is the mean of the text rows, plus an offset that all new rows share, plus its own noise. Both
    are normal, with the text rows' standard deviation in each dimension, the noise NOISE_SHARE of it. A new
    bias of the head is the mean of the text's. A tied head stays tied.

    Raises:
        ConfigError: The model has fewer rows than the text tokenizer has entries.
    """
    num_rows = model.get_input_embeddings().weight.shape[0]
    if num_rows < vocabulary.num_text:
        raise ConfigError(
            f"--init: the model has {num_rows} embeddings, the text tokenizer of the shards "
            f"{vocabulary.num_text} entries"
        )
    model.resize_token_embeddings(vocabulary.size, mean_resizing=False)
    generator = torch.Generator().manual_seed(int(generator_for(seed, "embedding").integers(2**63)))
    embeddings_VD, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    _redraw_rows(embeddings_VD, vocabulary.num_text, generator)
    if head.weight is not embeddings_VD:
        _redraw_rows(head.weight, vocabulary.num_text, generator)
    if head.bias is not None:
        head.bias.data[vocabulary.num_text :] = head.bias.data[: vocabulary.num_text].mean()


@torch.no_grad()
def add_modalities(model: "PreTrainedModel", theirs: Vocabulary, vocabulary: Vocabulary, seed: int) -> None:
    """Grows embedding and head of a checkpoint by the modalities that its vocabulary lacks.

    Every token that it has keeps its row, at its new place; the rows of the others are drawn as
    `extend_vocabulary` draws them.

    Args:
        model: The checkpoint's.
        theirs: Its vocabulary.
        vocabulary: The same with units or image codes where `theirs` has none.
        seed: Of the new rows.
    """
    before = [rows.clone() for rows in _rows_of_tokens(model)]
    extend_vocabulary(model, vocabulary, seed)
    for old, new in zip(before, _rows_of_tokens(model), strict=True):
        for source, target in (
            (theirs.special, vocabulary.special),
            (theirs.speech, vocabulary.speech),
            (theirs.image, vocabulary.image),
        ):
            new[target.start : target.start + len(source)] = old[source.start : source.stop]


def _rows_of_tokens(model: "PreTrainedModel") -> list[torch.Tensor]:
    """What has a row or an element per token."""
    embeddings_VD, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    parameters = (embeddings_VD, None if head.weight is embeddings_VD else head.weight, head.bias)
    return [parameter.data for parameter in parameters if parameter is not None]


def extend_table(model: "PreTrainedModel", init: str, max_length: int) -> None:
    """Lengthens a table of learned positions to `max_length`; new rows repeat the old ones from the first.

    Raises:
        ConfigError: The model has too few positions and no such table.
    """
    num_positions = model.config.max_position_embeddings
    if max_length <= num_positions:
        return
    tables = [
        module
        for module in model.modules()
        if isinstance(module, torch.nn.Embedding)
        and module.num_embeddings == num_positions + getattr(module, "offset", 0)
        and module is not model.get_input_embeddings()
    ]
    if len(tables) != 1:
        raise ConfigError(
            f"sequence.max_length {max_length}: {init} has {num_positions} positions and no table of them "
            "that could be extended"
        )
    (table,) = tables
    offset, old = getattr(table, "offset", 0), table.weight.data
    rows = torch.arange(max_length) % num_positions + offset
    table.weight = torch.nn.Parameter(torch.cat([old[:offset], old[rows]]))
    table.num_embeddings = len(table.weight)
    model.config.max_position_embeddings = max_length


@torch.no_grad()
def check_packing(model: "PreTrainedModel", init: str) -> None:
    """Raises ConfigError unless two sequences in one packed row get the logits that each gets alone.

    Only plain causal attention and a plain head do: no capped or scaled scores, no attention sinks.
    """
    was_training, attention = model.training, model.config._attn_implementation
    model.eval()
    pieces = torch.arange(_NUM_CHECKED).tensor_split([_NUM_CHECKED // 2 + 1])
    alone_TV = torch.cat([model(input_ids=piece[None]).logits[0] for piece in pieces])
    use_kernel(model, "sequences")
    hidden_BTD = model.base_model(
        input_ids=torch.cat(pieces)[None],
        position_ids=torch.cat([torch.arange(len(piece)) for piece in pieces])[None],
        row=RowLayout(lengths=tuple(map(len, pieces))),
        use_cache=False,
    ).last_hidden_state
    packed_TV = model.get_output_embeddings()(hidden_BTD[0])
    model.set_attn_implementation(attention)
    model.train(was_training)
    if (packed_TV - alone_TV).abs().max() > _LOGIT_TOLERANCE * alone_TV.std():
        raise ConfigError(
            f"--init {init}: a {model.config.model_type} model gives other logits on packed rows than alone; "
            f"take {TESTED_MODELS}"
        )


def _read_config(init: str) -> "PretrainedConfig":
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(init, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--init {init}: not a causal language model: {reason}") from error


def _load_tokenizer(init: str) -> Any:
    from transformers import AutoTokenizer

    if is_gguf(init):
        return read_gguf_tokenizer(Path(init))
    try:
        return AutoTokenizer.from_pretrained(init, trust_remote_code=False)
    except Exception as error:  # the package tokenizers raises nothing narrower
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"--init {init}: no tokenizer: {reason}") from error


def _check_attention(config: "PretrainedConfig", init: str, max_length: int) -> None:
    """Raises ConfigError unless plain causal attention inside each sequence is what the model computes."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if kind is None or not kind._supports_attention_backend:
        raise ConfigError(
            f"--init {init}: a {config.model_type} model cannot run on packed rows: transformers gives it no "
            f"exchangeable attention; take {TESTED_MODELS}"
        )
    window = getattr(config, "sliding_window", None)
    if window is not None and window < max_length:
        raise ConfigError(
            f"--init {init}: attends to {window} tokens only, fewer than sequence.max_length {max_length}"
        )
    if getattr(config, "attn_logit_softcapping", None) is not None:
        raise ConfigError(f"--init {init}: caps its attention scores, which packed rows do not")


def _set_dropout(config: "PretrainedConfig", init: str, dropout: float) -> None:
    for group in DROPOUT_FIELDS:
        if names := [name for name in group if hasattr(config, name)]:
            for name in names:
                setattr(config, name, dropout)
            return
    if dropout:
        _logger.warning("--init %s: has no dropout; model.dropout %s is not used", init, dropout)


def _extend_rotary(config: "PretrainedConfig", init: str, max_length: int) -> None:
    """Stretches rotary positions by YaRN (Peng et al. 2023), which does not depend on the sequence.

    So packed rows stay exact and cached keys stay right; dynamic scaling would break both.
    """
    num_positions = getattr(config, "max_position_embeddings", None)
    rotary = getattr(config, "rope_parameters", None)
    if num_positions is None:
        raise ConfigError(f"--init {init}: says nothing of max_position_embeddings")
    if rotary is not None and rotary.get("rope_type") in ("dynamic", "longrope"):
        raise ConfigError(f"--init {init}: its rotary positions depend on the longest sequence of a row")
    if rotary is None or max_length <= num_positions:
        return
    if rotary.get("rope_type") != "default":
        raise ConfigError(
            f"sequence.max_length {max_length}: {init} has {num_positions} positions, and scales them already"
        )
    config.rope_parameters = rotary | {
        "rope_type": "yarn",
        "factor": max_length / num_positions,
        "original_max_position_embeddings": num_positions,
    }
    config.max_position_embeddings = max_length
    try:
        config.validate()  # as the first save will
    except Exception as error:  # its class is of huggingface_hub, which nothing here may name
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"sequence.max_length {max_length}: {init} has {num_positions} positions, and a "
            f"{config.model_type} model cannot be lengthened ({reason})"
        ) from error


@torch.no_grad()
def _redraw_rows(weight_VD: Tensor, start: int, generator: torch.Generator) -> None:
    text_VD = weight_VD[:start]
    # The offset is a handle: one step along it moves all new tokens, and none of the text.
    offset_D = torch.randn(weight_VD.shape[1], generator=generator)
    noise_VD = torch.randn(weight_VD[start:].shape, generator=generator)
    weight_VD[start:] = text_VD.mean(dim=0) + (offset_D + NOISE_SHARE * noise_VD) * text_VD.std(dim=0)
