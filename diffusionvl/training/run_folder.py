"""The folder of a run: its lock, its checkpoints and which of them are whole."""

import json
import os
import sys
from pathlib import Path

from accelerate.utils import gather_object
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..modeling.errors import UserError
from .arguments import BlockDiffusionConfig

SEAL_NAME = "checkpoint_files.json"


def seal(checkpoint: Path) -> None:
    """Lists a checkpoint's files and their sizes, once all processes have written theirs: it is whole."""
    sizes = {str(path.relative_to(checkpoint)): path.stat().st_size for path in checkpoint.rglob("*") if path.is_file()}
    unfinished = checkpoint / f"{SEAL_NAME}.new"
    unfinished.write_text(json.dumps(sizes, indent=0) + "\n", encoding="utf-8")
    os.replace(unfinished, checkpoint / SEAL_NAME)


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None if it is as it was when it was sealed."""
    try:
        sizes = json.loads(Path(checkpoint, SEAL_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"has no {SEAL_NAME}, which is written last"
    for name, size in sizes.items():
        path = checkpoint / name
        if not path.is_file():
            return f"lacks {name}"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} of {size:,} bytes"
    return None


def newest_checkpoint(output_dir: str, tell: bool = True) -> str | None:
    """The newest whole checkpoint of a run. Others are told on stderr, if wanted, and left where they are."""
    folders = Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*[0-9]")
    for folder in sorted(folders, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        wrong = damage(folder)
        if wrong is None:
            return str(folder)
        if tell:
            print(f"diffusionvl train: {folder} is only half written ({wrong}) and is left out", file=sys.stderr)
    return None


def resume_from(args: BlockDiffusionConfig) -> str | None:
    """The checkpoint to go on from: `--resume_from_checkpoint last` takes the newest in `output_dir`, if any.

    Raises:
        UserError: It is no whole checkpoint; or `output_dir` holds some already, which a new run would mix with its
            own.
    """
    wanted = args.resume_from_checkpoint
    if wanted not in (None, "last"):
        wrong = damage(Path(wanted))
        if wrong is not None:
            raise UserError(
                f"resume_from_checkpoint {wanted!r} is no whole checkpoint: it {wrong}; "
                "give `last` or the folder of another one"
            )
        return wanted
    newest = newest_checkpoint(args.output_dir, args.local_process_index == 0)
    if len(set(gather_object([newest]))) > 1:
        raise UserError(
            f"output_dir {args.output_dir!r}: the machines do not see the same checkpoints in it; "
            "give a folder that they share"
        )
    if wanted is None and newest is not None:
        raise UserError(
            f"output_dir {args.output_dir!r} already holds {Path(newest).name}; "
            "add `--resume_from_checkpoint last` to go on from it, or give another output_dir"
        )
    return newest


def is_finished(checkpoint: str, args: BlockDiffusionConfig) -> bool:
    """Whether a checkpoint is the last one of the run that `args` describe, and the final model stands beside it."""
    state = json.loads(Path(checkpoint, TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    done = state["global_step"] >= args.max_steps if args.max_steps > 0 else state["epoch"] >= args.num_train_epochs
    try:  # written behind the final model
        final = json.loads(Path(args.output_dir, TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return done and final["global_step"] >= state["global_step"]
