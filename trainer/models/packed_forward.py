"""Running a causal language model on packed rows: attention inside each sequence, loss where there is some.

Suffixes: B batch (1 when packed), T token of the packed row, D width, N token that carries loss.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dmlm.trainer.config import Recipe
from dmlm.trainer.data.packing import PackedBatch
from dmlm.trainer.linear_cross_entropy import linear_cross_entropy
from dmlm.trainer.models.attention import KernelName, lay_out, use_kernel

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def choose_products(recipe: Recipe, device: torch.device) -> torch.dtype:
    """Type of matrix products: the recipe's, or bfloat16 on a GPU that computes in it."""
    if recipe.precision == "auto":
        has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bfloat16 else torch.float32
    return torch.bfloat16 if recipe.precision == "bfloat16" else torch.float32


class PackedModel(torch.nn.Module):
    """A causal language model whose forward pass gives the loss of a packed row.

    The loss belongs inside: only there do DDP and FSDP2 see that the weights of the head are used.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        kernel: KernelName = "sequences",
        products: torch.dtype = torch.float32,
    ) -> None:
        """Takes the kernel to attend with; products run in bfloat16 if `products` is that, by autocast."""
        super().__init__()
        use_kernel(model, kernel)
        self.model = model
        self._in_bfloat16 = products == torch.bfloat16

    def forward(self, batch: PackedBatch, weights_N: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted sum of the cross-entropies, and each of them, without gradient."""
        head: Any = self.model.get_output_embeddings()
        with torch.autocast(weights_N.device.type, torch.bfloat16, enabled=self._in_bfloat16):
            hidden_ND = packed_hidden(self.model, batch)
            return linear_cross_entropy(hidden_ND, head.weight, head.bias, batch.targets_N, weights_N)


def packed_hidden(model: "PreTrainedModel", batch: PackedBatch) -> Tensor:
    """Last hidden states N × D of the tokens that carry loss, and of no others.

    The model must have been given a kernel; see `attention.use_kernel`.
    """
    hidden_BTD: Tensor = model.base_model(
        input_ids=batch.tokens_T[None],
        position_ids=batch.positions_T[None],
        row=lay_out(model, batch),
        use_cache=False,
    ).last_hidden_state
    return hidden_BTD[0].index_select(0, batch.predictors_N)
