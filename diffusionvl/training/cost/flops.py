"""Floating-point operations of a training step, and how many a device can do: the utilisation of a model (MFU).

What the mathematics needs is counted, nothing that is computed twice or thrown away: padding, pairs that the mask hides
and the second forward pass of gradient checkpointing do not count. Attention inside the vision tower and everything but
matrix products are left out.

Legend: B rows, T tokens of a row, M tokens that need logits.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...modeling.block_masks import CLEAN, PADDING, TokenTags
from .model_parts import Part, count_patches

# Dense bf16 operations a second, by a part of the device's name; the first that fits. From the makers' data sheets.
PEAKS = {
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
    "4090": 165e12,
    "3090": 71e12,
    "MI300X": 1307e12,
}


def peak_of(device: torch.device, peak_tflops: float | None) -> float | None:
    """Operations a second that a device can do: as given, or by its name; None for one that is not in the table."""
    if peak_tflops is not None:
        return peak_tflops * 1e12
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def attended_pairs(tags: TokenTags) -> Tensor:
    """How many (query, key) pairs the block-diffusion mask leaves in a batch, without building it.

    A clean token sees the clean tokens of its own and all earlier blocks of its document, a noisy one those of earlier
    blocks and its own copy of its block.

    Args:
        tags: Of the tokens [B, T]; each document of the batch has a number of its own.

    Returns:
        A number, fp64.
    """
    documents, streams, blocks = (int(tag.max()) + 1 for tag in (tags.document, tags.stream, tags.block))
    real = tags.document != PADDING
    document, stream, block = (tag[real] for tag in (tags.document, tags.stream, tags.block))
    cell = (document * streams + stream) * blocks + block  # where each token stands
    count = torch.zeros(documents * streams * blocks, dtype=torch.float64, device=cell.device)
    count = count.index_add(0, cell, torch.ones_like(cell, dtype=torch.float64)).view(documents, streams, blocks)
    clean, noisy = count[:, CLEAN], count[:, CLEAN + 1 :]
    up_to = clean.cumsum(-1)
    return (clean * up_to).sum() + (noisy * ((up_to - clean)[:, None] + noisy)).sum()


class StepFlops:
    """Counts the operations that training steps of one model need.

    A weight costs each token 2 operations forward, 2 for the gradient of its input, and 2 for its own if it is trained.
    A pair of attention costs 4 operations forward and 8 backward for each channel of each head.

    Args:
        model: Frozen as it is.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        language, projector, vision = (Part.of(model, name) for name in ("language_model", "projector", "vision_tower"))
        text = model.config.get_text_config(decoder=True)
        head_dim = text.to_dict().get("head_dim") or text.hidden_size // text.num_attention_heads
        head_trained = any(parameter.requires_grad for parameter in model.get_output_embeddings().parameters())
        self.token = 4 * language.weights + 2 * language.trained_weights
        self.pair = 12 * text.num_hidden_layers * text.num_attention_heads * head_dim
        self.logit = (6 if head_trained else 4) * text.vocab_size * text.hidden_size
        # The vision tower's own backward pass ends with its first trained weight; the projector's leads to it.
        tower = (4 if vision.trained else 2) * vision.weights + 2 * vision.trained_weights
        joint = (4 if vision.trained else 2) * projector.weights + 2 * projector.trained_weights
        merged = max(projector.hidden // max(vision.hidden, 1), 1)  # patches that make up a token
        self.patch = tower + joint / merged
        self.model = model

    def __call__(self, batch: dict[str, Any], logits: int) -> Tensor:
        """Operations of a batch, as a tensor on its device.

        Args:
            batch: The model's inputs.
            logits: M.
        """
        tags = TokenTags(batch["block_ids"], batch["stream_ids"], batch["document_ids"])
        tokens = (tags.document != PADDING).sum()
        fixed = self.logit * logits + self.patch * count_patches(self.model, batch)
        return self.token * tokens.double() + self.pair * attended_pairs(tags) + fixed
