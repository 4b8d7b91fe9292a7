"""A draft-only adapter: low-rank matrices and a mask embedding that act on noisy tokens alone, over a frozen AR base.

The clean stream never meets the adapter, so that its keys, values and logits are the AR model's to the last bit: what a
noisy block drafts can be verified without loss.

Legend: B rows, T tokens of a row, n noisy tokens of a batch, E hidden, r rank.
"""

import hashlib
import json
from collections.abc import Collection, Iterator
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
    """The change of a linear layer: scale * up @ down, zero at first (LoRA, arXiv 2106.09685)."""

    def __init__(self, layer: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.down = nn.Parameter(torch.empty(rank, layer.in_features))
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[n, in] -> [n, out], in the type of `x`."""
        return linear(linear(x, self.down.to(x.dtype)), self.up.to(x.dtype)) * self.scale

    def add_to(self, output: Tensor, x: Tensor) -> None:
        """Adds the change for `x` [n, in] to `output` [n, out] in place, in two products."""
        output.addmm_(x @ self.down.to(x.dtype).T, self.up.to(x.dtype).T, alpha=self.scale)


class DraftAdapter(nn.Module):
    """Hooks a base so that noisy tokens pass low-rank matrices, too, and masked tokens have an embedding of their own.

    Args:
        base: The AR base; its weights are not touched.
        mask_token_id: The id that stands for a masked token; it may lie outside the base's vocabulary.
        rank: r, of the matrices beside each linear layer of the decoder.
        alpha: The matrices' product is scaled by alpha / r.
        layers: Last names of the linear layers that get matrices, such as `o_proj`; all of the decoder if left out.

    Attributes:
        noisy: The noisy tokens of the batch that the base is about to see, as indices into the flattened batch [n] or,
            in decoding, as a slice of it where they are contiguous; None for none. It stays until the next batch, since
            gradient checkpointing runs layers again.

    Raises:
        UserError: The decoder has no linear layers, or none of a name that is given.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        mask_token_id: int,
        rank: int,
        alpha: float,
        layers: Collection[str] | None = None,
    ) -> None:
        super().__init__()
        self.mask_token_id = mask_token_id
        self.noisy: Tensor | slice | None = None
        self._masked: Tensor | None = None
        adapted = adapted_layers(base, layers)
        changes = {name.replace(".", "/"): LowRank(layer, rank, alpha / rank) for name, layer in adapted.items()}
        self.layers = nn.ModuleDict(changes)
        for change, layer in zip(changes.values(), adapted.values(), strict=True):
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
        self.noisy = noisy_tokens(stream_ids)
        try:
            yield
        finally:
            if not torch.is_grad_enabled():
                self.noisy = None

    def _change(self, change: LowRank, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Adds a layer's change for noisy tokens."""
        if self.noisy is None:
            return output
        tokens, flat = args[0].flatten(0, -2)[self.noisy], output.flatten(0, -2)
        if isinstance(self.noisy, slice):
            change.add_to(flat[self.noisy], tokens)
            return output
        added = change(tokens).to(flat.dtype)
        if torch.is_grad_enabled():
            return flat.index_add(0, self.noisy, added).view_as(output)
        return flat.index_add_(0, self.noisy, added).view_as(output)

    def _known_ids(self, embeddings: nn.Embedding, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Ids with another one in place of masked tokens, whose own the base's table may not hold.

        A clean token is embedded by the base, whatever its id is.
        """
        self._masked = None
        if self.noisy is None:
            return args
        noisy = torch.zeros(args[0].numel(), dtype=torch.bool, device=args[0].device)
        noisy[self.noisy] = True
        self._masked = noisy.view_as(args[0]) & (args[0] == self.mask_token_id)
        return (args[0].masked_fill(self._masked, 0), *args[1:])

    def _embed_masks(self, embeddings: nn.Embedding, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """The embeddings [..., E], the adapter's own where a token is masked."""
        if self._masked is None:
            return output
        return torch.where(self._masked[..., None], self.mask_embedding.to(output.dtype), output)


def adapted_layers(base: PreTrainedModel, names: Collection[str] | None = None) -> dict[str, nn.Linear]:
    """The linear layers of a base's decoder by their names, without the LM head and without experts.

    An expert sees the tokens that are routed to it, not the batch that `DraftAdapter.noisy` points into.

    Args:
        base: The AR base.
        names: Last names of the layers; all if left out.

    Raises:
        UserError: There are no linear layers, or none of a name.
    """
    head = base.get_output_embeddings()
    layers = {
        name: module
        for name, module in base.get_decoder().named_modules()
        if isinstance(module, nn.Linear) and module is not head and "expert" not in name
    }
    if not layers:
        raise UserError(f"a {base.config.model_type!r} model has no linear layers that a draft adapter could change")
    if not names:
        return layers
    known = sorted({last_name(name) for name in layers})
    if unknown := sorted({*names} - {*known}):
        raise UserError(
            f"a draft adapter cannot change {', '.join(unknown)}; the decoder's linear layers are {', '.join(known)}"
        )
    return {name: layer for name, layer in layers.items() if last_name(name) in names}


def last_name(name: str) -> str:
    """The last part of a module's name.

    >>> last_name("layers.0.self_attn.o_proj")
    'o_proj'
    """
    return name.rpartition(".")[2]


def noisy_tokens(stream_ids: Tensor | None) -> Tensor | slice | None:
    """The tokens of noisy streams [B, T] as indices into the flattened batch [n]; None where all are clean.

    Without gradients, contiguous tokens are a slice, so that a decoding step of one row neither gathers nor scatters.
    """
    if stream_ids is None:
        return None
    indices = stream_ids.flatten().nonzero()[:, 0]
    if torch.is_grad_enabled() or not len(indices):
        return indices
    first, last = indices[[0, -1]].tolist()
    return slice(first, last + 1) if last - first + 1 == len(indices) else indices


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
