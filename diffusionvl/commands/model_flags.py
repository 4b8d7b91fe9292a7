"""The flags of commands that answer: the model, where it runs, and how it decodes."""

import argparse
from pathlib import Path
from typing import Any

from ..modeling.errors import UserError
from ..modeling.settings import SETTINGS

# Settings that are not flags: they are about ids or tensors, or a command has one answer to each prompt.
NOT_FLAGS = {"max_length", "num_return_sequences", "num_beams", "eos_token_id", "pad_token_id", "bos_token_id"}
OF_FILES = ("json_schema", "grammar")  # settings whose flags name a file that holds the value
DECODING = [name for name, row in SETTINGS.items() if row.group != "output" and name not in NOT_FLAGS]


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags for decoding and for the machine."""
    decoding = parser.add_argument_group("decoding (the checkpoint's own settings where left out)")
    for name in DECODING:
        row, flags = SETTINGS[name], [f"--{name.replace('_', '-')}"]
        kind: dict[str, Any] = {"type": row.range.kind, "metavar": row.range.kind.__name__.upper()}
        if row.range.kind is bool:
            kind = {"action": argparse.BooleanOptionalAction}
        if name == "stop_strings":
            flags, kind = ["--stop", *flags], {"action": "append", "metavar": "TEXT"}
        if name in OF_FILES:
            kind = {"metavar": "FILE"}
        if name == "choices":
            kind["metavar"] = "A,B,C"
        text = row.meaning[0].lower() + row.meaning[1:].removesuffix(".").replace("%", "%%")
        decoding.add_argument(*flags, dest=name, help=f"{text}; {row.range.allowed.partition(', or None')[0]}", **kind)
    decoding.add_argument("--seed", type=int, metavar="N", help="seed of the draws where the temperature is not 0")
    add_machine_flags(parser)


def add_machine_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags for the machine."""
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


def check_translated(config: Any, model: str, flag: str = "") -> None:
    """Checks that a checkpoint holds a block-diffusion model.

    Args:
        config: The checkpoint's config.
        model: Its folder or hub id.
        flag: The flag that named it, with a space after it; nothing for an argument without a flag.

    Raises:
        UserError: It is an AR checkpoint.
    """
    from ..modeling.configuration_diffusionvl import DiffusionVLConfig

    if not isinstance(config, DiffusionVLConfig):
        raise UserError(
            f"{flag}{model!r} is an autoregressive checkpoint (model type {config.model_type!r}); "
            f"run `diffusionvl translate {model} --out DIR` first and give DIR"
        )


def _read_file(name: str, path: str) -> str:
    """The text of the file that a setting's flag names."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"--{name.replace('_', '-')} {path!r}: no such file; give a file that holds it") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"--{name.replace('_', '-')} {path!r}: is not UTF-8 ({error.reason}); write it in UTF-8"
        ) from error


def given_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the decoding settings that were given.

    Args:
        arguments: The parsed flags.

    Raises:
        UserError: One is outside its range, or its file cannot be read; the message names it, its value and the range.
    """
    given = {name: getattr(arguments, name) for name in DECODING if getattr(arguments, name) is not None}
    given |= {name: _read_file(name, given[name]) for name in OF_FILES if name in given}
    for name, value in given.items():
        if not SETTINGS[name].range.fits(value):
            allowed = SETTINGS[name].range.allowed.partition(", or None")[0]
            raise UserError(f"--{name.replace('_', '-')} must be {allowed}, got {value!r}")
    if arguments.seed is not None and not 0 <= arguments.seed < 2**63:
        raise UserError(f"--seed {arguments.seed}: give 0 to {2**63 - 1}")
    return given
