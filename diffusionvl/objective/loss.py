"""The weights of the training loss, which is a sum to be divided by a count, so that batches can be cut in any way.

Legend: B rows, T tokens of a row, K documents of a batch, M masked tokens, V vocabulary.
"""

import torch
from torch import Tensor

from .corruption import Corrupted, Supervised
from .noise_schedule import weight

IGNORED = -100
NORMALIZERS = ("per_sample", "tokens")
WEIGHTINGS = ("inverse_t", "mask_ratio", "uniform")


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each token in fp32. [M, V], [M] -> [M]."""
    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")


def documents_of(labels: Tensor, document_ids: Tensor | None) -> Tensor:
    """Document of each token; every row is one where there are no ids. [B, T] -> [B, T]."""
    if document_ids is not None:
        return document_ids
    return torch.arange(len(labels), device=labels.device)[:, None].expand(labels.shape)


def supervised_counts(labels: Tensor, document_ids: Tensor | None = None) -> Tensor:
    """Number of supervised tokens of each document, over all its noisy copies. [B, T] -> [K]."""
    documents = documents_of(labels, document_ids)
    return documents[labels != IGNORED].bincount(minlength=int(documents.max()) + 1)


def token_weights(labels: Tensor, normalizer: str, document_ids: Tensor | None = None) -> Tensor:
    """Weight of each token so that the loss is their weighted sum over `loss_counts`. [B, T] -> [B, T].

    `per_sample` (the reference): 1 / N_k, where N_k is the number of supervised tokens of document k, so that every
    document counts the same. `tokens`: 1, so that every supervised token counts the same.

    Args:
        labels: -100 where a token carries no loss.
        normalizer: One of `NORMALIZERS`.
        document_ids: 0 to K - 1 over the whole batch, -1 for padding; every row is a document if left out.

    Raises:
        ValueError: `normalizer` is unknown.
    """
    if normalizer not in NORMALIZERS:
        raise ValueError(f"normalizer must be one of {NORMALIZERS}, got {normalizer!r}")
    supervised = labels != IGNORED
    if normalizer == "tokens":
        return supervised.float()
    documents = documents_of(labels, document_ids)
    counts = supervised_counts(labels, documents).clamp(min=1)
    return supervised / counts[documents.clamp(min=0)]


def loss_counts(labels: Tensor, normalizer: str, document_ids: Tensor | None = None) -> Tensor:
    """What each document adds to the count that the weighted sum is divided by. [B, T] -> [K].

    1 for every document that carries loss, or the number of its supervised tokens.
    """
    counts = supervised_counts(labels, document_ids)
    return counts if normalizer == "tokens" else (counts > 0).long()


def noise_weights(noisy: Corrupted, weighting: str, supervised: Supervised) -> Tensor:
    """Weight of each token by the noise of its block, to be used where it is masked.

    - `inverse_t`: 1 / t (BD3-LM, equation 8; the reference). At a small t, one mask in a block weighs up to 1,000.
    - `mask_ratio`: (n + 1) / m, with n supervised and m masked tokens in the block. For t uniform on (0, 1] that is
      the expectation of 1 / t given the masks, so the loss has the same expectation and a smaller variance
      (Rao-Blackwell). SDAR-VL weighs by the realised mask ratio, n / m, which differs by a constant.
    - `uniform`: 1, as in Fast-dLLM v2: blocks with many masks count more than in the likelihood bound.

    Args:
        noisy: The corrupted batch.
        weighting: One of `WEIGHTINGS`.
        supervised: The tokens that carry loss; `block` says which of them share a level (`Supervised.share_levels`).

    Returns:
        Weights [B, T], fp32, 0 where a token is not masked.

    Raises:
        ValueError: `weighting` is unknown.
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting must be one of {WEIGHTINGS}, got {weighting!r}")
    if weighting == "inverse_t":
        return weight(noisy.t).masked_fill(~noisy.masked, 0)
    if weighting == "uniform":
        return noisy.masked.float()
    mask = supervised.mask
    places = torch.stack([ids[mask] for ids in (supervised.document, supervised.stream, supervised.block)])
    block = places.unique(dim=1, return_inverse=True)[1]
    masks = noisy.masked[mask].float()
    counts = torch.zeros(2, len(block), device=block.device)  # there are never more blocks than tokens
    counts.index_add_(1, block, torch.stack([torch.ones_like(masks), masks]))
    ratio = (counts[0] + 1) / counts[1].clamp(min=1)
    return torch.zeros_like(noisy.t).masked_scatter(mask, masks * ratio[block])
