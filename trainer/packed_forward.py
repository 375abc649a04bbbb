"""Running a causal language model on packed rows: attention inside each sequence, loss where there is some.

Suffixes: B batch (1 when packed), H head, T token of the packed row, D width, N token that carries loss,
V vocabulary.
"""

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from dmlm.trainer.linear_cross_entropy import linear_cross_entropy
from dmlm.trainer.packing import PackedBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PACKED_ATTENTION: Final = "dmlm_packed"


class PackedModel(torch.nn.Module):
    """A causal language model whose forward pass gives the loss of a packed row.

    The loss belongs inside: only there do DDP and FSDP2 see that the weights of the head are used.
    """

    def __init__(self, model: "PreTrainedModel") -> None:
        super().__init__()
        use_packed_attention(model)
        self.model = model

    def forward(self, batch: PackedBatch, weights_N: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted sum of the cross-entropies, and each of them, without gradient."""
        head: Any = self.model.get_output_embeddings()
        hidden_ND = packed_hidden(self.model, batch)
        return linear_cross_entropy(hidden_ND, head.weight, head.bias, batch.targets_N, weights_N)


def use_packed_attention(model: "PreTrainedModel") -> None:
    """Makes the model run on packed rows; see `packed_hidden`."""
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


def packed_hidden(model: "PreTrainedModel", batch: PackedBatch) -> Tensor:
    """Last hidden states N × D of the tokens that carry loss, and of no others."""
    hidden_BTD: Tensor = model.base_model(
        input_ids=batch.tokens_T[None],
        position_ids=batch.positions_T[None],
        lengths=batch.lengths,
        use_cache=False,
    ).last_hidden_state
    return hidden_BTD[0].index_select(0, batch.predictors_N)


def packed_logits(model: "PreTrainedModel", batch: PackedBatch) -> Tensor:
    """Logits N × V of the same tokens."""
    logits_NV: Tensor = model.get_output_embeddings()(packed_hidden(model, batch))
    return logits_NV
