"""Recipes: YAML files of settings, and the command line that overrides them."""

import json
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

from transformers import HfArgumentParser

from ..data.sources.files import read_yaml
from ..modeling.errors import UserError
from ..training.arguments import BlockDiffusionConfig
from ..training.model_arguments import DataArguments, ModelArguments
from .command_line import Parser


class _Parser(HfArgumentParser):
    """Makes flags of the dataclasses' fields; an error comes without the usage of two hundred flags before it."""

    error = Parser.error


def parse_arguments(argv: list[str] | None = None) -> tuple[ModelArguments, DataArguments, BlockDiffusionConfig]:
    """Parses `[recipe.yaml] [--key value ...]`; a key on the command line wins over the recipe's.

    Args:
        argv: Arguments; the command line's if left out.

    Raises:
        SystemExit: With code 2 and one clear line, for an unknown key or a value out of its range.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    kinds = (ModelArguments, DataArguments, BlockDiffusionConfig)
    parser = _Parser(kinds, prog="diffusionvl train", allow_abbrev=False)
    parser.usage = "diffusionvl train [recipe.yaml] [--key value ...]"
    try:
        if argv and not argv[0].startswith("-"):
            recipe = read_recipe(Path(argv.pop(0)))
            if argv and not argv[0].startswith("-"):  # it would end up in a list of the recipe's
                parser.error(f"unknown arguments: {argv[0]}")
            hints = [hint for kind in kinds for hint in get_type_hints(kind).items()]
            optional = {name for name, hint in hints if type(None) in get_args(hint)}
            nulls = {key for key, value in recipe.items() if value is None and key in optional}
            parser.set_defaults(**dict.fromkeys(nulls))  # no word of a command line stands for None
            argv = recipe_flags({key: value for key, value in recipe.items() if key not in nulls}) + argv
        *parsed, unknown = parser.parse_args_into_dataclasses(
            argv, return_remaining_strings=True, look_for_args_file=False
        )
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if unknown:
        parser.error(f"unknown arguments: {' '.join(unknown)}")
    return tuple(parsed)


def read_recipe(path: Path) -> dict[str, Any]:
    """Reads a YAML recipe.

    Raises:
        UserError: The file is missing, broken or not a mapping of keys to values.
    """
    recipe = read_yaml(path)
    if not isinstance(recipe, dict):
        raise UserError(f"recipe {path}: must be a mapping of keys to values")
    return recipe


def recipe_flags(recipe: dict[str, Any]) -> list[str]:
    """A recipe as command-line flags, so that one parser checks both."""
    flags: list[str] = []
    for key, value in recipe.items():
        if isinstance(value, list):
            flags += [f"--{key}", *map(_word, value)]
        else:
            flags.append(f"--{key}={_word(value)}")
    return flags


def _word(value: Any) -> str:
    """One YAML value as it is written after its flag."""
    if isinstance(value, bool):  # a plain `no` is false in YAML, but also the name of a strategy
        return "yes" if value else "no"
    if value is None:
        return "null"
    return json.dumps(value) if isinstance(value, dict) else str(value)
