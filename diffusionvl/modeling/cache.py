"""The KV cache of rows that stand at different lengths: one slot a row, allocated ahead, written in place.

Legend: n rows of a forward, T tokens of a forward, H heads, d head size, K keys that a forward sees.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

Rows = slice | Tensor  # rows of a batch; a slice where they are contiguous, so that indexing by it copies nothing


class Place(NamedTuple):
    """Where the tokens of one forward go.

    Attributes:
        rows: Slots of the n rows.
        columns: Column of each token in its slot [n, T].
        start: First column of every row, if they all have the same; else None.
        slots: The rows as a tensor [n], if they start at different columns.
        length: K: the forward sees columns 0 to K - 1 of its slots.
    """

    rows: Rows
    columns: Tensor
    start: int | None
    slots: Tensor | None
    length: int


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, [slots, H, capacity, d] each, with zeros where nothing has been written."""

    is_sliding = False

    def __init__(self, slots: int, capacity: int, static: bool) -> None:
        super().__init__()
        self.slots, self.capacity, self.static = slots, capacity, static

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocates the slots; heads, sizes, type and device are those of the first keys and values [n, H, T, d]."""
        self.keys, self.values = (
            states.new_zeros(self.slots, states.shape[1], self.capacity, states.shape[3])
            for states in (key_states, value_states)
        )
        if self.static:
            for slots in (self.keys, self.values):
                torch._dynamo.mark_static_address(slots)  # CUDA graphs let a forward write to no other input
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes the keys and values [n, H, T, d] of a forward to their `Place`, the first of `args`.

        Returns:
            Keys and values [n, H, K, d] of these rows: views of the slots where the rows are contiguous.
        """
        place: Place = args[0]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        seen = []
        for slots, states in ((self.keys, key_states), (self.values, value_states)):
            width = states.shape[2]
            if place.start is not None:
                slots[place.rows, :, place.start : place.start + width] = states
            elif place.slots is not None:
                rows, columns = place.slots[:, None].to(slots.device), place.columns.to(slots.device)
                slots[rows, :, columns] = states.transpose(1, 2)
            whole = place.start == 0 and place.length == width  # the new ones are all there are
            seen.append(states if whole else slots[place.rows, :, : place.length])
        return seen[0], seen[1]

    def grow(self, slots: int, capacity: int) -> None:
        """Makes room, keeping what is written."""
        if self.is_initialized:
            for name in ("keys", "values"):
                old = getattr(self, name)
                new = old.new_zeros(slots, old.shape[1], capacity, old.shape[3])
                new[: old.shape[0], :, : old.shape[2]] = old
                setattr(self, name, new)
        self.slots, self.capacity = slots, capacity

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys that a mask would cover, and where they begin; not asked for beside a 4-D mask."""
        return self.capacity, 0

    def get_seq_length(self) -> int:
        """Columns of a slot; a row's own length is in the engine's canvas."""
        return self.capacity

    def get_max_length(self) -> int:
        """A slot grows: no maximum of its own."""
        return -1


class SlotCache(Cache):
    """A transformers cache of slots that grow by doubling, up to a bound.

    A denoising step writes its noisy window behind the row's clean tokens, where the next step overwrites it: nothing
    has to be cropped, and nothing of the past is copied. Who may see what is the mask's business.

    Args:
        max_slots: Most rows.
        max_length: Most columns of a row.
        static: Allocate all of it at once, for good.
    """

    def __init__(self, max_slots: int, max_length: int, static: bool = False) -> None:
        super().__init__(layers=[])
        self.max_slots, self.max_length, self.static = max_slots, max_length, static
        self.slots, self.capacity = (max_slots, max_length) if static else (0, 0)
        self._place: Place | None = None

    @property
    def nbytes(self) -> int:
        """Memory that the slots take."""
        layers = [layer for layer in self.layers if layer.is_initialized]
        return sum(tensor.nbytes for layer in layers for tensor in (layer.keys, layer.values))

    def aim(self, rows: list[int], columns: Tensor, start: int | None, length: int, capacity: int) -> None:
        """Says where the next forward's tokens go, and makes room for them.

        Args:
            rows: Slots of the n rows.
            columns: Of each token in its slot [n, T].
            start: First column of every row, if they all have the same; else None.
            length: K: the forward sees columns 0 to K - 1.
            capacity: Columns that a slot must have.
        """
        self._reserve(max(rows) + 1, capacity)
        slots = torch.tensor(rows, device=columns.device) if start is None else None
        self._place = Place(as_index(rows), columns, start, slots, length)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Writes keys and values [n, H, T, d] of a layer where `aim` said; see `SlotLayer.update`."""
        while len(self.layers) <= layer_idx:
            self.layers.append(SlotLayer(self.slots, self.capacity, self.static))
        return self.layers[layer_idx].update(key_states, value_states, self._place)

    def free(self, slot: int, last: int, length: int) -> None:
        """Frees a slot: the last row moves into it, so that rows stay contiguous.

        What is freed is zeroed. Keys that nobody may see still meet queries in a matrix product, where a value that
        is not finite would spoil another row.

        Args:
            slot: The row that leaves.
            last: The last row; may be the same.
            length: Columns that the last row needs.
        """
        for layer in self.layers:
            if layer.is_initialized:
                for slots in (layer.keys, layer.values):
                    slots[slot] = 0
                    if slot != last:
                        slots[slot, :, :length] = slots[last, :, :length]
                        slots[last] = 0

    def _reserve(self, slots: int, length: int) -> None:
        """Makes room for so many rows and columns; by doubling, so that copies stay few."""
        if slots <= self.slots and length <= self.capacity:
            return
        rows = max(slots, min(2 * self.slots, self.max_slots)) if slots > self.slots else self.slots
        columns = max(length, min(2 * self.capacity, self.max_length)) if length > self.capacity else self.capacity
        for layer in self.layers:
            layer.grow(rows, columns)
        self.slots, self.capacity = rows, columns  # behind the layers, which may run out of memory


def as_index(rows: list[int]) -> Rows:
    """Rows as a slice if they are contiguous, else as a tensor.

    >>> as_index([2, 3, 4])
    slice(2, 5, None)
    """
    if rows == list(range(rows[0], rows[0] + len(rows))):
        return slice(rows[0], rows[0] + len(rows))
    return torch.tensor(rows)


class Packed(NamedTuple):
    """Rows of a forward, each with columns of its own, padded on the right.

    Attributes:
        ids: [n, T].
        positions: [A, n, T].
        columns: Where each token goes in its slot [n, T].
        limits: A token sees the columns left of its limit; at least 1, so that nobody is left without a key [n, T].
        length: K: nobody sees a column behind it.
        capacity: Columns that a slot must have.
        start: First column of every row, if all have the same and columns follow one another; else None.
        open: Whether all tokens see all columns, so that no mask is needed.
    """

    ids: Tensor
    positions: Tensor
    columns: Tensor
    limits: Tensor
    length: int
    capacity: int
    start: int | None
    open: bool
