"""A draft-only adapter: low-rank matrices and a mask embedding that act on noisy tokens alone, over a frozen AR base.

The clean stream never meets the adapter, so that its keys, values and logits are the AR model's to the last bit: what a
noisy block drafts can be verified without loss.

Legend: B rows, T tokens of a row, n noisy tokens of a batch, E hidden, r rank.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from .errors import UserError


class LowRank(nn.Module):
    """The change of a linear layer: up @ down, zero at first (LoRA, arXiv 2106.09685)."""

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, layer.in_features))
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[n, in] -> [n, out], in the type of `x`."""
        return linear(linear(x, self.down.to(x.dtype)), self.up.to(x.dtype))


class DraftAdapter(nn.Module):
    """Hooks a base so that noisy tokens pass low-rank matrices, too, and masked tokens have an embedding of their own.

    Args:
        base: The AR base; its weights are not touched.
        mask_token_id: The id that stands for a masked token; it may lie outside the base's vocabulary.
        rank: r, of the matrices beside each linear layer of the decoder.
        alpha: The matrices' product is scaled by alpha / r.

    Attributes:
        indices: The noisy tokens of the batch that the base is about to see, as indices into the flattened batch [n],
            or None for none. It stays until the next batch, since gradient checkpointing runs layers again.

    Raises:
        UserError: The decoder has no linear layers.
    """

    def __init__(self, base: PreTrainedModel, mask_token_id: int, rank: int, alpha: float) -> None:
        super().__init__()
        self.mask_token_id = mask_token_id
        self.scale = alpha / rank
        self.indices: Tensor | None = None
        self._masked: Tensor | None = None
        layers = adapted_layers(base)
        if not layers:
            raise UserError(
                f"a {base.config.model_type!r} model has no linear layers that a draft adapter could change"
            )
        changes = {name.replace(".", "/"): LowRank(layer, rank) for name, layer in layers.items()}
        self.layers = nn.ModuleDict(changes)
        for change, layer in zip(changes.values(), layers.values(), strict=True):
            layer.register_forward_hook(partial(self._change, change))
        embeddings = base.get_input_embeddings()
        with torch.no_grad():
            every = torch.arange(embeddings.num_embeddings, device=embeddings.weight.device)
            mean = embeddings(every[None])[0].float().mean(0)
        self.mask_embedding = nn.Parameter(mean)
        embeddings.register_forward_pre_hook(self._known_ids)
        embeddings.register_forward_hook(self._embed_masks)

    @contextmanager
    def acting_on(self, stream_ids: Tensor | None) -> Iterator[None]:
        """Inside, the adapter acts on the tokens of noisy streams [B, T].

        Where gradients are recorded it goes on to do so, since a layer that is checkpointed runs again.
        """
        self.indices = noisy_indices(stream_ids)
        try:
            yield
        finally:
            if not torch.is_grad_enabled():
                self.indices = None

    def _change(self, change: LowRank, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Adds a layer's change for noisy tokens."""
        if self.indices is None:
            return output
        tokens = args[0].flatten(0, -2)[self.indices]
        flat = output.flatten(0, -2)
        added = (change(tokens) * self.scale).to(flat.dtype)
        if torch.is_grad_enabled():
            return flat.index_add(0, self.indices, added).view_as(output)
        return flat.index_add_(0, self.indices, added).view_as(output)

    def _known_ids(self, embeddings: nn.Embedding, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Ids with another one in place of masked tokens, whose own the base's table may not hold.

        A clean token is embedded by the base, whatever its id is.
        """
        self._masked = None
        if self.indices is None:
            return args
        noisy = torch.zeros(args[0].numel(), dtype=torch.bool, device=args[0].device)
        noisy[self.indices] = True
        self._masked = noisy.view_as(args[0]) & (args[0] == self.mask_token_id)
        return (args[0].masked_fill(self._masked, 0), *args[1:])

    def _embed_masks(self, embeddings: nn.Embedding, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """The embeddings [..., E], the adapter's own where a token is masked."""
        if self._masked is None:
            return output
        return torch.where(self._masked[..., None], self.mask_embedding.to(output.dtype), output)


def adapted_layers(base: PreTrainedModel) -> dict[str, nn.Linear]:
    """The linear layers of a base's decoder by their names, without the LM head and without experts.

    An expert sees the tokens that are routed to it, not the batch that `DraftAdapter.indices` points into.
    """
    head = base.get_output_embeddings()
    modules = base.get_decoder().named_modules()
    return {
        name: module
        for name, module in modules
        if isinstance(module, nn.Linear) and module is not head and "expert" not in name
    }


def noisy_indices(stream_ids: Tensor | None) -> Tensor | None:
    """The tokens of noisy streams as indices into the flattened batch, [B, T] -> [n]; None where all are clean."""
    if stream_ids is None:
        return None
    return stream_ids.flatten().nonzero()[:, 0]


def weights_fingerprint(path: str) -> str | None:
    """A hash that tells a checkpoint's weights from others, whatever files they are split into.

    Of each tensor, the name, the shape and three rows are read, so that it takes no time. Other files than
    safetensors have none.

    Args:
        path: Checkpoint folder or hub id.
    """
    found = partial(cached_file, path, _raise_exceptions_for_missing_entries=False)
    index = found(SAFE_WEIGHTS_INDEX_NAME)
    names = [SAFE_WEIGHTS_NAME]
    if index is not None:
        names = sorted(set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()))
    files = [found(name) for name in names]
    if None in files:
        return None
    lines = []
    for file in files:
        with safe_open(file, "pt") as weights:
            lines += [_line(name, weights.get_slice(name)) for name in weights.keys()]  # noqa: SIM118
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _line(name: str, weight: Any) -> str:
    """What a fingerprint holds of a tensor."""
    shape = weight.get_shape()
    rows = sorted({0, shape[0] // 2, shape[0] - 1}) if shape and shape[0] else []
    values = b"".join(weight[row : row + 1].contiguous().view(torch.uint8).numpy().tobytes() for row in rows)
    return f"{name} {shape} {hashlib.sha256(values).hexdigest()}"
