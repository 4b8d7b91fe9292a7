"""Rows that are decoded together: their canvas, their cache, and the forwards over some of them.

Legend: n rows of a forward, R rows, D block size, M masked places of all rows, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import isnan
from typing import Any

import torch
from torch import Tensor

from .cache import Packed, SlotCache
from .canvas import Canvas
from .families import placeholder_ids
from .remasking import REMASKING, Draft
from .request import DenoisingStep, Request
from .sampling import Sampling, choose_tokens


@contextmanager
def unmasked(layers: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Inside, every token sees every key in these decoder layers: their attention runs its kernels without a mask."""

    def without(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "attention_mask": None, "is_causal": False}

    with ExitStack() as hooks:
        for layer in layers:
            hooks.callback(layer.register_forward_pre_hook(without, with_kwargs=True).remove)
        yield


class DecodingBatch:
    """Rows 0 to R - 1: a request, a canvas and a cache slot each.

    Args:
        model: The block-diffusion model.
        max_rows: Most rows.
        max_length: Most columns of a row.
        tokenizer: Decodes answers to look for stop strings; not needed without.
        fused_commit: Write a finished block's clean keys and values in the forward of the next block's first step.
        static_shapes: Run all slots over all columns, but for prompts.

    Attributes:
        requests: Row by row.
        canvases: Row by row.
        cache: Keys and values.
    """

    def __init__(
        self, model: Any, max_rows: int, max_length: int, tokenizer: Any, fused_commit: bool, static_shapes: bool
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.fused_commit, self.static_shapes = fused_commit, static_shapes
        self.requests: list[Request] = []
        self.canvases: list[Canvas] = []
        # A row in its last window may be padded, for the sake of others that have two blocks to run.
        self.cache = SlotCache(max_rows, max_length + 2 * model.config.block_size, static_shapes)
        self._device = model.get_input_embeddings().weight.device
        self._layers = list(model.base.get_decoder().layers)
        self._sliding = any(window is not None for window in model.windows.values())
        self._placeholders = set(placeholder_ids(model.base.config))
        self._forbidden = torch.tensor([model.config.mask_token_id, *self._placeholders], device=self._device)

    def add(self, request: Request, canvas: Canvas) -> None:
        """Appends a row, of which nothing is in the cache."""
        self.requests.append(request)
        self.canvases.append(canvas)

    def remove(self, row: int) -> None:
        """Removes a row and frees its slot; the last row takes its place."""
        last = len(self.requests) - 1
        self.cache.free(row, last, self.canvases[last].end)
        self.requests[row], self.canvases[row] = self.requests[last], self.canvases[last]
        self.requests.pop()
        self.canvases.pop()

    def draft(self, request: Request) -> list[int]:
        """Tokens of the answer in the request's window, the mask id where still masked."""
        canvas = self.canvases[self.requests.index(request)]
        window = canvas.ids[max(canvas.window, request.prompt_length) : canvas.end]
        return window[: request.settings.max_new_tokens - len(request.tokens)]

    def placeholders_in_windows(self, rows: list[int]) -> bool:
        """Whether any of these rows has an image or video token in its window."""
        canvases = (self.canvases[row] for row in rows)
        return any(self._placeholders & {*canvas.ids[canvas.window : canvas.end]} for canvas in canvases)

    def denoise(self, rows: list[int], media: dict[str, Any] | None = None, keep: bool = True) -> None:
        """Takes one denoising step.

        Args:
            rows: The n rows; those whose request has finished come along for the sake of their media.
            media: Image and video inputs of rows of which nothing is in the cache, in their order; None for others.
            keep: Whether the cache keeps the clean tokens before the rows' windows.
        """
        if keep and not self.fused_commit:
            self._commit(rows, media)
            media = None if media is None else {}
        canvases = [self.canvases[row] for row in rows]
        wanted = [[] if self.requests[row].finished else self.canvases[row].wanted for row in rows]
        logits = self._forward(rows, [canvas.span for canvas in canvases], wanted, media)
        drawn = self._draw(rows, wanted, logits)
        found = torch.stack([values.float() for values in drawn]).tolist()  # the one wait for the device
        for row, canvas, tokens, confidences, written in zip(rows, canvases, *found, strict=True):
            if keep:
                canvas.kept, canvas.fresh = canvas.window, True
            if not self.requests[row].finished:
                self._write(self.requests[row], canvas, tokens, confidences, written)

    def _commit(self, rows: list[int], media: dict[str, Any] | None) -> None:
        """Writes the clean tokens before the rows' windows to the cache, by a forward of their own."""
        pending = [self.canvases[row].kept < self.canvases[row].window for row in rows]
        if any(pending):
            spans = [range(self.canvases[row].kept, self.canvases[row].window) for row in rows]
            self._forward(rows, spans, [[] for _ in rows], media)
        for row, wrote in zip(rows, pending, strict=True):
            self.canvases[row].kept = self.canvases[row].window
            self.requests[row].forwards += wrote and not self.requests[row].finished

    def _forward(
        self, rows: list[int], spans: list[range], wanted: list[list[int]], media: dict[str, Any] | None
    ) -> Tensor:
        """One forward.

        Args:
            rows: The n rows.
            spans: Columns of each row that run.
            wanted: Columns of each row that need logits.
            media: Image and video inputs of these columns; None for rows that are in the cache.

        Returns:
            Logits [M, V] of the wanted columns, row by row.
        """
        canvases = [self.canvases[row] for row in rows]
        static = self.static_shapes and media is None
        if static:
            rows, canvases, spans, wanted = self._fill_up(rows, canvases, spans, wanted)
        inputs = pack(canvases, spans, self._device)
        if static:
            inputs = inputs._replace(start=None, length=self.cache.max_length, open=False)
        width = inputs.ids.shape[1]
        self.cache.aim(rows, inputs.columns, inputs.start, inputs.length, inputs.capacity)
        indices = [
            place * width + column - span.start
            for place, (span, columns) in enumerate(zip(spans, wanted, strict=True))
            for column in columns
        ]
        keys = torch.arange(inputs.length, device=self._device)
        with ExitStack() as hooks:
            if inputs.open and not self._sliding:
                mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self._device)
                hooks.enter_context(unmasked(self._layers))
            else:
                mask = keys < inputs.limits[:, None, :, None]
            if self.static_shapes and not static:
                hooks.enter_context(torch.compiler.set_stance("force_eager"))
            return self.model(
                input_ids=inputs.ids,
                attention_mask=mask,
                position_ids=inputs.positions,
                past_key_values=self.cache,
                # Layers with a sliding window have positions of one axis, which count the columns.
                key_positions=keys.expand(len(rows), -1) if self._sliding else None,
                token_indices=torch.tensor(indices, dtype=torch.long, device=self._device),
                use_cache=True,
                **(media or {}),
            ).logits

    def _fill_up(
        self, rows: list[int], canvases: list[Canvas], spans: list[range], wanted: list[list[int]]
    ) -> tuple[list[int], list[Canvas], list[range], list[list[int]]]:
        """What a forward over all slots runs; those that have nothing to run see one column, and nobody reads them."""
        empty = Canvas([], [[] for _ in canvases[0].position], [], 0, canvases[0].block_size, 0, [], [], 1, 0)
        slots = range(self.cache.max_slots)
        places = [rows.index(slot) if slot in rows else None for slot in slots]
        return (
            [*slots],
            [empty if place is None else canvases[place] for place in places],
            [range(0) if place is None else spans[place] for place in places],
            [[] if place is None else wanted[place] for place in places],
        )

    def _draw(self, rows: list[int], masked: list[list[int]], logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Draws tokens for the masked places of every row and says which are kept, by each row's own settings.

        Args:
            rows: The n rows.
            masked: Columns of each row that are masked.
            logits: Of these columns [M, V].

        Returns:
            Tokens, their confidences, and which are kept; all [n, D], and read only where masked.
        """
        groups: dict[Sampling, list[int]] = {}
        for place, row in enumerate(rows):
            groups.setdefault(self.requests[row].sampling, []).append(place)
        if len(groups) == 1:
            return self._draw_alike(rows, masked, logits)
        parts = logits.split([len(columns) for columns in masked])
        order = torch.tensor([place for group in groups.values() for place in group], device=self._device).argsort()
        drawn = [
            self._draw_alike(
                [rows[place] for place in group],
                [masked[place] for place in group],
                torch.cat([parts[place] for place in group]),
            )
            for group in groups.values()
        ]
        tokens, confidence, keep = (torch.cat(values)[order] for values in zip(*drawn, strict=True))
        return tokens, confidence, keep

    def _draw_alike(self, rows: list[int], masked: list[list[int]], logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same for rows with the same settings."""
        requests = [self.requests[row] for row in rows]
        sampling = requests[0].sampling
        drawn, sure = choose_tokens(
            logits,
            self._forbidden,
            sampling,
            [request.generator for request in requests],
            [len(columns) for columns in masked],
        )
        marks = []
        for row, columns, request in zip(rows, masked, requests, strict=True):
            canvas = self.canvases[row]
            quota = 0 if request.finished else canvas.quota
            marks.append([quota, *(column in columns for column in range(canvas.window, canvas.end))])
        quotas, places = torch.tensor(marks, device=self._device).split([1, self.model.config.block_size], dim=1)
        places = places.bool()
        tokens = drawn.new_zeros(places.shape).masked_scatter(places, drawn)
        confidence = sure.new_zeros(places.shape).masked_scatter(places, sure)
        keep = REMASKING[sampling.remasking](Draft(confidence, places, quotas, logits), sampling)
        return tokens, confidence, keep

    def _write(
        self, request: Request, canvas: Canvas, tokens: list[float], confidences: list[float], written: list[float]
    ) -> None:
        """Writes what one step [D] has kept, and moves on where the block is done."""
        places = {column: column - canvas.window for column in canvas.wanted}
        if any(isnan(confidences[place]) for place in places.values()):
            request.finish_reason = "not_a_number"
        canvas.write({column: int(tokens[place]) for column, place in places.items() if written[place]})
        request.forwards += 1
        request.step += 1
        if request.settings.output_history:
            request.history.append(_denoising_step(request.block, canvas, [*places], confidences))
        if not canvas.masked and not request.finished:
            request.take(canvas.ids[max(canvas.window, request.prompt_length) : canvas.end], self.tokenizer)
            if not request.finished:
                canvas.advance()


def _denoising_step(block: int, canvas: Canvas, drawn: list[int], confidences: list[float]) -> DenoisingStep:
    """What a step leaves, given the columns that it drew tokens for."""
    columns = range(canvas.window, canvas.end)
    sure = [confidences[place] if column in drawn else 1.0 for place, column in enumerate(columns)]
    return DenoisingStep(
        block,
        tokens=torch.tensor([canvas.ids[canvas.window : canvas.end]]),
        masked=torch.tensor([[column in canvas.masked for column in columns]]),
        confidence=torch.tensor([sure]),
        columns=torch.tensor([[*columns]]),
    )


def pack(canvases: Sequence[Canvas], spans: Sequence[range], device: torch.device) -> Packed:
    """Puts a span of columns of each row together, by one transfer to the device.

    Padding goes behind a row's window, where it spoils nothing that the row may see.
    """
    width = max(map(len, spans))
    axes = len(canvases[0].position)
    fields: list[list[list[int]]] = [[] for _ in range(3 + axes)]
    for canvas, span in zip(canvases, spans, strict=True):
        padding = width - len(span)
        fields[0].append(canvas.ids[span.start : span.stop] + [canvas.mask_token_id] * padding)
        fields[1].append([*span, *range(canvas.end, canvas.end + padding)])
        fields[2].append(canvas.limit[span.start : span.stop] + [max(span.stop, 1)] * padding)
        for axis in range(axes):
            fields[3 + axis].append(canvas.position[axis][span.start : span.stop] + [0] * padding)
    packed = torch.tensor(fields).to(device)
    length = max(map(max, fields[2]))
    first = fields[1][0][0]
    in_order = all(columns == [*range(first, first + width)] for columns in fields[1])
    return Packed(
        packed[0],
        packed[3:],
        packed[1],
        packed[2],
        length,
        capacity=1 + max(map(max, fields[1])),
        start=first if in_order else None,
        open=min(map(min, fields[2])) == length,
    )
