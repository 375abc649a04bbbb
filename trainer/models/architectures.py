"""Models from scratch: OPT, the paper's, or Llama; plain transformers classes with one shared embedding.

Suffixes: T position, D width.
"""

import math
from typing import TYPE_CHECKING, Final

import torch

from dmlm.pipeline.randomness import generator_for
from dmlm.trainer.config import ModelConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

POSITION_TABLE: Final = "model.decoder.embed_positions"
"""OPT's learned positions; the first `offset` rows are not positions."""
POSITION_SCALE: Final = 0.1
"""Root mean square of new positions, in that of new tokens."""


def new_model(config: ModelConfig, vocabulary_size: int, max_length: int, seed: int) -> "PreTrainedModel":
    """Model of `config.architecture` with random weights, in training mode; the same for the same seed."""
    build = {"opt": _new_opt, "llama": _new_llama}[config.architecture]
    with torch.random.fork_rng():
        torch.manual_seed(int(generator_for(seed, "model").integers(2**63)))
        return build(config, vocabulary_size, max_length).train()


def _new_opt(config: ModelConfig, vocabulary_size: int, max_length: int) -> "PreTrainedModel":
    from transformers import OPTConfig, OPTForCausalLM

    model = OPTForCausalLM(
        OPTConfig(
            vocab_size=vocabulary_size,
            hidden_size=config.width,
            word_embed_proj_dim=config.width,
            ffn_dim=4 * config.width,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            max_position_embeddings=max_length,
            dropout=config.dropout,
            init_std=_small_init_std(config),
            # OPT's own value, 1, would be a text token here, and its embedding would never be trained.
            pad_token_id=None,
        )
    )
    _start_positions(model)
    return model


def _new_llama(config: ModelConfig, vocabulary_size: int, max_length: int) -> "PreTrainedModel":
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary_size,
            hidden_size=config.width,
            # Three matrices of this size have as many weights as OPT's two of four widths.
            intermediate_size=8 * config.width // 3,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            max_position_embeddings=max_length,
            attention_dropout=config.dropout,
            initializer_range=_small_init_std(config),
            tie_word_embeddings=True,
            pad_token_id=None,
        )
    )


def _small_init_std(config: ModelConfig) -> float:
    """SmallInit (Nguyen and Salazar 2019): near OPT's 0.02 at width 768, larger in a narrower model.

    Its effect here was not measured alone.
    """
    return math.sqrt(2 / (5 * config.width))


@torch.no_grad()
def _start_positions(model: "PreTrainedModel") -> None:
    """Starts OPT's learned positions as sinusoids (Vaswani et al. 2017, 3.5) far smaller than the tokens.

    They stay trainable. A decoder without positions learns relative ones (Kazemnejad et al. 2023), and a
    sound is the same wherever it stands: positions as large as tokens slow learning (docs/experiments.md).
    """
    table = model.get_submodule(POSITION_TABLE)
    weight_TD = table.weight
    width = weight_TD.shape[1]
    frequencies_D = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000) / width))
    angles_TD = torch.arange(len(weight_TD))[:, None] * frequencies_D
    sinusoids_TD = torch.cat([angles_TD.sin(), angles_TD.cos()], dim=1)[:, :width]
    weight_TD.copy_(sinusoids_TD * math.sqrt(2) * POSITION_SCALE * model.config.init_std)
