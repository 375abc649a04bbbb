"""Reads XLS-R checkpoints of fairseq and fairseq2: `xlsr2_1b_v2.pt` -> an ordinary Hugging Face folder.

The folder holds all blocks, so `--encoder wav2vec2:FOLDER` opens it too; `terms.json` in it is the licence.
The names of fairseq and of fairseq2 do not collide, so one table of rules reads both.
"""

import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dmlm.pipeline.converters.checkpoints import State, check_state, load_torch_checkpoint
from dmlm.pipeline.errors import ConfigError, CorruptInputError
from dmlm.pipeline.storage import as_os_errors, atomic_writer, write_bytes, write_json
from dmlm.pipeline.weights_terms import SEAMLESS, TERMS, TERMS_NAME, write_terms

if TYPE_CHECKING:
    from transformers import Wav2Vec2Config

CONFIG = "config.json"

_ENCODER_PARTS = ("encoder.", "encoder_frontend.", "feature_extractor.", "layer_norm.", "post_extract_proj.")
"""Where the encoder's tensors are; the rest is the quantiser and the heads of pretraining."""

_BLOCK_PARTS = {
    r"self_attn\.([qkv])_proj": r"attention.\2_proj",
    r"self_attn\.out(?:put)?_proj": "attention.out_proj",
    r"self_attn_layer_norm": "layer_norm",
    r"(?:fc1|ffn\.inner_proj)": "feed_forward.intermediate_dense",
    r"(?:fc2|ffn\.output_proj)": "feed_forward.output_dense",
    r"(?:final|ffn)_layer_norm": "final_layer_norm",
}
_CONVOLUTION = r"(?:encoder_frontend\.)?feature_extractor\.(?:conv_)?layers\.(\d+)"
_POSITIONS = r"(?:encoder_frontend\.pos_encoder\.conv|encoder\.pos_conv\.0)"
_RULES = {
    **{rf"encoder\.layers\.(\d+)\.{ours}": rf"encoder.layers.\1.{hf}" for ours, hf in _BLOCK_PARTS.items()},
    rf"{_CONVOLUTION}\.(?:conv|0)": r"feature_extractor.conv_layers.\1.conv",
    rf"{_CONVOLUTION}\.(?:layer_norm|2\.1)": r"feature_extractor.conv_layers.\1.layer_norm",
    r"(?:encoder_frontend\.post_extract_layer_norm|layer_norm)": "feature_projection.layer_norm",
    r"(?:encoder_frontend\.model_dim_proj|post_extract_proj)": "feature_projection.projection",
    r"encoder\.layer_norm": "encoder.layer_norm",
    _POSITIONS: "encoder.pos_conv_embed.conv",
}
_KINDS = {"weight": "weight", "bias": "bias"}
_POSITION_KINDS = {
    "weight_g": "parametrizations.weight.original0",
    "weight_v": "parametrizations.weight.original1",
    "bias": "bias",
}


def xlsr_1b_config(**changes: Any) -> "Wav2Vec2Config":
    """Architecture of XLS-R 1B in transformers' terms; `changes` make it smaller for tests."""
    from transformers import Wav2Vec2Config

    shape = {
        "hidden_size": 1280,
        "num_hidden_layers": 48,
        "num_attention_heads": 16,
        "intermediate_size": 5120,
        "feat_extract_norm": "layer",
        "conv_bias": True,
        "do_stable_layer_norm": True,
        "layerdrop": 0.0,
        # Without masks of training there is no embedding of masked frames either.
        "mask_time_prob": 0.0,
        "architectures": ["Wav2Vec2Model"],
    }
    return Wav2Vec2Config(**{**shape, **changes})


def convert_xlsr(checkpoint: Path, directory: Path, config: "Wav2Vec2Config | None" = None) -> None:
    """Writes the encoder of `checkpoint` to `directory` in transformers' form, unless it is there already.

    `config` is that of XLS-R 1B when it is not given.

    Raises:
        ConfigError: There is no such checkpoint, or this torch cannot read it safely.
        CorruptInputError: The checkpoint is cut, damaged or of another architecture.
    """
    if (directory / CONFIG).is_file():
        if not (directory / TERMS_NAME).is_file():  # converted by an earlier version
            with suppress(OSError):  # a folder of weights may be there to read only
                write_terms(directory, TERMS[SEAMLESS])
        return
    if not checkpoint.is_file():
        raise ConfigError(f"{checkpoint}: no such file")
    from transformers import Wav2Vec2Model

    config = config or xlsr_1b_config()
    state = _read_encoder(checkpoint)
    with torch.device("meta"):
        check_state(state, Wav2Vec2Model(config).state_dict(), checkpoint)
    _write_folder(state, config, directory)


def huggingface_name(name: str) -> str | None:
    """Transformers' name of a tensor of fairseq or fairseq2; None: not a tensor of the encoder.

    Raises:
        LookupError: It lies in the encoder but belongs to no XLS-R.
    """
    if not name.startswith(_ENCODER_PARTS):
        return None
    module, _, kind = name.rpartition(".")
    for rule, replacement in _RULES.items():
        if match := re.fullmatch(rule, module):
            kinds = _POSITION_KINDS if rule == _POSITIONS else _KINDS
            return f"{match.expand(replacement)}.{kinds[kind]}"
    raise LookupError(name)


def to_huggingface_names(names: Iterable[str]) -> dict[str, str]:
    """Transformers' names of all tensors of the encoder, by their names in fairseq or fairseq2."""
    return {name: found for name in names if (found := huggingface_name(name)) is not None}


def _read_encoder(path: Path) -> State:
    content = load_torch_checkpoint(path)
    tensors = content.get("model", content)
    if not isinstance(tensors, dict):
        raise CorruptInputError(f"{path}: holds no XLS-R encoder")
    try:
        renamed = to_huggingface_names(map(str, tensors))
    except LookupError as error:
        raise CorruptInputError(f"{path}: {error.args[0]} is no part of an XLS-R encoder") from error
    if len(set(renamed.values())) < len(renamed):
        raise CorruptInputError(f"{path}: mixes the names of fairseq and fairseq2")
    return {ours: tensors[name] for name, ours in renamed.items() if isinstance(tensors[name], torch.Tensor)}


def _write_folder(state: State, config: "Wav2Vec2Config", directory: Path) -> None:
    """`config.json` comes last and makes the folder whole; tasks that start together may all write it."""
    from safetensors.torch import save_file
    from transformers import Wav2Vec2FeatureExtractor

    path = directory / "model.safetensors"
    with atomic_writer(path, is_shared=True) as file, as_os_errors(path):
        whole = {name: tensor.contiguous() for name, tensor in state.items()}
        save_file(whole, file.name, metadata={"format": "pt"})
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    write_json(directory / "preprocessor_config.json", extractor.to_dict(), is_shared=True)
    write_terms(directory, TERMS[SEAMLESS])
    write_bytes(directory / CONFIG, config.to_json_string().encode(), is_shared=True)
