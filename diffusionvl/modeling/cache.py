"""The KV cache of rows that stand at different lengths: a slot for each row, allocated ahead, written in place.

Legend: n rows of a forward, T tokens of a forward, A axes of a position, H heads, d head size, K keys of a forward.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from .canvas import Run

Rows = slice | Tensor  # rows of a batch; a slice where they are contiguous, so that indexing by it copies nothing


class Packed(NamedTuple):
    """Columns of several rows, padded on the right, for one forward.

    Attributes:
        rows: Slots of the n rows.
        ids: [n, T].
        positions: [A, n, T].
        columns: Column of each token in its slot [n, T].
        streams: 0 for clean tokens, 1 for noisy ones; None if all are clean [n, T].
        limits: A token sees the columns left of its limit; at least 1, so that no query is without a key [n, T].
        length: K, the number of columns that the forward sees.
        capacity: Columns that a slot must have.
        start: First column of every row, if all start there and run without gaps; otherwise None.
        open: Whether all tokens see all K columns, so that no mask is needed.
    """

    rows: list[int]
    ids: Tensor
    positions: Tensor
    columns: Tensor
    streams: Tensor | None
    limits: Tensor
    length: int
    capacity: int
    start: int | None
    open: bool


def pack(
    rows: list[int],
    runs: Sequence[Run],
    padding_id: int,
    device: torch.device,
    multiple: int = 1,
    last: int | None = None,
) -> Packed:
    """Puts the runs of several rows together, by one transfer to the device.

    Padding goes after the columns that a row uses, where it spoils nothing that the row may see, up to the `last` one.
    With a `multiple`, forwards of more than one token a row have a multiple of it, so that they have few shapes.
    """
    width = max(len(run.columns) for run in runs)
    width = width if width == 1 else -(-width // multiple) * multiple
    fields: list[list[list[int]]] = [[] for _ in range(4 + len(runs[0].positions))]
    for run in runs:
        padding = width - len(run.columns)
        fields[0].append(run.ids + [padding_id] * padding)
        after = range(run.end, run.end + padding)
        fields[1].append([*run.columns, *(after if last is None else (min(column, last) for column in after))])
        fields[2].append(run.limits + [max(run.columns.stop, 1)] * padding)
        fields[3].append([0] * run.clean + [1] * (len(run.columns) - run.clean) + [0] * padding)
        for axis, positions in zip(fields[4:], run.positions, strict=True):
            axis.append(positions + [0] * padding)
    packed = torch.tensor(fields).to(device)
    length, first = max(map(max, fields[2])), fields[1][0][0]
    in_order = all(columns == [*range(first, first + width)] for columns in fields[1])
    return Packed(
        rows,
        packed[0],
        packed[4:],
        packed[1],
        packed[3] if any(map(any, fields[3])) else None,
        packed[2],
        length,
        capacity=1 + max(map(max, fields[1])),
        start=first if in_order else None,
        open=min(map(min, fields[2])) == length,
    )


class SlotLayer:
    """Keys and values of one layer, [slots, H, capacity, d] each, with zeros where nothing has been written."""

    def __init__(self, slots: int, capacity: int, keys: Tensor, values: Tensor, static: bool) -> None:
        """Allocates the slots; heads, sizes, type and device are those of some keys and values [n, H, T, d]."""
        self.keys, self.values = (
            states.new_zeros(slots, states.shape[1], capacity, states.shape[3]) for states in (keys, values)
        )
        if static:
            for held in (self.keys, self.values):
                torch._dynamo.mark_static_address(held)  # CUDA graphs let a forward write to no other input

    def reserve(self, slots: int, capacity: int) -> None:
        """Makes room, keeping what is written."""
        if self.keys.shape[0] >= slots and self.keys.shape[2] >= capacity:
            return
        grown = []
        for old in (self.keys, self.values):
            new = old.new_zeros(max(slots, old.shape[0]), old.shape[1], max(capacity, old.shape[2]), old.shape[3])
            new[: old.shape[0], :, : old.shape[2]] = old
            grown.append(new)
        self.keys, self.values = grown  # after both, either of which may run out of memory


class SlotCache:
    """Slots that grow by doubling, up to a bound. A forward writes to them through `at`.

    A step writes its noisy tokens after the row's clean ones, where the next step overwrites them: nothing has to be
    cropped, and nothing of the past is copied. Which token sees which column is left to the mask.

    Args:
        max_slots: Largest number of rows.
        max_length: Largest number of columns of a row.
        static: Allocate all of it at once, for good.
    """

    def __init__(self, max_slots: int, max_length: int, static: bool = False) -> None:
        self.max_slots, self.max_length, self.static = max_slots, max_length, static
        self.slots, self.capacity = (max_slots, max_length) if static else (0, 0)
        self.by_index: dict[int, SlotLayer] = {}  # layers that borrow another's keys and values have none
        self._soiled: set[int] = set()  # slots that are free and not yet zeroed

    @property
    def layers(self) -> list[SlotLayer]:
        """The layers that have keys and values of their own."""
        return [*self.by_index.values()]

    @property
    def nbytes(self) -> int:
        """Memory that the slots take."""
        return sum(tensor.nbytes for layer in self.layers for tensor in (layer.keys, layer.values))

    def at(self, packed: Packed) -> "Forward":
        """Makes room for a forward, and returns the cache that the model writes its keys and values to."""
        self._reserve(max(packed.rows) + 1, packed.capacity)
        return Forward(self, packed)

    def put(self, slot: int, layers: dict[int, tuple[Tensor, Tensor]], length: int) -> None:
        """Writes the first columns of a slot: keys and values [H, C, d] of each layer, C at least `length`."""
        self._reserve(slot + 1, length)
        for index, given in layers.items():
            for held, own in zip((self.by_index[index].keys, self.by_index[index].values), given, strict=True):
                held[slot, :, :length] = own[:, :length]

    def _reserve(self, slots: int, length: int) -> None:
        """Makes room, by doubling, so that copies stay few."""
        if slots > self.slots:
            slots = max(slots, min(2 * self.slots, self.max_slots))
        if length > self.capacity:
            length = max(length, min(2 * self.capacity, self.max_length))
        slots, length = max(slots, self.slots), max(length, self.capacity)
        for layer in self.layers:
            layer.reserve(slots, length)
        self.slots, self.capacity = slots, length  # after the layers, which may run out of memory

    def free(self, slot: int, last: int, length: int) -> None:
        """Frees a slot: the last row moves into it, so that rows stay contiguous.

        What is freed is zeroed. Keys that no token may see still meet queries in a matrix product, where a value that
        is not finite would spoil another row.

        Args:
            slot: The row that leaves.
            last: The last row; may be the same.
            length: Columns that the last row needs.
        """
        self._soiled |= {slot, last}
        for layer in self.layers if slot != last else []:
            for held in (layer.keys, layer.values):
                held[slot : slot + 1] = 0  # slices, since a row that has not been read may have no slot yet
                if last < len(held):
                    held[slot, :, :length] = held[last, :, :length]
        self._soiled -= {slot} if slot != last else set()
        self.clean()

    def is_clean(self, first: int) -> bool:
        """Whether the slots from `first` on hold nothing."""
        return not any(bool(held[first:].any()) for layer in self.layers for held in (layer.keys, layer.values))

    def clean(self) -> None:
        """Zeroes the slots that have been freed."""
        for slot in [*self._soiled]:
            for layer in self.layers:
                layer.keys[slot : slot + 1] = 0
                layer.values[slot : slot + 1] = 0
            self._soiled.discard(slot)


class Forward(Cache):
    """The slots as one forward of a model of transformers sees them.

    Args:
        cache: The slots.
        packed: What the forward runs, and where its keys and values go.
    """

    def __init__(self, cache: SlotCache, packed: Packed) -> None:
        super().__init__(layers=[])
        self._cache, self._start, self._length = cache, packed.start, packed.length
        self._rows = as_index(packed.rows)
        self._columns = packed.columns
        self._before = packed.length - packed.ids.shape[1]
        self._slots = torch.tensor(packed.rows, device=packed.columns.device) if packed.start is None else None

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Writes the keys and values [n, H, T, d] of a layer.

        Returns:
            Keys and values [n, H, K, d] of these rows: views of the slots where the rows are contiguous.
        """
        cache = self._cache
        if layer_idx not in cache.by_index:
            cache.by_index[layer_idx] = SlotLayer(cache.slots, cache.capacity, key_states, value_states, cache.static)
        layer, seen = cache.by_index[layer_idx], []
        for held, states in ((layer.keys, key_states), (layer.values, value_states)):
            width = states.shape[2]
            if self._start is not None:
                held[self._rows, :, self._start : self._start + width] = states
            elif self._slots is not None:
                rows, columns = self._slots[:, None].to(held.device), self._columns.to(held.device)
                held[rows, :, columns] = states.transpose(1, 2)
            whole = self._start == 0 and self._length == width  # the new ones are all there are
            seen.append(states if whole else held[self._rows, :, : self._length])
        return seen[0], seen[1]

    def get_mask_sizes(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """Number of keys that a mask would cover, and where they begin; not needed beside a 4-D mask."""
        return self._length, 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns before the longest row's tokens; a row's own length is known to its canvas."""
        return self._before

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """A slot grows: it has no maximum of its own."""
        return -1


def as_index(rows: list[int]) -> Rows:
    """Rows as a slice if they are contiguous, otherwise as a tensor.

    >>> as_index([2, 3, 4])
    slice(2, 5, None)
    """
    if rows == list(range(rows[0], rows[0] + len(rows))):
        return slice(rows[0], rows[0] + len(rows))
    return torch.tensor(rows)
