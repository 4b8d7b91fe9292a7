"""The layers of a model's parts, as memory and floating-point operations are reckoned from them."""

import math
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedModel

from ..parts import Parts


class Part(NamedTuple):
    """A stack of layers in a model.

    Attributes:
        layers: Their number.
        hidden: Width of the first linear layer's input.
        widths: Inputs and outputs of all linear layers together.
        weights: Weights of all linear layers, also where ZeRO-3 has shared them out.
        trained_weights: Those of them that are trained.
        layer_parameters: Parameters of one layer.
        trained: Whether any parameter is trained.
    """

    layers: int
    hidden: int
    widths: int
    weights: int
    trained_weights: int
    layer_parameters: int
    trained: bool

    @classmethod
    def of(cls, model: PreTrainedModel, name: str) -> "Part":
        """Reads one of `parts.PARTS` off a model; without layers if the model lacks it. The LM head belongs to none."""
        head, part_of = model.get_output_embeddings(), Parts(model).of
        modules = [(key, module) for key, module in model.named_modules() if part_of(key) == name]
        within = {id(module) for module in head.modules()}
        linear = [module for _, module in modules if isinstance(module, nn.Linear) and id(module) not in within]
        stacks = [module for _, module in modules if isinstance(module, nn.ModuleList)]
        stack = max(stacks, key=len, default=nn.ModuleList())
        sizes = [(module.in_features * module.out_features, module.weight.requires_grad) for module in linear]
        return cls(
            layers=len(stack),
            hidden=linear[0].in_features if linear else 0,
            widths=sum(module.in_features + module.out_features for module in linear),
            weights=sum(size for size, _ in sizes),
            trained_weights=sum(size for size, trained in sizes if trained),
            layer_parameters=sum(parameter.numel() for parameter in stack.parameters()) // max(len(stack), 1),
            trained=any(p.requires_grad for key, p in model.named_parameters() if part_of(key) == name),
        )


def count_patches(model: nn.Module, batch: dict[str, Any]) -> int:
    """Patches of a batch's images and videos, rows or whole images: the tower's first convolution takes one each."""
    pixels = sum(batch[name].numel() for name in ("pixel_values", "pixel_values_videos") if name in batch)
    if not pixels:
        return 0
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Conv3d))
    return pixels // (first.in_channels * math.prod(first.kernel_size))
