"""An AR model over the clean streams of a batch: as what is trained, and as a frozen teacher.

Legend: A axes of a position, B rows, T tokens of a row, M tokens of which the next one is predicted, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin

from ..checkpoints.checkpoint import Checkpoint
from ..modeling.attention import layer_masks
from ..modeling.block_grid import keep_whole
from ..modeling.block_masks import CLEAN, PADDING, TokenTags
from ..modeling.configuration_diffusionvl import DiffusionVLConfig
from ..modeling.errors import UserError
from ..modeling.families import (
    fixed_inputs,
    layer_windows,
    mask_inputs,
    media_types,
    placeholder_ids,
    position_axes,
    reads_images_whole,
)
from ..modeling.hooks import head_on

# What a batch holds besides an AR model's inputs for images and videos.
TAGS = (
    "input_ids",
    "block_ids",
    "stream_ids",
    "document_ids",
    "position_ids",
    "media_twins",
    "labels",
    "rows",
    "twins",
    "written",
)
COUNTS = ("truncated", "dropped", "bad_samples")


def next_logits(model: nn.Module, base: PreTrainedModel, batch: dict[str, Any], indices: Tensor) -> Tensor:
    """Logits of the tokens after those at some places [M, V].

    Args:
        model: An AR model, maybe inside a wrapper that trains it.
        base: The model itself.
        batch: Clean streams alone, from `RowDataset.collate` or `clean_streams`.
        indices: Places in the flattened batch [M].
    """
    documents, positions = batch["document_ids"], batch["position_ids"]
    if len(batch["rows"]) > len(documents):  # packed: documents must not see one another
        tags = TokenTags(batch["block_ids"], batch["stream_ids"], documents)
        mask = layer_masks(base, layer_windows(base.config), tags, positions[0], positions[0])
    else:
        mask = (documents != PADDING).long()
    others = (*TAGS, *COUNTS, "error")
    with head_on(base, indices):
        return model(
            input_ids=batch["input_ids"],
            attention_mask=mask,
            position_ids=positions[0] if positions.shape[0] == 1 else positions,
            use_cache=False,
            **mask_inputs(base.config, batch["input_ids"]),
            **fixed_inputs(base.config),
            **{name: value for name, value in batch.items() if name not in others},
        ).logits[0]


def clean_streams(batch: dict[str, Any], config: PreTrainedConfig) -> tuple[dict[str, Any], Tensor]:
    """A batch without its noisy copies, as an AR model reads it, and the new index of each clean token [B T].

    Args:
        batch: From `RowDataset.collate`; its images stay, those of the padding included.
        config: Of the AR model.
    """
    ids, documents = batch["input_ids"], batch["document_ids"]
    images = torch.isin(ids, ids.new_tensor(placeholder_ids(config)))
    kept = (batch["stream_ids"] == CLEAN) & ((documents != PADDING) | images)
    width = int(kept.sum(1).max())
    order = (~kept).int().argsort(dim=1, stable=True)[:, :width]
    clean = {name: batch[name].gather(1, order) for name in ("input_ids", "stream_ids")}
    clean["document_ids"] = documents.masked_fill(~kept, PADDING).gather(1, order)
    clean["position_ids"] = batch["position_ids"].gather(2, order.expand(len(batch["position_ids"]), -1, -1))
    blocks = torch.arange(width, device=ids.device).expand(len(ids), -1)
    if reads_images_whole(config):
        types = media_types(config, clean["input_ids"]) > 0
        blocks = torch.stack([keep_whole(*row) for row in zip(blocks, types, strict=True)])
    rows = torch.arange(len(ids), device=ids.device)[:, None] * width
    return {**batch, **clean, "block_ids": blocks}, (kept.long().cumsum(1) - 1 + rows).flatten()


@torch.no_grad()
def teacher_logits(teacher: PreTrainedModel, batch: dict[str, Any], indices: Tensor) -> Tensor:
    """What a frozen AR model predicts after some clean tokens of a batch with noisy copies [M], [M, V]."""
    clean, places = clean_streams(batch, teacher.config)
    return next_logits(teacher, teacher, clean, places[indices])


def load_teacher(path: str, dtype: str, config: PreTrainedConfig, processor: ProcessorMixin) -> PreTrainedModel:
    """Loads the AR model that a block-diffusion model learns from, frozen.

    Args:
        path: Its folder or hub id.
        dtype: Type of its weights.
        config: Config of the model that learns.
        processor: The processor of that model.

    Raises:
        UserError: It cannot teach the model that learns.
    """
    return check_teacher(path, config, processor).model(dtype).eval().requires_grad_(False)


def check_teacher(path: str, config: PreTrainedConfig, processor: ProcessorMixin) -> Checkpoint:
    """Reads the config and the tokens of a teacher, not its weights. Arguments are those of `load_teacher`.

    Raises:
        UserError: It is not there or not an AR model, or has other tokens, pictures or positions than the model that
            learns.
    """
    checkpoint = Checkpoint(path)
    if isinstance(checkpoint.config, DiffusionVLConfig):
        raise UserError(f"teacher {path!r} is a block-diffusion model; give the AR model that was translated")
    known, own = processor.tokenizer.get_vocab(), checkpoint.processor.tokenizer.get_vocab()
    mask = processor.tokenizer.mask_token
    if {**own, mask: known[mask]} != known:
        raise UserError(f"teacher {path!r} has other tokens than the model; give the AR model that was translated")
    if config.position_mode != "native":
        raise UserError(f"teacher {path!r} needs position_mode 'native', and this checkpoint counts positions itself")
    pictures = _pictures(checkpoint.processor) == _pictures(processor)
    if not pictures or any(
        read(checkpoint.config) != read(config.base_config) for read in (placeholder_ids, position_axes)
    ):
        raise UserError(
            f"teacher {path!r} reads other pictures or positions than the model; give the AR model that was translated"
        )
    return checkpoint


def _pictures(processor: ProcessorMixin) -> dict[str, Any]:
    """What a processor makes of a picture, but for its size."""
    known = getattr(processor, "image_processor", None)
    given = {} if known is None else known.to_dict()
    names = (
        "patch_size",
        "temporal_patch_size",
        "merge_size",
        "image_mean",
        "image_std",
        "rescale_factor",
        "do_normalize",
    )
    return {name: given.get(name) for name in names}
