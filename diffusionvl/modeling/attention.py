"""How a base's attention gets the block-diffusion mask: a dense one for SDPA, or tiles for FlexAttention.

FlexAttention skips the tiles that nobody sees, about half of a row, and needs no T x T mask. It pays on a GPU; on a CPU
it has no backward pass. transformers refuses its name for some families, so it has one of its own here.

Legend: B batch, T tokens of a row, Q queries, K keys.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .block_masks import TokenTags, dense_mask, flex_mask, within_window
from .errors import UserError

DENSE = ("sdpa", "eager")  # implementations of transformers that read a dense mask
FLEX = "block_diffusion_flex"
TILE = 128  # FlexAttention's tile: rows are padded to whole ones


def flex_or_sdpa(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Attention over tiles where the mask is one of tiles; decoding and evaluation may bring a dense one."""
    attend = flex_attention_forward if isinstance(attention_mask, BlockMask) else sdpa_attention_forward
    return attend(module, query, key, value, attention_mask, **kwargs)


AttentionInterface.register(FLEX, flex_or_sdpa)
AttentionMaskInterface.register(FLEX, sdpa_mask)


def attend_over_tiles(base: PreTrainedModel) -> None:
    """Lets a base's language model attend by FlexAttention to rows that see themselves; its vision tower stays.

    A base that attends eagerly does so for a reason (soft-capped scores, which a dense mask with SDPA would lose), and
    is left as it is.
    """
    if base.config.get_text_config(decoder=True)._attn_implementation == "sdpa":
        base.get_decoder().set_attn_implementation(FLEX)


def layer_masks(
    base: PreTrainedModel,
    windows: dict[str, int | None],
    seen: TokenTags | Tensor,
    query: Tensor,
    key: Tensor | None = None,
) -> Any:
    """A mask as a base reads it: one for all layers, or one for each type of layer.

    Args:
        base: The AR base.
        windows: How far each type of layer looks back (`families.layer_windows`).
        seen: Tags [B, T] of a row that sees itself, or a boolean mask [B, 1, Q, K].
        query: Positions of the queries [B, Q].
        key: Positions of the keys [B, K]; those of the queries if left out.

    Raises:
        UserError: The base's attention implementation cannot read such a mask.
    """
    implementation = base.config.get_text_config(decoder=True)._attn_implementation
    key = query if key is None else key
    if isinstance(seen, TokenTags) and implementation == FLEX:
        masks = {kind: flex_mask(seen, query, window) for kind, window in windows.items()}
    else:
        dense = dense_mask(seen) if isinstance(seen, TokenTags) else seen
        masks = {
            kind: as_attention_mask(within_window(dense, query, key, window), implementation, base.dtype)
            for kind, window in windows.items()
        }
    return masks if len(masks) > 1 else masks.popitem()[1]


def as_attention_mask(mask: Tensor, implementation: str | None, dtype: torch.dtype) -> Any:
    """Brings a boolean mask [B, 1, Q, K] into the form an attention implementation of transformers reads.

    Raises:
        UserError: The implementation cannot read a dense mask.
    """
    if implementation in ("sdpa", FLEX):
        return mask
    if implementation == "eager":  # eager adds its mask; a boolean one would silently be added as 0 and 1
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
    raise unreadable(implementation)


def unreadable(implementation: Any) -> UserError:
    """The error for an attention implementation that reads no mask of its own choice, such as FlashAttention."""
    return UserError(f"attn_implementation={implementation!r} cannot read a block-diffusion mask; use 'sdpa'")
