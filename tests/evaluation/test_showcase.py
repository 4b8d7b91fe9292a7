"""A few questions of a run that are kept for the report."""

import pytest

from diffusionvl.evaluation.showcase import spread


@pytest.mark.parametrize(
    ("numbers", "samples", "kept"),
    [
        (range(200), 6, [0, 64, 128, 192]),
        (range(192), 6, [0, 32, 64, 96, 128, 160]),
        (range(6), 6, [0, 1, 2, 3, 4, 5]),
        (range(7), 6, [0, 2, 4, 6]),
        ([5, 5, 0], 1, [0]),
        ([3], 2, []),
    ],
)
def test_spread(numbers, samples, kept):
    assert spread([*numbers], samples) == kept


def test_processes_and_limits_keep_the_same_questions():
    whole = spread([*range(1000)], 6)
    shares = [spread([*range(rank, 1000, 3)], 6) for rank in range(3)]
    assert sorted(number for share in shares for number in share) == whole
    assert {*whole} & {*spread([*range(600)], 6)} == {0, 256, 512}
