"""Rows that are decoded together: their requests, their cache, and the forwards over some of them.

Legend: n rows of a forward, R rows, D block size, W places of a row that need a token, M of all rows, V vocabulary.
"""

import inspect
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from .block_canvas import BlockCanvas
from .cache import SlotCache, pack
from .canvas import Run
from .constraint import fill_bitmasks, unpack
from .errors import UserError
from .families import placeholder_ids, unwritable_ids
from .logprobs import read_scores, score_tokens
from .remasking import REMASKING, Draft
from .request import Request
from .sampling import Sampling, choose_next, choose_tokens


def unmaskable(decoder: torch.nn.Module, layers: int) -> list[tuple[torch.nn.Module, int]]:
    """The attention modules of a decoder, each with the place of its mask argument; none if one cannot do without.

    Without a mask, attention of transformers is causal unless the module's `is_causal` says otherwise.
    """
    found = []
    for module in decoder.modules():
        names = [*inspect.signature(module.forward).parameters]
        if "is_causal" in vars(module) and "attention_mask" in names:
            found.append((module, names.index("attention_mask")))
    return found if len(found) == layers else []


@contextmanager
def unmasked(attention: list[tuple[torch.nn.Module, int]]) -> Iterator[None]:
    """Inside, every token sees every key in these attention modules: they run their kernels without a mask."""
    with ExitStack() as undo:
        for module, place in attention:

            def without(
                module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], place: int = place
            ) -> tuple[Any, dict[str, Any]]:
                if len(args) > place:
                    return (*args[:place], None, *args[place + 1 :]), kwargs
                return args, {**kwargs, "attention_mask": None}

            undo.callback(module.register_forward_pre_hook(without, with_kwargs=True).remove)
            undo.callback(setattr, module, "is_causal", module.is_causal)
            module.is_causal = False  # type: ignore[assignment]
        yield


class DecodingBatch:
    """Rows 0 to R - 1: a request and a cache slot each.

    Args:
        model: The block-diffusion model.
        max_rows: Largest number of rows.
        max_length: Largest number of columns of a row.
        tokenizer: Decodes answers to look for stop strings; not needed without them.
        fused_commit: Write a finished block's clean keys and values in the forward of the next block's first step.
        static_shapes: Run all slots over all columns, except for prompts.

    Attributes:
        requests: Row by row.
        cache: Keys and values.
        unwritable: Ids that no answer may hold: the mask token and placeholders.
    """

    def __init__(
        self, model: Any, max_rows: int, max_length: int, tokenizer: Any, fused_commit: bool, static_shapes: bool
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.fused_commit, self.static_shapes = fused_commit, static_shapes
        self.requests: list[Request] = []
        # A row in its last window may be padded, for the sake of others that have two blocks to run.
        self.cache = SlotCache(max_rows, max_length + 2 * model.config.block_size, static_shapes)
        embeddings = model.get_input_embeddings().weight
        self._device = embeddings.device
        # Time that other programs take from a CPU does not count as a forward's cost; a GPU is waited for.
        self._clock = time.thread_time if self._device.type == "cpu" else time.perf_counter
        text = model.base.config.get_text_config(decoder=True)
        self._attention = unmaskable(model.base.get_decoder(), text.num_hidden_layers)
        self._sliding = any(window is not None for window in model.windows.values())
        self._placeholders = set(placeholder_ids(model.base.config))
        self.unwritable = unwritable_ids(model)
        ids = range(len(embeddings))  # the base of a draft adapter may embed no mask
        self._padding_id = next(
            one for one in (model.config.mask_token_id, *ids) if one in ids and one not in self._placeholders
        )
        known = [one for one in self.unwritable if one < text.vocab_size]
        self._forbidden = torch.tensor(known, dtype=torch.long, device=self._device)

    def remove(self, row: int) -> None:
        """Removes a row and frees its slot; the last row takes its place."""
        last = len(self.requests) - 1
        self.cache.free(row, last, self.requests[last].canvas.end)
        self.requests[row] = self.requests[last]
        self.requests.pop()

    def placeholders_in_windows(self, requests: list[Request]) -> bool:
        """Whether any of these rows has an image or video token in its window."""
        canvases = (request.canvas for request in requests)
        return any(self._placeholders & {*canvas.ids[canvas.window : canvas.end]} for canvas in canvases)

    def step(self, requests: list[Request], media: dict[str, Any] | None = None, keep: bool = True) -> None:
        """Takes one step with each of some rows.

        What raises inside the forward or the draw leaves every row, and every source of randomness, as it was. What
        raises for one row after that (a tokenizer, a criterion) ends that row's request.

        Args:
            requests: Those of the n rows; the ones that have finished come along for the sake of their media.
            media: Image and video inputs of rows of which nothing is in the cache, in their order; None for others.
            keep: Whether the cache keeps the rows' pending clean tokens.
        """
        states = [(own, own.get_state()) for own in {request.generator for request in requests} if own is not None]
        try:
            if keep and not self.fused_commit and all(isinstance(row.canvas, BlockCanvas) for row in requests):
                self._commit(requests, media)
                media = None if media is None else {}
            begin, self.model.draft_pace.rows = self._clock(), len(requests)
            wanted = [[] if request.finished else request.canvas.wanted for request in requests]
            logits = self._forward(requests, [request.canvas.span for request in requests], wanted, media)
            found = self._draw(requests, wanted, logits)
            if media is None:  # a prompt costs more than its tokens
                spans = [request.canvas.span for request in requests]
                self.model.draft_pace.note_cost(len(spans) * max(map(len, spans)), self._clock() - begin)
        except BaseException:
            for own, state in states:
                own.set_state(state)
            raise
        for request, columns, (tokens, confidences, kept, *scores) in zip(requests, wanted, found, strict=True):
            count = len(columns)
            try:
                if keep:
                    request.canvas.see()
                if not request.finished:
                    drawn = [int(token) for token in tokens[:count]]
                    if (most := request.settings.top_logprobs) is not None:
                        request.score([read_scores(scores, place, most) for place in range(count)])
                    request.receive(drawn, confidences[:count], [bool(own) for own in kept[:count]], self.tokenizer)
            except Exception as error:
                request.end("error", error)

    def _commit(self, requests: list[Request], media: dict[str, Any] | None) -> None:
        """Writes the pending clean tokens to the cache, by a forward of their own."""
        spans = [range(request.canvas.kept, request.canvas.window) for request in requests]
        if any(spans):
            self._forward(requests, spans, [[] for _ in requests], media)
        for request, span in zip(requests, spans, strict=True):
            request.canvas.kept = request.canvas.window
            request.forwards += bool(span) and not request.finished

    def _forward(
        self, requests: list[Request], spans: list[range], wanted: list[list[int]], media: dict[str, Any] | None
    ) -> Tensor:
        """One forward.

        Args:
            requests: Those of the n rows.
            spans: Columns of each row that run.
            wanted: Columns of each row that need logits.
            media: Image and video inputs of these columns; None for rows that are in the cache.

        Returns:
            Logits [M, V] of the wanted columns, row by row.
        """
        rows = [self.requests.index(request) for request in requests]
        runs = [request.canvas.run(span) for request, span in zip(requests, spans, strict=True)]
        # Forced tokens may be many; they are read as a prompt is.
        few = max(len(run.columns) for run in runs) <= 2 * self.model.config.block_size
        static = self.static_shapes and media is None and few
        if static:  # all slots; those that have nothing to run see one column, and nobody reads what they give
            places = [rows.index(slot) if slot in rows else None for slot in range(self.cache.max_slots)]
            rows = [*range(self.cache.max_slots)]
            ends = [request.canvas.end for request in self.requests] + [0] * len(rows)
            idle = [Run(range(0), [], [[] for _ in runs[0].positions], [], 0, ends[slot]) for slot in rows]
            runs = [idle[slot] if place is None else runs[place] for slot, place in enumerate(places)]
            wanted = [[] if place is None else wanted[place] for place in places]
        config = self.model.config
        last = self.cache.max_length - 1
        packed = pack(rows, runs, self._padding_id, self._device, config.block_size if static else 1, last)
        if static:
            packed = packed._replace(start=None, length=self.cache.max_length, open=False)
        width = packed.ids.shape[1]
        indices = [
            place * width + column - run.columns.start
            for place, (run, columns) in enumerate(zip(runs, wanted, strict=True))
            for column in columns
        ]
        keys = torch.arange(packed.length, device=self._device)
        with ExitStack() as hooks:
            if packed.open and self._attention and not self._sliding:
                mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self._device)
                hooks.enter_context(unmasked(self._attention))
            else:
                mask = keys < packed.limits[:, None, :, None]
            if self.static_shapes and not static:
                hooks.enter_context(torch.compiler.set_stance("force_eager"))
            return self.model(
                input_ids=packed.ids,
                attention_mask=mask,
                position_ids=packed.positions,
                stream_ids=packed.streams,
                past_key_values=self.cache.at(packed),
                # Layers with a sliding window have positions of one axis, which count the columns.
                key_positions=keys.expand(len(rows), -1) if self._sliding else None,
                token_indices=torch.tensor(indices, dtype=torch.long, device=self._device),
                use_cache=True,
                **(media or {}),
            ).logits

    def _draw(self, requests: list[Request], wanted: list[list[int]], logits: Tensor) -> list[tuple[list[float], ...]]:
        """Draws a token for each wanted column and decides which are kept, by each row's own settings.

        Args:
            requests: Those of the n rows.
            wanted: Columns of each row that need a token.
            logits: Of these columns [M, V].

        Returns:
            Tokens, their confidences, which are kept, and what `score_tokens` returns where rows want it, for each
            row; lists of the longest row's length.
        """
        parts = logits.split([len(columns) for columns in wanted])
        own = [
            logits.new_empty(0) if request.finished else self._adjusted(request, part)
            for request, part in zip(requests, parts, strict=True)
        ]
        self._constrain(requests, own)
        groups: dict[Sampling, list[int]] = {}
        for place, request in enumerate(requests):
            if not request.finished:
                groups.setdefault(request.sampling, []).append(place)
        width = max(len(columns) for columns in wanted)
        scored = {
            place: request.settings.top_logprobs
            for place, request in enumerate(requests)
            if request.settings.top_logprobs is not None and not request.finished
        }
        most = min(max(scored.values(), default=0), logits.shape[1])
        found = torch.zeros(4 + 2 * most if scored else 3, len(requests), width, device=self._device)
        for sampling, places in groups.items():
            rows = [requests[place] for place in places]
            drawn = self._draw_alike(sampling, rows, [own[place] for place in places], width)
            found[:3, places] = torch.stack([values.float() for values in drawn])
        for place in scored:
            tokens = found[0, place, : len(parts[place])].long()
            found[3:, place, : len(tokens)] = score_tokens(parts[place], tokens, most)
        return [*zip(*found.tolist(), strict=True)]  # the one wait for the device

    def _adjusted(self, request: Request, logits: Tensor) -> Tensor:
        """A row's logits after its own processors."""
        try:
            adjusted = request.adjust(logits)
            if adjusted.shape != logits.shape:
                raise UserError(
                    f"logits_processor made {[*adjusted.shape]} of scores {[*logits.shape]}; keep the shape"
                )
        except Exception as error:
            request.end("error", error)
            return logits
        return adjusted

    def _constrain(self, requests: list[Request], own: list[Tensor]) -> None:
        """Leaves in the rows' logits only what their constraints allow next, with one transfer for all rows.

        Where processors leave nothing of that, the constraint wins: they only lower the scores of what it allows.
        """
        rows = {place: one for place, one in enumerate(requests) if one.constraint is not None and not one.finished}
        constraints = [one.constraint for one in rows.values() if one.constraint is not None]
        if not constraints:
            return
        bits = fill_bitmasks(constraints)
        possible, places, begin = bits.any(-1).tolist(), list[int](), 0
        for request, constraint, logits in zip(rows.values(), constraints, [own[row] for row in rows], strict=True):
            count = len(constraint.plan)
            try:
                constraint.check(all(possible[len(places) : len(places) + count]))
            except UserError as error:
                request.end("error", error)
            places += range(begin, begin + count)  # the first of the row's places
            begin += len(logits)
        joined = torch.cat([own[row] for row in rows]).float().clamp(min=torch.finfo(torch.float32).min)
        index = torch.tensor(places, device=self._device)
        allowed = unpack(bits.to(self._device), joined.shape[1])
        joined[index] = joined[index].masked_fill(~allowed, -torch.inf)
        for row, logits in zip(rows, joined.split([len(own[row]) for row in rows]), strict=True):
            own[row] = logits

    def _draw_alike(
        self, sampling: Sampling, requests: list[Request], logits: list[Tensor], width: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same for rows with the same settings, as tensors [n, W]; what stands after a row's last is not read."""
        counts, joined = [len(part) for part in logits], torch.cat(logits)
        places = torch.arange(width, device=self._device) < torch.tensor(counts, device=self._device)[:, None]

        def spread(values: Tensor) -> Tensor:
            return values.new_zeros(places.shape).masked_scatter(places, values)

        if sampling.decoding != "denoise":
            seeds, targets = [request.seed for request in requests], [request.canvas.targets for request in requests]
            tokens, confidence, keep = map(spread, choose_next(joined, sampling, seeds, targets))
            return tokens, confidence, keep
        generators = [request.generator for request in requests]
        tokens, confidence = map(spread, choose_tokens(joined, self._forbidden, sampling, generators, counts))
        quotas = torch.tensor([[request.canvas.quota] for request in requests], device=self._device)
        in_order = torch.tensor([[request.constraint is not None] for request in requests], device=self._device)
        confidence = torch.where(in_order, confidence.cummin(-1).values, confidence)
        draft = Draft(confidence, places, quotas, joined, in_order)
        return tokens, confidence, REMASKING[sampling.remasking](draft, sampling)
