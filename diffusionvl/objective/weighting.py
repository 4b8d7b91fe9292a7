"""The weight of a masked token's cross-entropy, by how much of its block is masked.

Legend: B rows, T tokens of a row.
"""

import torch
from torch import Tensor

from .corruption import Corrupted
from .loss import documents_of
from .noise_schedule import weight

WEIGHTINGS = ("inverse_t", "mask_ratio", "uniform")


def noise_weights(
    noisy: Corrupted,
    weighting: str,
    supervised: Tensor,
    block_ids: Tensor,
    document_ids: Tensor | None = None,
    stream_ids: Tensor | None = None,
) -> Tensor:
    """Weight of each token by the noise of its block, to be used where it is masked.

    - `inverse_t`: 1 / t (BD3-LM, equation 8; the reference). At a small t one mask in a block weighs up to 1,000.
    - `mask_ratio`: (n + 1) / m, n the supervised tokens of the block and m the masked ones. For t uniform on (0, 1]
      that is the expectation of 1 / t given the masks, so the loss has the same expectation and a smaller variance
      (Rao-Blackwell). SDAR-VL weighs by the realised mask ratio, n / m, which differs by a constant.
    - `uniform`: 1, as in Fast-dLLM v2: blocks with many masks count more than in the likelihood bound.

    Args:
        noisy: The corrupted batch.
        weighting: One of `WEIGHTINGS`.
        supervised: Which tokens carry loss [B, T].
        block_ids: What shares a noise level inside a view [B, T] (see `level_ids`).
        document_ids: Document of each token [B, T]; every row is one if left out.
        stream_ids: View of each supervised token [B, T]; all are of one if left out.

    Returns:
        Weights [B, T], fp32, 0 where a block has no masked token.

    Raises:
        ValueError: `weighting` is unknown.
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting must be one of {WEIGHTINGS}, got {weighting!r}")
    if weighting == "inverse_t":
        return weight(noisy.t).masked_fill(~noisy.masked, 0)
    if weighting == "uniform":
        return noisy.masked.float()
    documents = documents_of(block_ids, document_ids)
    streams = torch.zeros_like(block_ids) if stream_ids is None else stream_ids
    places = torch.stack([ids[supervised] for ids in (documents, streams, block_ids)])
    block = places.unique(dim=1, return_inverse=True)[1]
    masks = noisy.masked[supervised].float()
    counts = torch.zeros(2, len(block), device=block.device)  # never more blocks than tokens
    counts.index_add_(1, block, torch.stack([torch.ones_like(masks), masks]))
    ratio = (counts[0] + 1) / counts[1].clamp(min=1)
    return torch.zeros_like(noisy.t).masked_scatter(supervised, masks * ratio[block])
