"""Hooks that choose the tokens of an unchanged base's LM head, and give noisy tokens the features of an image.

Legend: B batch, T tokens of a row, M selected tokens, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .families import deepstack_of_twins


@contextmanager
def head_on(base: PreTrainedModel, token_indices: Tensor) -> Iterator[None]:
    """Inside, the base's LM head sees the selected tokens only, whatever the base does before and after it.

    `logits_to_keep` of transformers selects the same columns of every row; masked tokens stand elsewhere in each row,
    and full logits [B, T, V] are the largest tensor of a training step.

    Args:
        base: Any Hugging Face model with output embeddings.
        token_indices: Indices into the flattened batch [M], each b * T + t.
    """

    def select(module: torch.nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (args[0].flatten(0, 1)[token_indices][None],)

    handle = base.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def media_features_of_twins(base: PreTrainedModel, media_twins: Tensor) -> Iterator[None]:
    """Inside, tokens of a noisy stream enter the base's decoder with the features of their clean twins.

    A block that carries loss may hold image placeholders (one block grid from index 0, or the reference's structural
    supervision). The base merges the features of an image once, into the clean stream.

    Args:
        base: Any Hugging Face model whose decoder takes `inputs_embeds`.
        media_twins: Noisy tokens and their clean twins, as indices into the flattened batch [2, n].
    """

    def copy(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        embeddings = kwargs["inputs_embeds"]
        flat = embeddings.flatten(0, 1)
        kwargs["inputs_embeds"] = flat.index_copy(0, media_twins[0], flat[media_twins[1]]).view_as(embeddings)
        return args, kwargs | deepstack_of_twins(kwargs, media_twins)

    handle = base.get_decoder().register_forward_pre_hook(copy, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
