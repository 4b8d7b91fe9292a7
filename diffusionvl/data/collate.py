"""From rows to a padded batch.

Legend: A axes of a position, B rows, T tokens of the longest row.
"""

from typing import Any

import torch
from torch import Tensor

from .streams import IGNORED, Row

PADDING = -1


def collate(rows: list[Row], pad_id: int, placeholder_ids: list[int]) -> dict[str, Any]:
    """Pads rows on the right into a batch for the model and the objective.

    A noisy copy of an image placeholder must not ask the base for an image of its own: it holds the padding id and is
    listed in `media_twins`, by which the model gives it its clean twin's features.

    Args:
        rows: B rows.
        pad_id: Padding id.
        placeholder_ids: Ids that stand for image and video features.

    Returns:
        `input_ids`, `labels`, `block_ids`, `stream_ids`, `document_ids` (-1 for padding) [B, T], `position_ids`
        [A, B, T], `media_twins` [2, n] (noisy placeholders and their clean twins, as indices into the flattened
        batch), `rows` [B] (indices into the data set), and the media inputs, concatenated.
    """
    width = max(len(row) for row in rows)
    input_ids = _pad([row.input_ids for row in rows], width, pad_id)
    stream_ids = _pad([row.stream_ids for row in rows], width, 0)
    lengths = torch.tensor([len(row) for row in rows])
    placeholder = torch.isin(input_ids, torch.tensor(placeholder_ids, dtype=torch.long)) & (stream_ids > 0)
    noisy = placeholder.flatten().nonzero()[:, 0]
    twins = _pad([row.twins for row in rows], width, 0) + torch.arange(len(rows))[:, None] * width
    batch = {
        "input_ids": input_ids.masked_fill(placeholder, pad_id),
        "labels": _pad([row.labels for row in rows], width, IGNORED),
        "block_ids": _pad([row.block_ids for row in rows], width, 0),
        "stream_ids": stream_ids,
        "document_ids": torch.where(torch.arange(width) < lengths[:, None], 0, PADDING),
        "position_ids": torch.stack([_pad_last(row.position_ids, width, 0) for row in rows], dim=1),
        "media_twins": torch.stack([noisy, twins.flatten()[noisy]]),
        "rows": torch.tensor([row.index for row in rows]),
    }
    names = dict.fromkeys(name for row in rows for name in row.media)
    return batch | {name: concatenate([row.media[name] for row in rows if name in row.media]) for name in names}


def concatenate(tensors: list[Tensor]) -> Tensor:
    """Concatenates media inputs of several rows along the first axis, padded with zeros where they differ in another.

    Bases that cut images into tiles have an axis of tiles, and some of image sizes, which they mask or measure.
    """
    shape = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    return torch.cat([_pad_axes(tensor, shape) for tensor in tensors])


def _pad_axes(tensor: Tensor, shape: list[int]) -> Tensor:
    """Pads all axes but the first behind, up to `shape`."""
    missing = [want - have for want, have in zip(shape, tensor.shape[1:], strict=True)]
    return torch.nn.functional.pad(tensor, [size for have in reversed(missing) for size in (0, have)])


def _pad(tensors: list[Tensor], width: int, value: int) -> Tensor:
    """Stacks tensors [t] as [B, width]."""
    return torch.stack([_pad_last(tensor, width, value) for tensor in tensors])


def _pad_last(tensor: Tensor, width: int, value: int) -> Tensor:
    """Pads the last axis on the right."""
    return torch.nn.functional.pad(tensor, (0, width - tensor.shape[-1]), value=value)
