"""The contenders of `train_step.py`: random models, rows, and the losses of the reference, ours and an AR step."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from diffusionvl import DiffusionVLConfig, DiffusionVLForConditionalGeneration
from diffusionvl.data.collate import collate
from diffusionvl.data.streams import Row, build_row
from diffusionvl.modeling.attention import TILE
from diffusionvl.modeling.block_grid import block_grid
from diffusionvl.modeling.block_masks import TokenTags, dense_mask
from diffusionvl.modeling.families import media_inputs, sequential_positions
from diffusionvl.modeling.hooks import head_on
from diffusionvl.objective.loss import IGNORED, cross_entropy

Batch = dict[str, Tensor]
BLOCK_SIZE = 8


class Shape(NamedTuple):
    """Sizes of a model; `small` has layers, LM head and vision tower in about the proportions of the 3B."""

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    vision_hidden: int
    vision_intermediate: int
    vision_layers: int
    vision_heads: int


SHAPES = {
    "tiny": Shape(512, 128, 256, 2, 2, 1, 64, 128, 2, 2),
    "small": Shape(4096, 768, 2112, 4, 12, 6, 320, 856, 5, 5),  # 38 M parameters
    "3b": Shape(151936, 2048, 11008, 36, 16, 2, 1280, 3420, 32, 16),
}


class Document(NamedTuple):
    """One row: pictures of side x side patches (four are one token), words of a prompt and of a response."""

    pictures: int
    side: int
    prompt: int
    response: int

    @property
    def image_tokens(self) -> int:
        """Number of tokens of all pictures."""
        return self.pictures * (self.side // 2) ** 2


def build_model(shape: Shape) -> DiffusionVLForConditionalGeneration:
    """Builds a random Qwen2.5-VL; the last four ids of its vocabulary are special."""
    torch.manual_seed(0)
    image, pad, end, mask = range(shape.vocabulary - 4, shape.vocabulary)
    head_dim = shape.hidden // shape.heads
    sections = [head_dim // 8, 3 * head_dim // 16, 3 * head_dim // 16]
    text = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_value_heads,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections},
        "bos_token_id": None,
        "eos_token_id": end,
        "pad_token_id": pad,
    }
    vision = {
        "depth": shape.vision_layers,
        "hidden_size": shape.vision_hidden,
        "intermediate_size": shape.vision_intermediate,
        "num_heads": shape.vision_heads,
        "out_hidden_size": shape.hidden,
        "fullatt_block_indexes": list(range(min(shape.vision_layers, 8) - 1, shape.vision_layers, 8)),
    }
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, image_token_id=image, tie_word_embeddings=True)
    base = Qwen2_5_VLForConditionalGeneration(config)
    reference = {"position_mode": "sequential", "block_origin": "absolute"}  # its grid and positions, for all
    ids = {"mask_token_id": mask, "eos_token_id": end, "pad_token_id": pad}
    return DiffusionVLForConditionalGeneration(
        DiffusionVLConfig(config, block_size=BLOCK_SIZE, **reference, **ids), base
    ).train()


def build_document(document: Document, number: int, config: DiffusionVLConfig, layout: str, see: bool) -> Row:
    """Builds a row of random tokens: pictures (words if unseen), a prompt, a response that ends at a block's edge."""
    generator = torch.Generator().manual_seed(number)
    image_id = config.base_config.image_token_id
    begin = document.image_tokens + document.prompt
    length = -(-(begin + document.response) // BLOCK_SIZE) * BLOCK_SIZE
    ids = torch.randint(0, image_id, (length,), generator=generator)
    labels = ids.clone()
    labels[:begin] = IGNORED
    pixels = torch.randn(document.pictures * document.side**2, 3 * 2 * 14 * 14, generator=generator)
    if see:
        ids[4 : 4 + document.image_tokens] = image_id
    positions = sequential_positions(torch.ones(1, length), 3)[:, 0]
    grid = block_grid(length, BLOCK_SIZE)
    row = build_row(ids, labels, grid, positions, BLOCK_SIZE, config.eos_token_id, layout)
    row.index = number
    if see and document.pictures:
        size = torch.tensor([[1, document.side, document.side]])
        row.media = {"pixel_values": pixels, "image_grid_thw": size.repeat(document.pictures, 1)}
    return row


def build_batches(
    model: DiffusionVLForConditionalGeneration, case: list[Document], layout: str, see: bool, packed: bool = False
) -> list[Batch]:
    """Builds a batch for each row, or one for all of them packed."""
    config = model.config
    rows = [build_document(document, number, config, layout, see) for number, document in enumerate(case)]
    on_gpu = model.device.type == "cuda"
    multiple = TILE if on_gpu and layout == "response_only" else 1
    packs = [rows] if packed else [[row] for row in rows]
    batches = [
        collate([pack], config.pad_token_id, [config.base_config.image_token_id], None, multiple) for pack in packs
    ]
    return [{name: value.to(model.device) for name, value in batch.items()} for batch in batches]


def masked_tokens(labels: Tensor) -> Tensor:
    """Returns every second supervised token, as an index into the flattened batch."""
    return (labels.flatten() != IGNORED).nonzero()[::2, 0]


def diffusion_inputs(model: DiffusionVLForConditionalGeneration, batch: Batch, masked: Tensor) -> dict[str, Any]:
    """Returns the model's inputs, with the mask token where tokens are masked."""
    ids = batch["input_ids"]
    x_t = ids.flatten().index_fill(0, masked, model.config.mask_token_id).view_as(ids)
    return {name: value for name, value in batch.items() if name not in ("labels", "rows")} | {"input_ids": x_t}


def reference_loss(model: DiffusionVLForConditionalGeneration, batch: Batch) -> Tensor:
    """Computes the loss as the reference does: a dense mask of numbers, and logits of all noisy tokens."""
    masked, length = masked_tokens(batch["labels"]), batch["labels"].numel() // 2
    seen = dense_mask(TokenTags(batch["block_ids"], batch["stream_ids"], batch["document_ids"]))
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else model.dtype
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)
    inputs = diffusion_inputs(model, batch, masked)
    logits = model(**inputs, attention_mask=mask, logits_to_keep=length, use_cache=False).logits[0]
    return cross_entropy(logits.float()[masked - length], batch["labels"].flatten()[masked]).sum()


def our_loss(model: DiffusionVLForConditionalGeneration, batch: Batch) -> Tensor:
    """Computes the loss as our trainer does."""
    masked = masked_tokens(batch["labels"])
    inputs = diffusion_inputs(model, batch, masked)
    logits = model(**inputs, token_indices=masked, use_cache=False).logits
    return cross_entropy(logits, batch["labels"].flatten()[masked]).sum()


def ar_loss(model: DiffusionVLForConditionalGeneration, batch: Batch) -> Tensor:
    """Computes the loss as our trainer does with the AR objective, without the diffusion model around the base."""
    supervised = (batch["labels"].flatten() != IGNORED).nonzero()[:, 0]
    with head_on(model.base, supervised - 1):
        logits = model.base(
            input_ids=batch["input_ids"],
            attention_mask=torch.ones_like(batch["input_ids"]),
            position_ids=batch["position_ids"],
            use_cache=False,
            **{name: value for name, value in batch.items() if name in media_inputs(model.base)},
        ).logits[0]
    return cross_entropy(logits, batch["labels"].flatten()[supervised]).sum()
