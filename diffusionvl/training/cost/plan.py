"""What a run would be: model, batch, steps and memory, for `--dry_run`. Nothing is trained, and no weights are loaded.

Legend: B rows, T tokens of a row.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_utils import set_zero3_state

from ...data.record import DataError
from ...data.streams import IGNORED
from ...modeling.block_masks import CLEAN, PADDING
from ...modeling.configuration_diffusionvl import DiffusionVLConfig
from ...modeling.errors import UserError
from ...modeling.families import auto_class
from ..arguments import BlockDiffusionConfig
from ..dataset import RowDataset
from ..losses import clean_targets, has_twin
from ..packed_dataset import PackedRowDataset, RowSizes
from ..parts import PARTS, Parts
from .memory import MemoryLine, estimate, sharding_of
from .model_parts import count_patches

MEASURED = 16  # records that the number of tokens is estimated from


def build_meta_model(config: PreTrainedConfig, dtype: str | torch.dtype) -> PreTrainedModel:
    """The model of a config on the meta device: shapes without weights, at any size."""
    settings = {} if dtype == "auto" else {"dtype": dtype}
    with torch.device("meta"), set_zero3_state():  # else ZeRO-3 would spread it over the processes
        return auto_class(config).from_config(config, **settings)


def plan(
    model: PreTrainedModel,
    rows: Any,
    args: BlockDiffusionConfig,
    max_length: int | None = None,
    quantized: bool = False,
    teacher: PreTrainedModel | None = None,
) -> str:
    """The plan of a run, as text.

    Args:
        model: From `build_meta_model`, with its adapter and frozen as it will be.
        rows: The training data set.
        args: Settings; `dry_run_processes` says on how many GPUs.
        max_length: The longest clean stream, if there is a limit.
        quantized: Whether the language model is loaded in four bits.
        teacher: The AR model that is learned from, from `build_meta_model`.

    Raises:
        DataError: The first records cannot be used.
        UserError: There are none.
    """
    size = args.per_device_train_batch_size
    if len(rows) == 0:
        raise UserError("train_records hold no record")
    batch = rows.collate([rows[index % len(rows)] for index in range(size)])
    if batch["error"] is not None:
        raise batch["error"]
    sections = (
        _model(model),
        ("loss", [loss_of(args)]),
        _batch(batch, size),
        _steps(len(rows), args),
        _memory(model, batch, args, max_length, quantized, teacher),
    )
    return "\n".join(
        f"{name:8}{lines[0]}" + "".join(f"\n        {line}" for line in lines[1:]) for name, lines in sections
    )


def _model(model: PreTrainedModel) -> tuple[str, list[str]]:
    config = model.config
    name = config.model_type
    if isinstance(config, DiffusionVLConfig):
        name = f"{name} over {config.base_config.model_type}, blocks of {config.block_size} tokens"
    counts = {part: [0, 0] for part in PARTS}
    parts = Parts(model)
    for key, parameter in model.named_parameters():
        counts[parts.of(key)][0] += parameter.numel()
        counts[parts.of(key)][1] += parameter.numel() * parameter.requires_grad
    total, trained = (sum(count[number] for count in counts.values()) for number in (0, 1))
    lines = [f"{name}: {total:,} parameters in {model.dtype}, {trained:,} trained"]
    lines += [f"{part}: {count:,} parameters, {own:,} trained" for part, (count, own) in counts.items() if count]
    return "model", lines


def _batch(batch: dict[str, Any], size: int) -> tuple[str, list[str]]:
    real = batch["document_ids"] != PADDING
    clean = int((real & (batch["stream_ids"] == CLEAN)).sum())
    supervised = int((batch["labels"] != IGNORED).sum())
    lines = [
        f"the first {size} rows: {clean:,} clean and {int(real.sum()) - clean:,} noisy tokens, "
        f"{supervised:,} supervised, {int((~real).sum()):,} of padding"
    ]
    shapes = ((name, value) for name, value in batch.items() if isinstance(value, Tensor) and value.ndim)
    lines += [f"{name}: {[*value.shape]} {value.dtype}" for name, value in shapes]
    return "batch", lines


def loss_of(args: BlockDiffusionConfig) -> str:
    """What a run minimises, in words."""
    if args.objective == "ar":
        return "autoregression"
    loss = "block diffusion"
    if args.targets == "teacher":
        beside = "" if args.teacher_weight == 1 else f" (weight {args.teacher_weight:g}, beside the records' tokens)"
        loss += f" towards {args.teacher or 'the clean stream'}{beside}"
    loss += f" + {args.ar_weight:g} x next tokens of the clean stream" if args.ar_weight else ""
    loss += f" + {args.certainty_weight:g} x entropy where it is right" if args.certainty_weight else ""
    loss += "; masks where the model is least certain" if args.own_states else ""
    loss += f"; masks slope by {args.mask_slope:g}" if args.mask_slope else ""
    loss += f"; blocks grow: {args.block_growth}" if args.block_growth else ""
    loss += "; block sizes are drawn" if args.random_block_size else ""
    begin = args.on_policy_from
    if begin is None:
        return loss
    when = f"after {begin:.0%} of the run" if begin < 1 else f"after {begin:g} steps"
    return f"{loss}; on answers of the model's own {when if begin else 'in every step'}"


def outline(model: PreTrainedModel, rows: RowDataset | PackedRowDataset, args: BlockDiffusionConfig) -> str:
    """What a run is about to do, in a few lines: records, rows, tokens, trained parameters, steps and loss.

    Args:
        model: Frozen as it is.
        rows: The training data set.
        args: Settings of the run.

    Raises:
        UserError: There are no records.
    """
    if len(rows) == 0:
        raise UserError("train_records hold no record")
    documents = rows.rows if isinstance(rows, PackedRowDataset) else rows
    some = [number * len(documents) // MEASURED for number in range(MEASURED)]
    sizes = (RowSizes(documents, some)[number] for number in range(MEASURED))
    lengths = [size[0] for size in sizes if not isinstance(size, DataError)]
    tokens = sum(lengths) / max(len(lengths), 1) * len(documents)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in model.parameters())
    size, accumulated = args.per_device_train_batch_size, args.gradient_accumulation_steps
    step, steps = steps_of(len(rows), args, args.world_size)
    return (
        f"{len(documents):,} records in {len(rows):,} rows, about {tokens:,.0f} tokens an epoch, noisy ones included\n"
        f"{trained:,} of {total:,} parameters are trained in {model.dtype} on {args.world_size} x {args.device.type}\n"
        f"{steps:,} steps of {size} rows x {args.world_size} processes x {accumulated} accumulated; {step:,} an epoch\n"
        f"loss: {loss_of(args)}"
    )


def steps_of(rows: int, args: BlockDiffusionConfig, processes: int) -> tuple[int, int]:
    """Optimizer steps of an epoch and of the run."""
    epoch = -(-rows // (args.per_device_train_batch_size * processes * args.gradient_accumulation_steps))
    return epoch, args.max_steps if args.max_steps > 0 else int(-(-epoch * args.num_train_epochs // 1))


def _steps(rows: int, args: BlockDiffusionConfig) -> tuple[str, list[str]]:
    gpus, size, accumulated = args.dry_run_processes, args.per_device_train_batch_size, args.gradient_accumulation_steps
    total = size * gpus * accumulated
    epoch, steps = steps_of(rows, args, gpus)
    return "steps", [
        f"global batch {total} = {size} rows x {gpus} processes x {accumulated} accumulated",
        f"{rows:,} rows an epoch = {epoch:,} steps; {steps:,} steps in all",
    ]


def _memory(
    model: PreTrainedModel,
    batch: dict[str, Any],
    args: BlockDiffusionConfig,
    max_length: int | None,
    quantized: bool,
    teacher: PreTrainedModel | None,
) -> tuple[str, list[str]]:
    patches = count_patches(model, batch)
    losses = int((batch["labels"] != IGNORED).sum())  # at t = 1; half of them on average
    if args.ar_weight:
        losses += len(clean_targets(batch))
    if args.targets == "teacher":
        losses += int(has_twin(batch).sum())
    tokens = batch["input_ids"].numel()
    taught = [] if teacher is None else [_teacher(teacher)]
    items = estimate(model, args, tokens, losses, patches, quantized) + taught
    lines = [
        f"{_total(items)} a GPU with {sharding_of(args).name}, an estimate for this batch; P parameters, P_t trained, "
        "V vocabulary"
    ]
    lines += [f"{item.name}: {_size(item.bytes)} = {item.formula}" for item in items if item.bytes]
    if max_length is not None:
        rows = len(batch["labels"]) * max_length
        logits = rows * (1 + bool(args.ar_weight) + (args.targets == "teacher"))
        longest = estimate(model, args, 2 * rows, logits, patches, quantized) + taught
        lines.append(
            f"{_total(longest)} for rows of {max_length:,} clean tokens and as many noisy ones, all supervised"
        )
    return "memory", lines


def _teacher(model: PreTrainedModel) -> MemoryLine:
    """The weights of a teacher, all of which each process holds."""
    width, count = model.dtype.itemsize, sum(parameter.numel() for parameter in model.parameters())
    return MemoryLine("teacher", width * count, f"{width} x {count:,} parameters, on each GPU")


def _total(items: list[MemoryLine]) -> str:
    return _size(sum(item.bytes for item in items))


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
