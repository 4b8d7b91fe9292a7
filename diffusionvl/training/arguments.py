"""Arguments of a training run: three flat dataclasses, one YAML recipe, command-line overrides."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser, TrainingArguments

from ..data.conversation import SUPERVISIONS
from ..objective.loss import NORMALIZERS
from ..objective.noise_schedule import NOISE_ORDERS

OBJECTIVES = ("block_diffusion", "ar")


def _check(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {known}, got {value!r}")


@dataclass
class ModelArguments:
    """Which model is trained."""

    model: str = field(
        metadata={"help": "checkpoint folder or hub id: made by `diffusionvl translate` for block diffusion, or AR"}
    )
    dtype: str = field(default="float32", metadata={"help": "type of the weights: float32, bfloat16 or auto"})


@dataclass
class DataArguments:
    """Which records it is trained on, and how they become rows."""

    train_records: list[str] = field(metadata={"help": "record files, .jsonl or .json"})
    eval_records: list[str] | None = field(default=None, metadata={"help": "record files for the evaluation loss"})
    image_root: str | None = field(
        default=None, metadata={"help": "folder that relative image paths start from; the record file's by default"}
    )
    max_length: int | None = field(default=None, metadata={"help": "longest clean stream in tokens; longer is cut"})
    supervision: str = field(default="assistant", metadata={"help": f"which tokens carry loss, of {SUPERVISIONS}"})

    def __post_init__(self) -> None:
        _check("supervision", self.supervision, SUPERVISIONS)


@dataclass
class BlockDiffusionConfig(TrainingArguments):
    """transformers' TrainingArguments, and the objective."""

    objective: str = field(default="block_diffusion", metadata={"help": f"one of {OBJECTIVES}"})
    normalizer: str = field(
        default="per_sample", metadata={"help": f"what the loss is divided by, one of {NORMALIZERS}"}
    )
    noise_order: str = field(
        default="permuted", metadata={"help": f"order of the noise levels over a row's blocks, one of {NOISE_ORDERS}"}
    )
    vision_learning_rate: float | None = field(
        default=None, metadata={"help": "learning rate of the vision tower; that of the rest by default"}
    )
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "learning rate schedule"})
    warmup_steps: float = field(default=0.03, metadata={"help": "warm-up steps, or their share if below 1"})
    remove_unused_columns: bool = field(default=False, metadata={"help": "rows are no columns: keep this off"})
    report_to: str | None = field(default="none", metadata={"help": "wandb, tensorboard, trackio or none"})
    logging_steps: float = field(default=10, metadata={"help": "steps between two lines of the log"})
    average_tokens_across_devices: bool = field(
        default=True, metadata={"help": "divide the loss by the count over all processes"}
    )

    def __post_init__(self) -> None:
        _check("objective", self.objective, OBJECTIVES)
        _check("normalizer", self.normalizer, NORMALIZERS)
        _check("noise_order", self.noise_order, NOISE_ORDERS)
        super().__post_init__()


def parse_arguments(argv: list[str] | None = None) -> tuple[ModelArguments, DataArguments, BlockDiffusionConfig]:
    """Parses `[recipe.yaml] [--key value ...]`; a key on the command line wins over the recipe's.

    Args:
        argv: Arguments; the command line's if left out.

    Raises:
        SystemExit: With code 2 and one clear line, for an unknown key or a value out of its range.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = HfArgumentParser((ModelArguments, DataArguments, BlockDiffusionConfig), prog="diffusionvl train")
    recipe: list[str] = []
    if argv and not argv[0].startswith("-"):
        try:
            recipe = recipe_flags(Path(argv.pop(0)))
        except ValueError as error:
            parser.error(str(error))
    if "-h" in argv or "--help" in argv:
        parser.usage = "diffusionvl train [recipe.yaml] [--key value ...]"
    try:
        return parser.parse_args_into_dataclasses([*recipe, *argv], look_for_args_file=False)
    except ValueError as error:
        sys.exit(parser.error(str(error)))


def recipe_flags(path: Path) -> list[str]:
    """A YAML recipe as command-line flags, so that one parser checks both.

    Raises:
        ValueError: The file is missing, broken or no mapping of plain keys.
    """
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"recipe {path}: can not be read ({error.strerror})") from error
    except yaml.YAMLError as error:
        raise ValueError(f"recipe {path}: broken YAML: {error}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"recipe {path}: must be a mapping of keys to values")
    flags: list[str] = []
    for key, value in recipe.items():
        flags += [f"--{key}", *_flag_values(value)]
    return flags


def _flag_values(value: Any) -> list[str]:
    """One YAML value as the words behind its flag."""
    if isinstance(value, list):
        return [str(item) for item in value]
    if isinstance(value, dict):
        return [json.dumps(value)]
    return [str(value)]
