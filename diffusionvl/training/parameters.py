"""Which parameters are trained, and how fast."""

from typing import Any

from torch import nn

from ..modeling.errors import UserError
from ..modeling.families import is_vision_parameter, module_of


def freeze_others(model: nn.Module, modules: list[str]) -> None:
    """Freezes every parameter outside the given parts of a model.

    Args:
        model: Any model; its parts are told by their names.
        modules: Some of `families.MODULES`.

    Raises:
        UserError: The model lacks one of them, or nothing is left to train.
    """
    present = {module_of(name) for name, _ in model.named_parameters()}
    absent = [module for module in modules if module not in present]
    if absent or not modules:
        raise UserError(f"train_modules {modules}: give one or more of the model's parts, {sorted(present)}")
    for name, parameter in model.named_parameters():
        if module_of(name) not in modules:
            parameter.requires_grad_(False)


def parameter_groups(
    model: nn.Module, decayed: set[str], weight_decay: float, vision_learning_rate: float
) -> list[dict[str, Any]]:
    """Groups for an optimizer: with and without weight decay, the vision tower at its own rate.

    Args:
        model: Any model.
        decayed: Names of the parameters with weight decay.
        weight_decay: Their weight decay.
        vision_learning_rate: Learning rate of the vision tower without its projector.
    """
    groups: dict[tuple[bool, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            vision, decay = is_vision_parameter(name), name in decayed
            group: dict[str, Any] = {"params": [], "weight_decay": weight_decay if decay else 0.0}
            if vision:
                group["lr"] = vision_learning_rate
            groups.setdefault((vision, decay), group)["params"].append(parameter)
    return list(groups.values())
