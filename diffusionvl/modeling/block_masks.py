"""Which token may attend to which: the block-diffusion mask, as a predicate, a dense tensor and a `BlockMask`.

Legend: B batch, T tokens of a row, Q queries, K keys, L clean tokens, D block size.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

CLEAN = 0  # stream id of the clean copy; noisy copies are 1, 2, ...
PADDING = -1  # document id of padding


class TokenTags(NamedTuple):
    """Where each token of a batch stands. All fields are integer tensors [B, T].

    Attributes:
        block: Number of the token's block, which grows along the clean stream; a noisy block has the number of its
            first clean token. With a causal clean stream (`DiffusionVLConfig.clean_attention`), every clean token is a
            block of its own.
        stream: `CLEAN`, or 1, 2, ... for a noisy copy. Noisy copies do not see one another.
        document: Document of the pack; documents do not see one another. `PADDING` marks padding.
    """

    block: Tensor
    stream: Tensor
    document: Tensor

    def cat(self, other: "TokenTags") -> "TokenTags":
        """These tokens followed by `other`'s, along the token axis."""
        return TokenTags(*(torch.cat(pair, dim=1) for pair in zip(self, other, strict=True)))


def may_attend(query: TokenTags, key: TokenTags) -> Tensor:
    """The block-diffusion predicate (BD3-LM, arXiv 2503.09573, section 3.2), for broadcastable tags.

    Inside one document, with blocks numbered along the row::

        key:         clean block j        noisy block j
        query
        clean i      j <= i               never
        noisy i      j <  i               j == i, same copy

    For two blocks of two tokens, both supervised (rows are queries, `c` clean and `n` noisy)::

              c0 c0 c1 c1 n0 n0 n1 n1
        c0     x  x
        c1     x  x  x  x
        n0                 x  x
        n1     x  x              x  x

    The same two blocks with a causal clean stream, where clean tokens have the numbers 0 to 3 and the noisy blocks 0
    and 2::

              c0 c1 c2 c3 n0 n0 n2 n2
        c0     x
        c1     x  x
        c2     x  x  x
        c3     x  x  x  x
        n0                 x  x
        n2     x  x              x  x

    Padding sees padding only, so that no query is left without a key.

    Returns:
        Boolean tensor, true where the query may attend to the key.
    """
    to_clean = (key.stream == CLEAN) & (
        (key.block < query.block) | ((query.stream == CLEAN) & (key.block == query.block))
    )
    to_own_copy = (key.stream != CLEAN) & (key.stream == query.stream) & (key.block == query.block)
    return (key.document == query.document) & (to_clean | to_own_copy)


def dense_mask(query: TokenTags, key: TokenTags | None = None) -> Tensor:
    """The predicate as a tensor for scaled dot-product attention.

    Args:
        query: Tags of the queries [B, Q].
        key: Tags of the keys [B, K], such as a cache followed by the queries; the queries themselves if left out.

    Returns:
        Boolean mask [B, 1, Q, K].
    """
    key = query if key is None else key
    rows = TokenTags(*(tag[:, None, :, None] for tag in query))
    columns = TokenTags(*(tag[:, None, None, :] for tag in key))
    return may_attend(rows, columns)


def flex_mask(tags: TokenTags, positions: Tensor | None = None, window: int | None = None) -> BlockMask:
    """The predicate as a FlexAttention `BlockMask` over [B, T] tokens, which skips the tiles nobody sees.

    Args:
        tags: Tags of the row [B, T]; T need not be a multiple of FlexAttention's tile.
        positions: Positions [B, T], for layers with a window.
        window: As of `within_window`.
    """

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        seen = may_attend(TokenTags(*(tag[b, q] for tag in tags)), TokenTags(*(tag[b, k] for tag in tags)))
        return seen if positions is None or window is None else seen & (positions[b, q] - positions[b, k] < window)

    batch, length = tags.block.shape
    device = tags.block.device
    # Compiled, it never holds T x T booleans; on a CPU, where it serves tests, compiling takes longer than that.
    return create_block_mask(mask_mod, batch, None, length, length, device=str(device), _compile=device.type == "cuda")


def within_window(mask: Tensor, query: Tensor, key: Tensor, window: int | None) -> Tensor:
    """A mask of layers that look back `window` tokens, as the AR base's own mask has it.

    With a window of 2, over two blocks of two tokens (`c` clean, `n` noisy; numbers are positions)::

              c0 c1 c2 c3 n0 n1 n2 n3
        c0     x  x
        c1     x  x
        c2        x  x  x
        c3           x  x
        n0                 x  x
        n1                 x  x
        n2        x              x  x
        n3                       x  x

    Args:
        mask: Boolean [B, 1, Q, K].
        query: Positions of the queries [B, Q].
        key: Positions of the keys [B, K].
        window: Tokens, the query included; None for all.
    """
    return mask if window is None else mask & ((query[:, :, None] - key[:, None, :]) < window)[:, None]
