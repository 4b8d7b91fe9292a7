"""Which parameters are trained, and how fast."""

from typing import Any

from transformers import PreTrainedModel

from ..modeling.errors import UserError
from .parts import Parts


def freeze_others(model: PreTrainedModel, modules: list[str]) -> None:
    """Freezes every parameter outside the given parts of a model.

    Args:
        model: Any model.
        modules: Some of `parts.PARTS`.

    Raises:
        UserError: The model lacks one of them, or nothing is left to train.
    """
    parts = Parts(model)
    present = {parts.of(name) for name, _ in model.named_parameters()}
    absent = [module for module in modules if module not in present]
    if absent or not modules:
        raise UserError(f"train_modules {modules}: give one or more of the model's parts, {sorted(present)}")
    for name, parameter in model.named_parameters():
        if parts.of(name) not in modules:
            parameter.requires_grad_(False)


def parameter_groups(
    model: PreTrainedModel, decayed: set[str], weight_decay: float, vision_learning_rate: float
) -> list[dict[str, Any]]:
    """Groups for an optimizer: with and without weight decay, the vision tower at its own rate.

    Args:
        model: Any model.
        decayed: Names of the parameters with weight decay.
        weight_decay: Their weight decay.
        vision_learning_rate: Learning rate of the vision tower without its projector.
    """
    parts = Parts(model)
    groups: dict[tuple[bool, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            vision, decay = parts.of(name) == "vision_tower", name in decayed
            group: dict[str, Any] = {"params": [], "weight_decay": weight_decay if decay else 0.0}
            if vision:
                group["lr"] = vision_learning_rate
            groups.setdefault((vision, decay), group)["params"].append(parameter)
    return list(groups.values())
