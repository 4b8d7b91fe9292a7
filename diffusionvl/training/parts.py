"""The parts of a model that can be trained or frozen by themselves, recognised by the model's structure."""

from collections.abc import Iterator

from torch import nn
from transformers import PreTrainedModel

PARTS = ("vision_tower", "projector", "language_model")


class Parts:
    """Which part of a model a parameter or a module belongs to.

    The language model is the decoder with the input and output embeddings. What stands outside it is a tower where it
    is transformers' image or audio encoder or cuts pictures into patches; the rest is the projector. Qwen's tower ends
    in a projector of its own, which the reference trains at the language model's learning rate: what stands after the
    tower's layers and writes as many features as the language model reads.

    Args:
        model: An AR or a block-diffusion model, with an adapter or without.

    Attributes:
        prefixes: Part of every module that is not of the language model, by the module's name.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        decoder = model.get_decoder()
        text = {id(module) for module in decoder.modules()}
        text |= {id(module) for module in (model.get_input_embeddings(), model.get_output_embeddings())}
        encoders = {id(model.get_encoder(modality)) for modality in ("image", "audio")}
        width = model.get_input_embeddings().weight.shape[-1]
        self.prefixes: dict[str, str] = {}
        for name, part in outside(model, text):
            self.prefixes[name] = "projector"
            if isinstance(part, nn.Module) and (id(part) in encoders or _cuts_pictures(part)):
                self.prefixes[name] = "vision_tower"
                self.prefixes |= {f"{name}.{tail}": "projector" for tail in tails(part, width)}

    def of(self, name: str) -> str:
        """One of `PARTS`, for the name of a parameter or a module: that of the longest prefix."""
        fitting = [prefix for prefix in self.prefixes if f"{name}.".startswith(f"{prefix}.")]
        return self.prefixes[max(fitting, key=len)] if fitting else "language_model"


def outside(module: nn.Module, text: set[int], name: str = "") -> Iterator[tuple[str, nn.Module | nn.Parameter]]:
    """The outermost modules and parameters that hold nothing of the language model, with their names.

    Args:
        module: Where to look.
        text: Identities of the language model's modules.
        name: The module's own name.
    """
    for key, parameter in module.named_parameters(recurse=False):
        yield f"{name}{key}", parameter
    for key, child in module.named_children():
        inside = {id(each) for each in child.modules()}
        if id(child) in text:
            continue
        if inside & text:
            yield from outside(child, text, f"{name}{key}.")
        elif any(True for _ in child.parameters()):
            yield f"{name}{key}", child


def _cuts_pictures(module: nn.Module) -> bool:
    return any(isinstance(each, nn.Conv2d | nn.Conv3d) for each in module.modules())


def tails(tower: nn.Module, width: int) -> list[str]:
    """Names of a tower's modules after its layers that write `width` features."""
    stacks = [(name, module) for name, module in tower.named_modules() if isinstance(module, nn.ModuleList)]
    if not stacks:
        return []
    layers, _ = max(stacks, key=lambda stack: len([*stack[1].modules()]))
    found = []
    parent, path = tower, ""
    for key in layers.split("."):
        children = list(parent.named_children())
        after = children[1 + [name for name, _ in children].index(key) :]
        found += [f"{path}{name}" for name, child in after if _last_width(child) == width]
        parent, path = parent.get_submodule(key), f"{path}{key}."
    return found


def _last_width(module: nn.Module) -> int | None:
    """Features that a module's last linear layer or convolution writes."""
    widths = [
        each.out_features if isinstance(each, nn.Linear) else each.out_channels
        for each in module.modules()
        if isinstance(each, nn.Linear | nn.Conv2d)
    ]
    return widths[-1] if widths else None
