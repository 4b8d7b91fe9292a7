"""The slot cache: written in place at each row's own column, grown by doubling, and clean when a slot is freed."""

import pytest
import torch

from diffusionvl.modeling.cache import SlotCache, as_index, pack
from diffusionvl.modeling.canvas import Run


def states(rows, tokens, value):
    """Keys and values [n, 2 heads, T, 3]: row r, token t holds value + 10 r + t; values are negative."""
    keys = value + 10.0 * torch.arange(rows)[:, None, None, None] + torch.arange(tokens)[:, None]
    keys = keys.expand(rows, 2, tokens, 3)
    return keys, -keys


def write(cache, rows, kept, tokens, value):
    runs = [
        Run(range(first, first + tokens), [0] * tokens, [[0] * tokens], [first + tokens] * tokens, tokens, 64)
        for first in kept
    ]
    forward = cache.at(pack(rows, runs, 0, torch.device("cpu")))
    found = [forward.update(*states(len(rows), tokens, value), layer) for layer in range(2)]
    assert all(torch.equal(keys, -values) for keys, values in found)
    return found[0][0]


def test_rows_write_at_their_own_columns_and_see_all_of_their_slots():
    cache = SlotCache(4, 64)
    new = write(cache, [0, 1], [0, 0], 5, 100.0)
    assert new.shape == (2, 2, 5, 3)
    seen = write(cache, [0, 1], [5, 3], 2, 500.0)  # row 1 keeps 3 of its 5 tokens
    assert seen[0, 0, :, 0].tolist() == [100, 101, 102, 103, 104, 500, 501]
    assert seen[1, 1, :5, 2].tolist() == [110, 111, 112, 510, 511]
    seen = write(cache, [0, 1], [5, 5], 1, 900.0)  # equal columns: written as a slice
    assert seen[:, 0, -1, 0].tolist() == [900, 910]
    assert seen[:, 0, 4, 0].tolist() == [104, 511]


def test_nothing_of_the_past_is_copied():
    cache = SlotCache(4, 64)
    write(cache, [0, 1, 2], [0, 0, 0], 8, 0.0)
    seen = write(cache, [0, 1, 2], [4, 2, 3], 4, 0.0)
    assert seen.untyped_storage().data_ptr() == cache.layers[0].keys.untyped_storage().data_ptr()
    scattered = write(cache, [0, 2], [4, 3], 4, 50.0)  # only rows that are not contiguous are gathered
    assert scattered[1, 0, 3, 0] == 60


def test_it_grows_by_doubling_up_to_its_bound_and_keeps_what_it_has():
    cache = SlotCache(5, 40)
    assert cache.nbytes == 0
    sizes = []
    for rows, kept, tokens in (
        ([0], [0], 6),
        ([0], [6], 1),
        ([0, 1], [7, 0], 14),
        ([0], [21], 4),
        ([0, 1, 2], [30] * 3, 10),
    ):
        write(cache, rows, kept, tokens, 100.0 * kept[0])
        sizes.append(tuple(cache.layers[1].keys.shape[::2]))
    assert sizes == [(1, 6), (1, 12), (2, 24), (2, 40), (4, 40)]
    assert cache.layers[1].keys[0, 0, :8, 0].tolist() == [0, 1, 2, 3, 4, 5, 600, 700]
    assert cache.nbytes == 2 * 2 * 4 * 2 * 40 * 3 * 4


def test_growth_that_fails_for_want_of_memory_can_be_tried_again(monkeypatch):
    cache = SlotCache(4, 64)
    write(cache, [0, 1], [0, 0], 4, 100.0)

    def fail(slots, capacity):
        raise MemoryError

    monkeypatch.setattr(cache.layers[1], "reserve", fail)
    with pytest.raises(MemoryError):
        write(cache, [0, 1], [4, 4], 4, 500.0)
    monkeypatch.undo()
    seen = write(cache, [0, 1], [4, 4], 4, 500.0)
    assert seen[1, 0, :, 0].tolist() == [110, 111, 112, 113, 510, 511, 512, 513]


@pytest.mark.parametrize("slot", [0, 1, 2])
def test_a_freed_slot_holds_nothing_and_the_last_row_moves_into_it(slot):
    cache = SlotCache(4, 64)
    write(cache, [0, 1, 2], [0, 0, 0], 6, 100.0)
    cache.layers[0].keys[slot] = torch.nan
    last = cache.layers[0].keys[2, 0, :4, 0].tolist()
    cache.free(slot, 2, 4)
    keys = cache.layers[0].keys
    assert not keys[2].any()
    if slot != 2:
        assert keys[slot, 0, :, 0].tolist() == [*last, 0.0, 0.0]
    assert not keys.isnan().any()


@pytest.mark.parametrize(("slot", "last"), [(0, 1), (0, 7), (5, 7), (7, 7)])
def test_rows_that_have_no_slot_yet_are_freed_like_others(slot, last):
    """Their prompts have not been read: a forward failed, or they were aborted before it."""
    cache = SlotCache(9, 64)
    write(cache, [0, 1], [0, 0], 6, 100.0)
    moved = cache.layers[0].keys[1, 0, :6, 0].tolist() if last == 1 else [0.0] * 6
    cache.free(slot, last, 6)
    keys = cache.layers[0].keys
    assert keys[0, 0, :6, 0].tolist() == (moved if slot == 0 else [100, 101, 102, 103, 104, 105])
    assert cache.is_clean(1 if last == 1 else 2)


def test_rows_that_are_contiguous_are_a_slice():
    assert as_index([0, 1, 2]) == slice(0, 3)
    assert as_index([4]) == slice(4, 5)
    assert as_index([0, 2]).tolist() == [0, 2]
    assert as_index([1, 0]).tolist() == [1, 0]
