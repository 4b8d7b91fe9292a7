"""The flags of commands that answer: the model, where it runs, and how it decodes."""

import argparse
from pathlib import Path
from typing import Any

from ..modeling.errors import UserError

# Decoding settings by name: type, placeholder and help of the flag.
DECODING: dict[str, tuple[type, str, str]] = {
    "max_new_tokens": (int, "N", "longest answer, in tokens"),
    "denoising_steps": (int, "S", "steps a block, 1 to its size"),
    "remasking": (str, "NAME", "policy, such as low_confidence_dynamic"),
    "confidence_threshold": (float, "P", "dynamic remasking keeps tokens that are surer than this"),
    "entropy_bound": (float, "H", "nats that entropy-bounded remasking spends in a step"),
    "temperature": (float, "T", "0 takes the most probable token"),
    "top_k": (int, "K", "draw among the K most probable tokens; 0 for all"),
    "top_p": (float, "P", "draw among the fewest tokens that reach P"),
    "stop_strings": (str, "TEXT", "end the answer at this text; repeat for more"),
    "max_time": (float, "S", "seconds after which the answer ends"),
}


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags for decoding and for the machine."""
    decoding = parser.add_argument_group("decoding (the checkpoint's own settings where left out)")
    for name, (kind, placeholder, text) in DECODING.items():
        several: dict[str, Any] = {"action": "append"} if name == "stop_strings" else {}
        flag = "--stop" if name == "stop_strings" else f"--{name.replace('_', '-')}"
        decoding.add_argument(flag, dest=name, type=kind, metavar=placeholder, help=text, **several)
    decoding.add_argument("--seed", type=int, metavar="N", help="seed of the draws where the temperature is not 0")
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", help="such as cpu or cuda:0; cuda if there is one, else cpu")
    machine.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto")
    machine.add_argument("--trust-remote-code", action="store_true", help="run code from the model's folder")


def check_model_path(model: str) -> None:
    """Checks, before anything slow, that a model's path is a folder or could be the id of a model on the hub.

    Raises:
        UserError: It is neither.
    """
    if not Path(model).is_dir() and (model.count("/") != 1 or model.startswith((".", "/", "~"))):
        raise UserError(f"--model {model!r}: no such folder; give a checkpoint that `diffusionvl translate` wrote")


def given_settings(arguments: argparse.Namespace, block_size: int | None) -> dict[str, Any]:
    """Returns the decoding settings that were given.

    Args:
        arguments: The parsed flags.
        block_size: The block size of the checkpoint; None for an AR one.

    Raises:
        UserError: One is out of its range; the message names it, its value and the range.
    """
    from ..modeling.generation_configuration_diffusionvl import DiffusionVLGenerationConfig

    given = {name: getattr(arguments, name) for name in DECODING if getattr(arguments, name) is not None}
    DiffusionVLGenerationConfig(**given)
    steps = given.get("denoising_steps", 1)
    if block_size is not None and steps > block_size:
        raise UserError(
            f"--denoising-steps {steps} is more than the block size of {arguments.model!r}; give 1 to {block_size}"
        )
    if arguments.seed is not None and not 0 <= arguments.seed < 2**63:
        raise UserError(f"--seed {arguments.seed}: give 0 to {2**63 - 1}")
    return given
