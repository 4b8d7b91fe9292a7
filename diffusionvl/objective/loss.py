"""The training loss, as a sum to be divided by a count, so that batches can be cut in any way.

Legend: B rows, T tokens of a row, K documents of a batch, M masked tokens, V vocabulary.
"""

import torch
from torch import Tensor

IGNORED = -100
NORMALIZERS = ("per_sample", "tokens")


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each token in fp32. [M, V], [M] -> [M]."""
    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")


def documents_of(labels: Tensor, document_ids: Tensor | None) -> Tensor:
    """Document of each token; every row is one where there are no ids. [B, T] -> [B, T]."""
    if document_ids is not None:
        return document_ids
    return torch.arange(len(labels), device=labels.device)[:, None].expand(labels.shape)


def supervised_counts(labels: Tensor, document_ids: Tensor | None = None) -> Tensor:
    """Supervised tokens of each document, over all its noisy copies. [B, T] -> [K]."""
    documents = documents_of(labels, document_ids)
    return documents[labels != IGNORED].bincount(minlength=int(documents.max()) + 1)


def token_weights(labels: Tensor, normalizer: str, document_ids: Tensor | None = None) -> Tensor:
    """Weight of each token so that the loss is their weighted sum over `loss_counts`. [B, T] -> [B, T].

    `per_sample` (the reference): 1 / N_k, N_k the supervised tokens of document k, so that every document counts the
    same. `tokens`: 1, so that every supervised token counts the same.

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

    1 for every document that carries loss, or its supervised tokens.
    """
    counts = supervised_counts(labels, document_ids)
    return counts if normalizer == "tokens" else (counts > 0).long()
