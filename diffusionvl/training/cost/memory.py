"""How much memory a training step takes on each GPU: an estimate by formula, for `--dry_run` and for people.

Legend: B rows, T tokens of a row, M tokens with a loss, V vocabulary, E hidden, N GPUs, P parameters, P_t trained ones.
"""

from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from ..arguments import BlockDiffusionConfig
from .model_parts import Part

QUANTIZED_BYTES = 0.52  # half a byte, and the scales of NF4 with double quantisation
OPTIMIZER_STATES = 2  # of AdamW: the mean of the gradient and of its square


class Sharding(NamedTuple):
    """How weights, gradients and optimizer are kept.

    Attributes:
        name: For people.
        zero: 0 where every GPU keeps all, 2 where gradients and optimizer are shared out, 3 where weights are, too.
        master: Bytes of each trained parameter's fp32 copy, which DeepSpeed keeps beside bf16 weights.
        offload: Whether optimizer and weights stay in the machine's own memory.
        bucket: Numbers that are reduced at once.
    """

    name: str
    zero: int
    master: int
    offload: bool
    bucket: float = 0


class MemoryLine(NamedTuple):
    """A line of the estimate: what takes the memory, how much on each GPU, and by which formula."""

    name: str
    bytes: float
    formula: str


def sharding_of(args: BlockDiffusionConfig) -> Sharding:
    """How the arguments share the memory out."""
    if args.fsdp:
        return Sharding("FSDP2", 3, 0, bool(args.fsdp_config.get("cpu_offload", False)))
    if args.deepspeed:
        zero = args.hf_deepspeed_config.config.get("zero_optimization", {})
        stage = int(zero.get("stage", 0))
        offload = zero.get("offload_optimizer", {}).get("device", "none") != "none"
        bucket = zero.get("reduce_bucket_size", 5e8)
        name = f"ZeRO-{stage}{' + offload' if offload else ''}"
        return Sharding(name, stage, 4 if args.bf16 else 0, offload, 0 if bucket == "auto" else bucket)
    return Sharding("DDP", 0, 0, False)


def estimate(
    model: PreTrainedModel,
    args: BlockDiffusionConfig,
    tokens: int,
    losses: int,
    patches: int,
    quantized: bool = False,
) -> list[MemoryLine]:
    """The memory of a training step.

    Args:
        model: On any device, the meta device, too; frozen as it will be.
        args: Settings; `dry_run_processes` is N.
        tokens: B x T of a batch, padding included.
        losses: M of a batch.
        patches: Image patches of a batch.
        quantized: Whether the language model's frozen linear layers are loaded in four bits.

    Returns:
        The lines of the estimate; their sum is the peak. Fragments, NCCL's and CUDA's own buffers come on top, a
        few GiB.
    """
    sharding, processes = sharding_of(args), args.dry_run_processes
    half = args.bf16 or args.fp16 or model.dtype != torch.float32
    width = 2 if half and sharding.master else model.dtype.itemsize
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    language, vision = Part.of(model, "language_model"), Part.of(model, "vision_tower")
    packed = language.weights - language.trained_weights if quantized else 0
    over_weights, over_rest = (processes if sharding.zero >= stage else 1 for stage in (3, 2))
    on_gpu = 0 if sharding.offload else 1
    states = OPTIMIZER_STATES * max(sharding.master, width) + sharding.master
    items = [
        MemoryLine("weights", on_gpu * width * (total - packed) / over_weights, f"{width} P{_over(over_weights)}"),
        MemoryLine("weights in 4 bits", QUANTIZED_BYTES * packed, f"{QUANTIZED_BYTES} of each"),
        MemoryLine("gradients", width * trained / over_rest, f"{width} P_t{_over(over_rest)}"),
        MemoryLine("optimizer", on_gpu * states * trained / over_rest, f"{states} P_t{_over(over_rest)}"),
    ]
    if sharding.zero == 3:
        items.append(MemoryLine("gathered weights", 2 * 2 * language.layer_parameters, "2 layers x 2 bytes"))
    elif processes > 1:
        bucket = 2 * sharding.bucket if sharding.zero else trained
        items.append(
            MemoryLine(
                "reduction",
                width * bucket,
                f"{width} x 2 x {sharding.bucket:,.0f}" if sharding.zero else f"{width} P_t",
            )
        )
    if half and not sharding.master and sharding.zero < 3 and model.dtype == torch.float32:
        cast = language.layer_parameters if args.gradient_checkpointing else total
        items.append(MemoryLine("16-bit copies", 2 * cast, "2 P; of one layer with gradient_checkpointing"))
    act = 2 if half else 4
    for name, part, entries in (("language model", language, tokens), ("vision tower", vision, patches)):
        if part.layers and entries and (part.trained or part is language):
            values, formula = _activations(part, args.gradient_checkpointing)
            items.append(MemoryLine(f"activations, {name}", act * values * entries, f"{act} x {entries:,} x {formula}"))
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    items.append(MemoryLine("logits", (8 + act) * losses * vocabulary, f"{8 + act} x {losses:,} x V"))
    return items


def _over(number: int) -> str:
    return f" / {number}" if number > 1 else ""


def _activations(part: Part, checkpointing: bool) -> tuple[int, str]:
    """The values that one token keeps for the backward pass, and how they are counted."""
    if not checkpointing:
        return part.widths, "widths in and out of all linear layers"
    kept = part.layers * part.hidden + 2 * part.widths // part.layers
    return kept, "width of each layer, and twice the widths in and out of one layer's linear layers"
