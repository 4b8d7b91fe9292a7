"""Packing: every document once, no row over its budgets, and little room left over."""

import numpy as np
import pytest

from diffusionvl.data.packing import pack


def some_documents(count, seed):
    random = np.random.default_rng(seed)
    return random.integers(0, 100, count), random.integers(0, 4, count)


@pytest.mark.parametrize("count", [1, 2, 50, 1000])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_budgets_are_kept_and_every_document_has_a_place(count, seed):
    tokens, images = some_documents(count, seed)
    rows = pack(tokens, images, 100, 5)
    assert sorted(np.concatenate(rows).tolist()) == list(range(count))
    for row in rows:
        assert tokens[row].sum() <= 100
        assert images[row].sum() <= 5
        assert row.tolist() == sorted(row.tolist())


def test_rows_are_nearly_full():
    tokens, _ = some_documents(5000, 0)
    rows = pack(tokens, np.zeros_like(tokens), 200, 1)
    assert tokens.sum() / (200 * len(rows)) > 0.99


def test_the_fullest_row_with_room_is_taken():
    assert [row.tolist() for row in pack(np.array([60, 50, 40, 30, 20]), np.zeros(5, dtype=int), 100, 1)] == [
        [0, 2],
        [1, 3, 4],
    ]


def test_images_have_a_budget_of_their_own():
    tokens, images = np.array([10, 10, 10, 10]), np.array([2, 2, 0, 1])
    assert [row.tolist() for row in pack(tokens, images, 100, 3)] == [[0], [1, 2, 3]]


def test_a_document_over_a_budget_stands_alone():
    rows = pack(np.array([150, 100, 10, 10]), np.array([0, 0, 0, 9]), 100, 3)
    assert [row.tolist() for row in rows] == [[0], [1], [2], [3]]


def test_documents_that_truncation_empties_take_no_room():
    rows = pack(np.array([100, 0, 50, 0]), np.zeros(4, dtype=int), 100, 1)
    assert [row.tolist() for row in rows] == [[0], [1, 2, 3]]


def test_nothing_is_no_row():
    assert pack(np.zeros(0, dtype=int), np.zeros(0, dtype=int), 100, 1) == []
