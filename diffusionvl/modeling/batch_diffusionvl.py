"""Rows that are decoded together: their canvas, their cache, and the forwards over some of them.

Legend: n rows of a forward, T tokens of a forward, K keys, D block size, M masked places, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .cache_diffusionvl import SlotCache, as_index
from .canvas_diffusionvl import Canvas
from .families import placeholder_ids
from .generation_output_diffusionvl import DenoisingStep
from .remasking_diffusionvl import REMASKING, Draft, transfer_schedule
from .request_diffusionvl import Request
from .sampling_diffusionvl import Sampling, choose_tokens


@contextmanager
def unmasked(base: PreTrainedModel) -> Iterator[None]:
    """Inside, every token sees every key, whatever mask the base makes: attention runs its kernels without a mask."""

    def without(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "attention_mask": None, "is_causal": False}

    with ExitStack() as hooks:
        for layer in base.get_decoder().layers:
            hooks.callback(layer.register_forward_pre_hook(without, with_kwargs=True).remove)
        yield


class DecodingBatch:
    """Rows 0 to R - 1 of a canvas and of a cache, one request each.

    Args:
        model: The block-diffusion model.
        max_rows: Most rows.
        max_length: Most columns of a row.
        tokenizer: Decodes answers to look for stop strings; not needed without.
        fused_commit: Write a finished block's clean keys and values in the forward of the next block's first step.

    Attributes:
        requests: Row by row.
        cache: Keys and values.
    """

    def __init__(self, model: Any, max_rows: int, max_length: int, tokenizer: Any, fused_commit: bool) -> None:
        self.model, self.tokenizer, self.fused_commit = model, tokenizer, fused_commit
        self.requests: list[Request] = []
        # A row in its last window may be padded by a block for the sake of others.
        self.cache = SlotCache(max_rows, max_length + model.config.block_size)
        self._canvas: Canvas | None = None
        self._placeholders = torch.tensor(placeholder_ids(model.base.config), dtype=torch.long)
        self._sliding = any(window is not None for window in model.windows.values())
        self._forbidden = [model.config.mask_token_id, *placeholder_ids(model.base.config)]

    @property
    def canvas(self) -> Canvas:
        """The rows' tokens. There is none before the first row."""
        assert self._canvas is not None
        return self._canvas

    def add(self, request: Request, canvas: Canvas) -> None:
        """Appends a row, of which nothing is in the cache."""
        if self.requests:
            self.canvas.extend(canvas)
        else:
            self._canvas = canvas
        self.requests.append(request)

    def remove(self, row: int) -> None:
        """Removes a row and frees its slot; the last row takes its place."""
        last = len(self.requests) - 1
        self.cache.free(row, last, int(self.canvas.kept[last]))
        self.canvas.remove(row)
        self.requests[row] = self.requests[last]
        self.requests.pop()

    def draft(self, request: Request) -> list[int]:
        """Tokens of the answer in the request's window, the mask id where still masked."""
        row = self.requests.index(request)
        begin = int(self.canvas.window[row])
        window = self.canvas.ids[row, max(begin, request.prompt_length) : begin + self.canvas.block_size]
        return window[: request.settings.max_new_tokens - len(request.tokens)].tolist()

    def placeholders_in_windows(self, rows: list[int]) -> bool:
        """Whether any of these rows has an image or video token in its window."""
        windows = self.canvas.windows(torch.tensor(rows))
        return bool(torch.isin(self.canvas.ids[torch.tensor(rows)[:, None], windows], self._placeholders).any())

    def denoise(self, rows: list[int], media: dict[str, Any] | None = None, keep: bool = True) -> None:
        """Takes one denoising step.

        Args:
            rows: The n rows; those whose request has finished come along for the sake of their media.
            media: Image and video inputs of the rows, in their order; only for rows of which nothing is in the cache.
            keep: Whether the cache keeps the clean tokens before the rows' windows.
        """
        canvas, index = self.canvas, as_index(rows)
        if keep and not self.fused_commit:
            self._commit(rows, media or {})
            media = {}
        active = torch.tensor([not self.requests[row].finished for row in rows])
        columns = canvas.windows(index)
        slots = torch.tensor(rows)[:, None]
        masked = canvas.masked[slots, columns] & active[:, None]
        kept = canvas.kept[index]
        end = canvas.window[index] + canvas.block_size
        places = (canvas.window[index] - kept)[:, None] + torch.arange(canvas.block_size)
        logits = self._forward(rows, end, media or {}, (places, masked))
        if keep:
            canvas.kept[index] = canvas.window[index]
        tokens, confidence, written = self._draw(rows, logits, masked)
        found = torch.stack([tokens, written.long(), confidence.isnan().long()]).cpu()  # the one wait for the device
        tokens, written = found[0], found[1].bool()
        canvas.ids[slots, columns] = torch.where(written, tokens, canvas.ids[slots, columns])
        canvas.masked[slots, columns] &= ~written
        for row, broken in zip(rows, found[2].any(-1).tolist(), strict=True):
            if broken:
                self.requests[row].finish_reason = "not_a_number"
        self._count(rows, active, masked, columns, confidence)

    def _commit(self, rows: list[int], media: dict[str, Any]) -> None:
        """Writes the clean tokens before the rows' windows to the cache, by a forward of their own."""
        canvas, index = self.canvas, as_index(rows)
        pending = canvas.window[index] > canvas.kept[index]
        if not bool(pending.any()):
            return
        none = torch.zeros(len(rows), 1, dtype=torch.bool)
        self._forward(rows, canvas.window[index], media, (none.long(), none))
        canvas.kept[index] = canvas.window[index]
        for row, wrote in zip(rows, pending.tolist(), strict=True):
            self.requests[row].forwards += wrote and not self.requests[row].finished

    def _forward(self, rows: list[int], end: Tensor, media: dict[str, Any], wanted: tuple[Tensor, Tensor]) -> Tensor:
        """One forward over the rows' columns from those in the cache to `end`.

        Args:
            rows: The n rows.
            end: First column behind each row's tokens [n].
            media: Image and video inputs of these columns.
            wanted: Places among the T tokens, and which of these places need logits; both [n, N].

        Returns:
            Logits [M, V] of the wanted places, row by row.
        """
        model, index = self.model, as_index(rows)
        device = model.get_input_embeddings().weight.device
        kept = self.canvas.kept[index]
        ids, positions, limits = self.canvas.tokens(index, end)
        width = ids.shape[1]
        length = int(kept.max()) + width
        self.cache.aim(rows, kept, width, device)
        places, chosen = wanted
        token_indices = (torch.arange(len(rows))[:, None] * width + places)[chosen]
        with ExitStack() as hooks:
            if not self._sliding and bool((limits == length).all()):
                mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
                hooks.enter_context(unmasked(model.base))
            else:
                mask = torch.arange(length, device=device) < limits.to(device)[:, None, :, None]
            return model(
                input_ids=ids.to(device),
                attention_mask=mask,
                position_ids=positions.to(device),
                past_key_values=self.cache,
                key_positions=self.canvas.key_positions(index, length).to(device) if self._sliding else None,
                token_indices=token_indices.to(device),
                use_cache=True,
                **media,
            ).logits

    def _draw(self, rows: list[int], logits: Tensor, masked: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Draws tokens for the masked places of every row and says which are kept, by each row's own settings.

        Args:
            rows: The n rows.
            logits: Of the masked places [M, V].
            masked: [n, D], on the CPU.

        Returns:
            Tokens, their confidences, and which are kept; all [n, D], and read only where masked.
        """
        groups: dict[Sampling, list[int]] = {}
        for place, row in enumerate(rows):
            groups.setdefault(self.requests[row].sampling, []).append(place)
        if len(groups) == 1:
            return self._draw_alike(rows, logits, masked)
        row_of = masked.nonzero()[:, 0]
        shape, device = masked.shape, logits.device
        tokens = torch.zeros(shape, dtype=torch.long, device=device)
        confidence = torch.zeros(shape, device=device)
        keep = torch.zeros(shape, dtype=torch.bool, device=device)
        for group in groups.values():
            members = torch.tensor(group)
            own = torch.isin(row_of, members).nonzero()[:, 0].to(device)
            drawn = self._draw_alike([rows[place] for place in group], logits[own], masked[members])
            for whole, part in zip((tokens, confidence, keep), drawn, strict=True):
                whole[members.to(device)] = part
        return tokens, confidence, keep

    def _draw_alike(self, rows: list[int], logits: Tensor, masked: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same for rows with the same settings."""
        requests = [self.requests[row] for row in rows]
        sampling = requests[0].sampling
        drawn, sure = choose_tokens(
            logits,
            self._forbidden,
            sampling,
            [request.generator for request in requests],
            masked.sum(-1).tolist(),
        )
        size = self.canvas.block_size
        quotas = [
            0 if request.finished else transfer_schedule(size, request.settings.denoising_steps or size)[request.step]
            for request in requests
        ]
        masked = masked.to(logits.device)
        tokens = drawn.new_zeros(masked.shape).masked_scatter(masked, drawn)
        confidence = sure.new_zeros(masked.shape).masked_scatter(masked, sure)
        quota = torch.tensor(quotas, device=logits.device)[:, None]
        return tokens, confidence, REMASKING[sampling.remasking](Draft(confidence, masked, quota, logits), sampling)

    def _count(self, rows: list[int], active: Tensor, masked: Tensor, columns: Tensor, confidence: Tensor) -> None:
        """Counts the step, notes it down where a request asks for that, and moves on where a block is done."""
        canvas = self.canvas
        left = canvas.masked[torch.tensor(rows)[:, None], columns]
        done = (active & ~left.any(-1)).tolist()
        for place, row in enumerate(rows):
            request = self.requests[row]
            if request.finished:
                continue
            request.forwards += 1
            request.step += 1
            ids = canvas.ids[row, columns[place]]
            if request.settings.output_history:
                sure = confidence[place].cpu().masked_fill(~masked[place], 1.0)
                step = (ids, left[place], sure, columns[place])
                request.history.append(DenoisingStep(request.block, *(tensor[None] for tensor in step)))
            if done[place]:
                before = max(request.prompt_length - int(columns[place, 0]), 0)
                request.take(ids[before:].tolist(), self.tokenizer)
                canvas.window[row] += 0 if request.finished else canvas.block_size
