"""What a few tokens and a picture prove about a translated base, by comparison with the stock model that it was.

Everything runs in fp32, through few layers where the model is large, over rows longer than any window or set of kept
keys that the config names, and with pictures of noise: what is wrong shows, and rounding does not.

Legend: L tokens of a row, V vocabulary.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import ProcessorMixin

from ..data.conversation import SMALLEST
from ..data.prompts import encode, question
from ..modeling.block_grid import row_blocks
from ..modeling.errors import UserError
from ..modeling.families import (
    SLIDING,
    is_token_type,
    media_types,
    native_positions,
    placeholder_ids,
    position_axes,
    position_limit,
    sequential_positions,
)
from ..modeling.modeling_diffusionvl import DiffusionVLForConditionalGeneration

FAILURES = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)  # of a forward that cannot run
TOLERANCE = 1e-3  # of the logits' spread; another token in sight moves them by their own size
BLOCKED = 1e9  # logits beyond it stand for tokens that a base never draws
MEMORY = 2**31  # bytes of fp32 weights up to which all layers run
SIZE = 4  # of a block
WINDOW = 16  # tokens that sliding windows look back here, whatever the config says
LONGEST = 4096  # tokens of a row at most
REMEMBERED = ("window", "keep", "topk", "chunk")  # in the names of settings that limit the keys that a token sees


def check_model(model: DiffusionVLForConditionalGeneration, base: str) -> None:
    """Runs a few tokens through a translated base: its mask and its positions must be all that rules a row.

    Args:
        model: The translated model; any weights will do.
        base: Its name, for the message.

    Raises:
        UserError: Blocks of one token are not the base's own causal forward, a noisy block after a clean stream is
            not that block in its place, or no token sees those after it in its block.
    """
    refused = f"{base}: model type {model.base.config.model_type!r} cannot be translated"
    with exact(model):
        try:
            causal, noisy, ahead = _errors(model)
            cached = _same_answer(model)
        except FAILURES as error:
            raise UserError(f"{refused}: its forward fails on a row of clean and noisy tokens ({error})") from error
    if not max(causal, noisy) <= TOLERANCE:
        raise UserError(
            f"{refused}: its layers see other tokens, or at other distances, than the mask and the positions say "
            f"(logits differ by {causal:.1%} in a causal row, by {noisy:.1%} in a noisy block)"
        )
    if ahead == 0:
        raise UserError(f"{refused}: its layers look back alone, whatever the mask says")
    if not cached:
        raise UserError(f"{refused}: with a KV cache, its layers see other tokens than without")


def check_images(model: DiffusionVLForConditionalGeneration, processor: ProcessorMixin, base: str) -> None:
    """Runs a picture through a translated base: in blocks of one token, text must see it as the base's own does.

    Args:
        model: The translated model; any weights will do.
        processor: Its processor.
        base: Its name, for the message.

    Raises:
        UserError: It does not, or the processor and the model do not take a picture.
    """
    refused = f"{base}: model type {model.base.config.model_type!r} cannot be translated"
    with exact(model):
        try:
            difference = _image_error(model, processor)
        except FAILURES as error:
            raise UserError(f"{refused}: it fails on a picture in front of a question ({error})") from error
    if not difference <= TOLERANCE:
        raise UserError(
            f"{refused}: text sees a picture in front of it in another way than the mask and the positions say (logits "
            f"differ by {difference:.1%})"
        )


@contextmanager
def exact(model: DiffusionVLForConditionalGeneration) -> Iterator[None]:
    """Inside, a model computes in fp32, with short windows, and with its first layers alone if it is large.

    Its weights are the same afterwards, to the last bit: fp32 copies stand in for them.
    """
    text = model.base.config.get_text_config(decoder=True)
    window, windows = text.to_dict().get("sliding_window"), model.windows
    decoder, whole = model.base.get_decoder(), None
    stacks = [(name, child) for name, child in decoder.named_children() if isinstance(child, nn.ModuleList)]
    if sum(each.numel() for each in model.parameters()) * 4 > MEMORY and stacks:
        whole = max(stacks, key=lambda stack: len([*stack[1].modules()]))
        setattr(decoder, whole[0], whole[1][: _enough_layers(text, len(whole[1]))])
    held = {tensor: tensor.data for tensor in model.parameters()}
    try:
        if window is not None and SLIDING in windows:
            text.sliding_window = min(window, WINDOW)
            model.windows = {kind: size and min(size, WINDOW) for kind, size in windows.items()}
        for tensor in held:
            tensor.data = tensor.data.float()
        with torch.no_grad():
            yield
    finally:
        for tensor, data in held.items():
            tensor.data = data
        model.windows = windows
        if window is not None:
            text.sliding_window = window
        if whole is not None:
            setattr(decoder, *whole)


def _enough_layers(text: Any, layers: int) -> int:
    """The number of first layers among which every type of layer is; 4 at least, as some families take turns."""
    kinds = text.to_dict().get("layer_types") or []
    return min(layers, max([4, *(kinds.index(kind) + 1 for kind in kinds)]))


def _row_length(model: DiffusionVLForConditionalGeneration) -> int:
    """Tokens of a row that is longer than whatever limits the keys that a token sees."""
    text = model.base.config.get_text_config(decoder=True)
    limits = [
        value
        for name, value in text.to_dict().items()
        if type(value) is int and any(word in name for word in REMEMBERED) and name != "max_window_layers"
    ]
    length = min(max(limits, default=0), LONGEST) + 6 * SIZE
    room = position_limit(model.base.config)
    return length if room is None else min(length, room - model.config.block_size)


def _image_error(model: DiffusionVLForConditionalGeneration, processor: ProcessorMixin) -> float:
    """How far logits of text after a picture are from the base's own."""
    noise = np.random.default_rng(0).integers(0, 256, (2 * SMALLEST[1], 3 * SMALLEST[0], 3), dtype=np.uint8)
    shown = question("what is it?", [Image.fromarray(noise)])
    inputs = encode(processor, [shown]).to(model.device, torch.float32)
    media = {name: value for name, value in inputs.items() if name != "input_ids" and not is_token_type(name)}
    ids, mask = inputs["input_ids"], media.pop("attention_mask")
    of_images = media_types(model.base.config, ids)[0].nonzero()[:, 0]
    if not len(of_images):
        raise UserError("the chat template writes no place for it")
    config = copy.copy(model.config)
    config.block_size = 1
    after = ids.shape[1] - 1 - int(of_images[-1])
    own = model.base(**inputs).logits[:, -after:]
    found = model(
        ids,
        block_ids=row_blocks(config, ids[0])[None],
        position_ids=native_positions(model.base, ids, mask, media),
        logits_to_keep=after,
        **media,
    ).logits
    return _error(found, own)


def _errors(model: DiffusionVLForConditionalGeneration) -> tuple[float, float, float]:
    """How far logits are apart that should be the same, in a causal row and a noisy block; and that should not be."""
    config, device, length = model.base.config, model.device, _row_length(model)
    drawn = _some_tokens(model, length + SIZE)
    row, other = drawn[:, :length], drawn[:, length:]
    tokens = torch.arange(length, device=device)[None]
    blocks = tokens + (-length) % SIZE  # the last block is whole
    blocks = blocks // SIZE
    positions = sequential_positions(torch.ones_like(tokens), position_axes(config))
    kept = 4 * SIZE
    keep: dict[str, Any] = {"logits_to_keep": kept}
    own = model.base(input_ids=row).logits[:, -kept:]
    single = model(row, block_ids=tokens, **keep).logits
    in_place = model(torch.cat([row[:, :-SIZE], other], dim=1), block_ids=blocks, **keep).logits[:, -SIZE:]
    after = model(
        torch.cat([row, other], dim=1),
        block_ids=torch.cat([blocks, blocks[:, -SIZE:]], dim=1),
        stream_ids=torch.cat([torch.zeros_like(tokens), torch.ones_like(other)], dim=1),
        position_ids=torch.cat([positions, positions[..., -SIZE:]], dim=-1),
        **keep,
    ).logits[:, -SIZE:]
    seen = model(torch.cat([row[:, :-1], other[:, :1]], dim=1), block_ids=blocks, **keep).logits[:, -SIZE]
    unseen = model(row, block_ids=blocks, **keep).logits[:, -SIZE]
    return _error(single, own), _error(after, in_place), _error(seen, unseen)


def _some_tokens(model: DiffusionVLForConditionalGeneration, length: int) -> Tensor:
    """A row of text [1, L] from all over the vocabulary: the last rows of the embeddings are often all the same."""
    ids = torch.arange(model.base.get_input_embeddings().num_embeddings)
    ids = ids[~torch.isin(ids, torch.tensor([model.config.mask_token_id, *placeholder_ids(model.base.config)]))]
    drawn = torch.randint(len(ids), (1, length), generator=torch.Generator().manual_seed(0))
    return ids[drawn].to(model.device)


def _same_answer(model: DiffusionVLForConditionalGeneration) -> bool:
    """Whether decoding one block at once, by the engine and its cache, gives what one forward without a cache does."""
    size, mask_id = model.config.block_size, model.config.mask_token_id
    row = _some_tokens(model, _row_length(model) // size * size + size)
    masks = torch.full_like(row[:, :size], mask_id)
    blocks = model.clean_blocks(row, torch.ones_like(row))
    logits = model(
        torch.cat([row, masks], dim=1),
        block_ids=torch.cat([blocks, (blocks[:, -1:] + 1).expand(1, size)], dim=1),
        stream_ids=torch.cat([torch.zeros_like(row), torch.ones_like(masks)], dim=1),
        position_ids=model.position_ids(torch.cat([row, masks], dim=1), torch.ones(1, row.shape[1] + size), {}),
        logits_to_keep=size,
    ).logits[0]
    logits[:, [mask_id, *placeholder_ids(model.base.config)]] = -torch.inf
    settings = {"remasking": "low_confidence_static", "denoising_steps": 1, "max_new_tokens": size}
    answer = model.generate(row, attention_mask=torch.ones_like(row), **settings)[0, row.shape[1] :]
    # An end of sequence closes the answer, and padding follows.
    ends = torch.isin(answer, torch.tensor(model.generation_config.eos_token_ids, device=answer.device)).nonzero()
    written = int(ends[0]) + 1 if len(ends) else size
    return torch.equal(answer[:written], logits.argmax(-1)[:written])


def _error(found: Tensor, expected: Tensor) -> float:
    """How far logits [..., V] are from what they should be, relative to their spread; of the worst token."""
    found, expected = found.float().flatten(0, -2), expected.float().flatten(0, -2)
    blocked = (expected.abs() > BLOCKED) & (found.abs() > BLOCKED)
    found, expected = found.masked_fill(blocked, 0), expected.masked_fill(blocked, 0)
    scale = (expected - expected.mean(-1, keepdim=True)).norm(dim=-1).clamp(min=1e-6)
    return float(torch.nan_to_num((found - expected).norm(dim=-1) / scale, nan=torch.inf).max())
