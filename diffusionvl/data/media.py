"""Image and video inputs of several texts, joined as one.

A processor gives tensors whose first axis counts images, tiles or patches; families differ in the others.
"""

import torch
from torch import Tensor


def concatenate(tensors: list[Tensor]) -> Tensor:
    """Concatenates media inputs of several texts along the first axis, padded with zeros where another axis differs.

    Bases that cut images into tiles have an axis of tiles, and some of image sizes, which they mask or measure.
    """
    if len(tensors) == 1:  # a picture's pixels are worth no copy
        return tensors[0]
    shape = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    return torch.cat([_pad_axes(tensor, shape) for tensor in tensors])


def _pad_axes(tensor: Tensor, shape: list[int]) -> Tensor:
    """Pads every axis but the first at its end, up to `shape`."""
    missing = [want - have for want, have in zip(shape, tensor.shape[1:], strict=True)]
    return torch.nn.functional.pad(tensor, [size for have in reversed(missing) for size in (0, have)])
