"""Rows of about one length share a step, in an order that seed and epoch settle."""

import numpy as np

from diffusionvl.training.packed_dataset import EpochLengthGroupedSampler


def test_rows_of_a_step_have_about_one_length():
    lengths = np.random.default_rng(0).integers(50, 2000, 800)
    sampler = EpochLengthGroupedSampler(8, lengths.tolist(), seed=3)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
        assert sorted(orders[-1]) == list(range(800))
        steps = lengths[np.array(orders[-1])].reshape(-1, 8)
        assert np.median(steps.max(1) - steps.min(1)) < 100
    assert orders[0] == orders[2] != orders[1]
    assert list(EpochLengthGroupedSampler(8, lengths.tolist(), seed=4)) != orders[0]
