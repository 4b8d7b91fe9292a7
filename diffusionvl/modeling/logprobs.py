"""Log-probabilities of an answer's tokens, and of the tokens that the model held most probable in their places.

Legend: M places, V vocabulary, N most probable tokens.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class TokenLogprob(NamedTuple):
    """What the model thought of one token of an answer, in the forward that wrote it.

    It is the model's own distribution: at temperature 1, before penalties, constraints and truncation. A token that a
    constraint forced has seen no forward: its log-probability is 0, and there are no others.

    Attributes:
        logprob: Log-probability of the token.
        top: The most probable tokens with theirs, the most probable first. The token itself need not be among them.
    """

    logprob: float
    top: list[tuple[int, float]]


def score_tokens(logits: Tensor, tokens: Tensor, most: int) -> Tensor:
    """Log-probabilities of tokens and of the most probable ones, as one tensor, for `read_scores`.

    Args:
        logits: [M, V].
        tokens: The token of each place [M].
        most: N, at most V.

    Returns:
        [1 + 2 N, M]: of the tokens, the N most probable ids, and theirs; fp32, which holds ids up to 2^24.
    """
    logprobs = logits.float().log_softmax(-1)
    top = logprobs.topk(most)
    return torch.cat([logprobs.gather(1, tokens[:, None]), top.indices, top.values], dim=1).T


def read_scores(scores: Sequence[Sequence[float]], place: int, most: int) -> TokenLogprob:
    """The entry of one place, with its `most` best tokens, from the lists of a tensor of `score_tokens`."""
    half = 1 + (len(scores) - 1) // 2
    top = [(int(ids[place]), values[place]) for ids, values in zip(scores[1:half], scores[half:], strict=True)]
    return TokenLogprob(scores[0][place], top[:most])
