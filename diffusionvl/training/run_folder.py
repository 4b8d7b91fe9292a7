"""The folder of a run: its checkpoints, which of them are whole, and whether a run may go on from one."""

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from safetensors import SafetensorError
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..data.record import DataError
from ..modeling.errors import UserError
from .arguments import BlockDiffusionConfig
from .dataset import RowDataset
from .model_arguments import DataArguments, ModelArguments
from .packed_dataset import PackedRowDataset

SEAL_NAME = "checkpoint_files.json"
SETTINGS_NAME = "training_args.json"
UNFINISHED = ".unfinished"  # the folder that a checkpoint is written into
PROBE_BYTES = 2**24
HASHING_THREADS = 8
PROBED = 16  # records that tell data sets apart

# The optimizer's state and the order of the data depend on these; a checkpoint fixes them.
FIXED = (
    *("learning_rate", "vision_learning_rate", "weight_decay", "optim", "optim_args", "optim_target_modules"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "train_modules", "dtype", "quantization"),
    *("lora_r", "lora_alpha", "lora_on", "lora_target_modules", "objective", "seed", "data_seed"),
    *("rows_of_a_step", "dataloader_drop_last", "train_sampling_strategy", "data_fingerprint"),
    *("max_length", "supervision", "packing", "pack_tokens", "pack_images", "noisy_views"),
)
# These change where a run writes and what it prints, nothing that it computes.
SILENT = (
    *("output_dir", "resume_from_checkpoint", "run_name", "project", "disable_tqdm", "log_level", "report_to"),
    *("local_rank", "hub_token", "dry_run", "dry_run_processes", "debug", "overwrite", "train_records", "image_root"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "global_batch_size"),  # of rows_of_a_step
)


def hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file of a folder but its seal, by the path inside it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SEAL_NAME)

    def digest(path: Path) -> str:
        found = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(2**22):
                found.update(chunk)
        return found.hexdigest()

    with ThreadPoolExecutor(HASHING_THREADS) as threads:  # hashing lets other threads run
        digests = list(threads.map(digest, files))
    return {str(path.relative_to(folder)): digest for path, digest in zip(files, digests, strict=True)}


def seal(checkpoint: Path) -> None:
    """Lists a checkpoint's files and their hashes, once all processes have written theirs, and waits for the disk."""
    Path(checkpoint, SEAL_NAME).write_text(json.dumps(hashes(checkpoint), indent=0) + "\n", encoding="utf-8")
    for path in (*checkpoint.rglob("*"), checkpoint):
        sync(path)


def sync(path: Path) -> None:
    """Waits until a file or a folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None if it is as it was when it was sealed."""
    try:
        sealed = json.loads(Path(checkpoint, SEAL_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"has no {SEAL_NAME}, which is written last"
    found = hashes(checkpoint)
    for name, digest in sealed.items():
        if name not in found:
            return f"lacks {name}"
        if found[name] != digest:
            return f"{name} is not as it was written"
    return None


def checkpoints_of(output_dir: str) -> list[Path]:
    """The checkpoints of a run, the newest first; folders of other names are not checkpoints."""
    pattern = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
    found = [(match, path) for path in Path(output_dir).glob("*") if (match := pattern.fullmatch(path.name))]
    return [path for _, path in sorted(found, key=lambda pair: int(pair[0][1]), reverse=True)]


def newest_checkpoint(output_dir: str, report: bool = True) -> str | None:
    """The newest whole checkpoint of a run. Damaged ones are reported on stderr, if wanted, and left where they are."""
    for folder in checkpoints_of(output_dir):
        wrong = damage(folder)
        if wrong is None:
            return str(folder)
        if report:
            print(f"diffusionvl train: {folder} is damaged ({wrong}); the one before it is tried", file=sys.stderr)
    return None


def delete_old_checkpoints(output_dir: str, limit: int | None, best: str | None) -> None:
    """Keeps the newest `limit` checkpoints of a run, and the best one among them."""
    if limit is None or limit < 1:
        return
    newest, *others = checkpoints_of(output_dir)
    kept = {newest} | ({Path(best)} if best is not None else set())
    for folder in others:
        if folder not in kept and len(kept) >= limit:
            shutil.rmtree(folder)
        kept.add(folder)


@contextmanager
def unfinished(output_dir: str, writes: bool) -> Iterator[Path]:
    """Inside, a folder to write a checkpoint into; what stands in it afterwards is removed.

    Args:
        output_dir: Folder of the run.
        writes: Whether this process makes and removes the folder.

    Raises:
        UserError: The disk is full.
    """
    folder = Path(output_dir, UNFINISHED)
    if writes:
        shutil.rmtree(folder, ignore_errors=True)  # what a run that was killed has left
        folder.mkdir(parents=True)
    try:
        yield folder
    except (OSError, RuntimeError, SafetensorError) as error:  # each writer has an error of its own for a full disk
        reason = full_disk(folder)
        if reason is None:
            raise
        raise UserError(
            f"output_dir {output_dir!r}: a checkpoint could not be written ({reason}); earlier ones are whole. "
            "Make room, or lower save_total_limit, and go on with `--resume_from_checkpoint last`"
        ) from error
    finally:
        if writes:
            shutil.rmtree(folder, ignore_errors=True)


def full_disk(folder: Path) -> str | None:
    """Why a folder takes no more bytes, or None if it does."""
    probe = folder / "probe"
    try:
        probe.write_bytes(bytes(PROBE_BYTES))
        sync(probe)
        probe.unlink()
    except OSError as error:
        return error.strerror
    return None


def resume_from(args: BlockDiffusionConfig) -> str | None:
    """The checkpoint to go on from: `--resume_from_checkpoint last` takes the newest in `output_dir`, if any.

    Raises:
        UserError: It is damaged or not a checkpoint; or `output_dir` holds some already, which a new run would mix
            with its own.
    """
    wanted = args.resume_from_checkpoint
    if wanted not in (None, "last"):
        wrong = damage(Path(wanted))
        if wrong is not None:
            raise UserError(
                f"resume_from_checkpoint {wanted!r} is not a whole checkpoint: it {wrong}; "
                "give `last` or the folder of another one"
            )
        return wanted
    newest = newest_checkpoint(args.output_dir, args.local_process_index == 0)
    if len(set(gather_object([newest]))) > 1:
        raise UserError(
            f"output_dir {args.output_dir!r}: the machines do not see the same checkpoints in it; "
            "give a folder that they share"
        )
    if wanted is None and newest is not None and not args.overwrite:
        raise UserError(
            f"output_dir {args.output_dir!r} already holds {Path(newest).name}; "
            "add `--resume_from_checkpoint last` to go on from it, or give another output_dir"
        )
    return None if wanted is None else newest


def remove_checkpoints(output_dir: str) -> None:
    """Removes the checkpoints of a run that is replaced, which the new one must not count among its own."""
    for folder in checkpoints_of(output_dir):
        shutil.rmtree(folder)


def recorded_settings(
    model: ModelArguments, data: DataArguments, args: BlockDiffusionConfig, rows: RowDataset | PackedRowDataset
) -> dict[str, Any]:
    """All settings of a run, as its checkpoints record them, with what distinguishes its data and batches."""
    records = (rows.rows if isinstance(rows, PackedRowDataset) else rows).records
    probed = sorted({number * (len(records) - 1) // (PROBED - 1) for number in range(PROBED)})
    texts = [_texts(records, index) for index in probed]
    return {
        **asdict(model),
        **asdict(data),
        **args.to_dict(),
        "rows_of_a_step": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "data_fingerprint": hashlib.sha256(json.dumps([len(records), texts]).encode()).hexdigest(),
    }


def _texts(records: Any, index: int) -> list[str] | None:
    """The texts of a record; None if it cannot be read."""
    try:
        return [part.get("text") for turn in records[index].messages for part in turn["content"]]
    except DataError:
        return None


def read_settings(checkpoint: str) -> dict[str, Any]:
    """The settings that a checkpoint records."""
    return json.loads(Path(checkpoint, SETTINGS_NAME).read_text(encoding="utf-8"))


def check_settings(checkpoint: str, settings: dict[str, Any]) -> list[str]:
    """Compares the settings of a run with those of the checkpoint that it goes on from.

    Args:
        checkpoint: Folder of the checkpoint.
        settings: All settings of the run, as a checkpoint records them.

    Returns:
        The settings that differ and are in force from here, as `name: old -> new`.

    Raises:
        UserError: One differs that the optimizer or the order of the data depends on.
    """
    recorded = read_settings(checkpoint)
    if recorded.get("save_only_model"):
        raise UserError(
            f"{checkpoint} was saved with save_only_model, so it lacks the optimizer; start a new run from its weights "
            "(model) in another output_dir"
        )
    given = json.loads(json.dumps(settings))
    changed = [name for name in given if name in recorded and given[name] != recorded[name]]
    for name in changed:
        if name in FIXED:
            raise UserError(
                f"{name} is {given[name]!r}, but {recorded[name]!r} in {checkpoint}, whose optimizer or order of the "
                f"data depends on it; set it to {recorded[name]!r}, or start a new run from the weights of the "
                "checkpoint (model) in another output_dir"
            )
    return [f"{name}: {recorded[name]!r} -> {given[name]!r}" for name in changed if name not in SILENT]


def is_finished(checkpoint: str | None, args: BlockDiffusionConfig) -> bool:
    """Whether the run that `args` describe has ended: its last checkpoint, if it has any, and its model are there.

    Raises:
        UserError: `output_dir` holds the model of a finished run that could only be replaced.
    """
    try:  # written after the final model
        final = json.loads(Path(args.output_dir, TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if checkpoint is None:
        if args.overwrite:
            return False
        if args.resume_from_checkpoint == "last" and _has_ended(final, args):
            return True
        raise UserError(
            f"output_dir {args.output_dir!r} holds the model of a finished run and no checkpoint to go on from; give "
            "another output_dir, or ask for it to be replaced (overwrite)"
        )
    state = json.loads(Path(checkpoint, TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    return _has_ended(state, args) and final["global_step"] >= state["global_step"]


def _has_ended(state: dict[str, Any], args: BlockDiffusionConfig) -> bool:
    """Whether a trainer's state is that of the last step."""
    return state["global_step"] >= args.max_steps if args.max_steps > 0 else state["epoch"] >= args.num_train_epochs
