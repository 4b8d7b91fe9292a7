"""The training loss, as a sum to be divided by a count, so that batches can be cut in any way.

Legend: B rows, T tokens of a row, M masked tokens, V vocabulary.
"""

import torch
from torch import Tensor

IGNORED = -100
NORMALIZERS = ("per_sample", "tokens")


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each token in fp32. [M, V], [M] -> [M]."""
    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")


def token_weights(labels: Tensor, normalizer: str) -> Tensor:
    """Weight of each token so that the loss is their weighted sum over `loss_count`. [B, T] -> [B, T].

    `per_sample` (the reference): 1 / N_b, N_b the supervised tokens of row b (at least 1), so that every row counts
    the same. `tokens`: 1, so that every supervised token counts the same.

    Raises:
        ValueError: `normalizer` is unknown.
    """
    if normalizer not in NORMALIZERS:
        raise ValueError(f"normalizer must be one of {NORMALIZERS}, got {normalizer!r}")
    supervised = labels != IGNORED
    if normalizer == "tokens":
        return supervised.float()
    return supervised / supervised.sum(-1, keepdim=True).clamp(min=1)


def loss_count(labels: Tensor, normalizer: str) -> Tensor:
    """What the weighted sum is divided by: the number of rows, or of supervised tokens."""
    if normalizer == "tokens":
        return (labels != IGNORED).sum()
    return torch.tensor(labels.shape[0], device=labels.device)
