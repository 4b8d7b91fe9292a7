"""The linear noise schedule and the noise level of each block.

Legend: B rows, N blocks of a row, S supervised blocks of a row.
"""

import torch
from torch import Tensor

T_MIN = 1e-3  # smallest noise level: keeps the weight 1 / t finite (BD3-LM's sampling_eps)
NOISE_ORDERS = ("permuted", "reference", "sequence")


def alpha(t: Tensor) -> Tensor:
    """Probability that a token is still clean at noise level t: alpha(t) = 1 - t (BD3-LM, section 3.1)."""
    return 1 - t


def weight(t: Tensor) -> Tensor:
    """Weight of the cross-entropy at t: -alpha'(t) / (1 - alpha(t)) = 1 / t (BD3-LM, equation 8)."""
    return 1 / t


def stratified_t(blocks: int, generator: torch.Generator | None = None, t_max: float = 1.0) -> Tensor:
    """Noise levels of a row's supervised blocks: one from each of S equal strata of (0, 1], in random order.

    The strata keep the variance of a row low. The order is random, so that each block's t is uniform by itself.

    Args:
        blocks: S.
        generator: Source of randomness.
        t_max: Largest noise level.

    Returns:
        t in [T_MIN, t_max], [S], fp32.
    """
    u = torch.rand(blocks, generator=generator)
    strata = torch.randperm(blocks, generator=generator)
    return _rescale((u + strata) / max(blocks, 1), t_max)


def reference_t(u: Tensor) -> Tensor:
    """Noise levels in the reference's order: the strata run over all blocks of the batch, from first to last.

    A block's t then grows with its place in the row and in the batch, so that answers after a long prompt are
    trained at high t almost only. Kept for comparison with the reference and its released weights.

    Args:
        u: Uniform draws [B, N], N over whole rows, padding included.

    Returns:
        t in [T_MIN, 1], [B, N].
    """
    total = u.numel()
    offset = torch.arange(total, device=u.device).view_as(u) / total
    return _rescale((u / total + offset) % 1)


def tilted(t: Tensor, place: Tensor, slope: float) -> Tensor:
    """Probability of a mask where the last tokens of a block are masked more often: t + slope * t (1 - t) * place.

    Decoding writes the first tokens of a block sooner than the last ones, so these meet more states. Efficient-DLM
    (arXiv 2512.14067) weighs places exponentially; this is linear, keeps the mean over a block at t, and stays between
    t^2 and 1 - (1 - t)^2.

    Args:
        t: Noise level of each token's block [n].
        place: From -1 for the first token of a block to 1 for the last [n].
        slope: 0 for none, at most 1.
    """
    return t + slope * t * (1 - t) * place


def _rescale(uniform: Tensor, t_max: float = 1.0) -> Tensor:
    """Maps [0, 1) to [T_MIN, t_max)."""
    return uniform * (t_max - T_MIN) + T_MIN
