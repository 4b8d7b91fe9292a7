"""From rows to a padded batch.

Legend: A axes of a position, B rows of the batch, K documents, T tokens of the longest row.
"""

from typing import Any

import torch
from torch import Tensor

from .media import concatenate
from .streams import IGNORED, Row

PADDING = -1


def collate(
    packs: list[list[Row]],
    pad_id: int,
    placeholder_ids: list[int],
    filler: Row | None = None,
    pad_to_multiple_of: int = 1,
    least_width: int = 0,
) -> dict[str, Any]:
    """Joins the documents of each pack into one row, and pads rows on the right into a batch.

    A noisy copy of an image placeholder must not ask the base for an image of its own: it holds the padding id and is
    listed in `media_twins`, by which the model gives it its clean twin's features.

    Args:
        packs: The documents of each of B rows; one each without packing.
        pad_id: Padding id.
        placeholder_ids: Ids that stand for image and video features.
        filler: A smallest image for the padding of a batch that has none. Its features reach padding alone, but every
            process of a run then uses the vision tower in every step, so that none waits in vain for its gradients.
        pad_to_multiple_of: T is a multiple of this.
        least_width: T is not smaller.

    Returns:
        `input_ids`, `labels`, `block_ids`, `stream_ids`, `document_ids` (0 to K - 1 over the batch, -1 for padding)
        [B, T], `position_ids` [A, B, T], `twins` [B, T] (the clean twin of each token, as an index into the flattened
        batch), `media_twins` [2, n] (noisy placeholders and their clean twins, likewise), `rows` [K] (the documents'
        indices in the data set), and the media inputs, concatenated in the order of the documents.
    """
    documents = [row for pack in packs for row in pack]
    indices = torch.tensor([row.index for row in documents])
    numbers = iter(range(len(documents)))
    document_ids = [torch.cat([torch.full((len(row),), next(numbers)) for row in pack]) for pack in packs]
    if filler is not None and not any(row.media for row in documents):
        packs = [[*packs[0], filler], *packs[1:]]
        document_ids[0] = _pad_last(document_ids[0], len(document_ids[0]) + len(filler), PADDING)
        documents.append(filler)
    rows = [join(pack) for pack in packs]
    width = -(-max(least_width, *(len(row) for row in rows)) // pad_to_multiple_of) * pad_to_multiple_of
    input_ids = _pad([row.input_ids for row in rows], width, pad_id)
    stream_ids = _pad([row.stream_ids for row in rows], width, 0)
    placeholder = torch.isin(input_ids, torch.tensor(placeholder_ids, dtype=torch.long)) & (stream_ids > 0)
    noisy = placeholder.flatten().nonzero()[:, 0]
    twins = _pad([row.twins for row in rows], width, 0) + torch.arange(len(rows))[:, None] * width
    batch = {
        "input_ids": input_ids.masked_fill(placeholder, pad_id),
        "labels": _pad([row.labels for row in rows], width, IGNORED),
        "block_ids": _pad([row.block_ids for row in rows], width, 0),
        "stream_ids": stream_ids,
        "document_ids": _pad(document_ids, width, PADDING),
        "position_ids": torch.stack([_pad_last(row.position_ids, width, 0) for row in rows], dim=1),
        "media_twins": torch.stack([noisy, twins.flatten()[noisy]]),
        "twins": twins,
        "rows": indices,
    }
    names = dict.fromkeys(name for row in documents for name in row.media)
    return batch | {name: concatenate([row.media[name] for row in documents if name in row.media]) for name in names}


def join(rows: list[Row]) -> Row:
    """Joins rows, one after another, into one."""
    begins = torch.tensor([0, *(len(row) for row in rows[:-1])]).cumsum(0).tolist()
    return Row(
        input_ids=torch.cat([row.input_ids for row in rows]),
        labels=torch.cat([row.labels for row in rows]),
        block_ids=torch.cat([row.block_ids for row in rows]),
        stream_ids=torch.cat([row.stream_ids for row in rows]),
        position_ids=torch.cat([row.position_ids for row in rows], dim=1),
        twins=torch.cat([row.twins + begin for row, begin in zip(rows, begins, strict=True)]),
    )


def _pad(tensors: list[Tensor], width: int, value: int) -> Tensor:
    """Stacks tensors [t] as [B, width]."""
    return torch.stack([_pad_last(tensor, width, value) for tensor in tensors])


def _pad_last(tensor: Tensor, width: int, value: int) -> Tensor:
    """Pads the last axis on the right."""
    return torch.nn.functional.pad(tensor, (0, width - tensor.shape[-1]), value=value)
