"""Weights by noise: the mask ratio's are the mean of 1 / t given the masks, and vary less."""

from itertools import product
from math import comb

import pytest
import torch

from diffusionvl.objective.corruption import Corrupted, Supervised, corrupt, row_generator
from diffusionvl.objective.loss import noise_weights

MASK = 99


def noisy_of(masked, t=0.5):
    """A corrupted batch with these masks, one level for all."""
    masked = torch.as_tensor(masked)
    return Corrupted(torch.zeros_like(masked, dtype=torch.long), masked, torch.full(masked.shape, t))


@pytest.mark.parametrize("count", [1, 3, 8])
def test_the_mask_ratio_weighs_as_the_mean_of_1_over_t_given_the_masks(count):
    """By numerical integration over t, for every number of masks of a block."""
    t = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    for masks in range(1, count + 1):
        chance = comb(count, masks) * t**masks * (1 - t) ** (count - masks)
        expected = (chance / t).mean() / chance.mean()
        masked = torch.arange(count)[None] < masks
        block = torch.zeros(1, count, dtype=torch.long)
        found = noise_weights(noisy_of(masked), "mask_ratio", Supervised.of(torch.ones_like(masked), block))
        torch.testing.assert_close(found, masked * expected.float(), rtol=1e-4, atol=0)


def test_the_loss_keeps_its_mean_and_loses_variance():
    """Blocks of 8 and a last one of 3; whatever a token costs beside the ones that are masked with it."""
    block_ids = torch.tensor([[0] * 8 + [1] * 8 + [2] * 3])
    supervised = Supervised.of(torch.ones_like(block_ids, dtype=torch.bool), block_ids)
    costs = torch.rand(19)
    sums = {"inverse_t": [], "mask_ratio": []}
    for step in range(4000):
        noisy = corrupt(torch.zeros_like(block_ids), supervised, MASK, [row_generator(0, step, 0)])
        for name, found in sums.items():
            weights = noise_weights(noisy, name, supervised)
            # A cost that grows with the masks around it, as cross-entropy does.
            found.append((weights * noisy.masked * costs * (1 + noisy.masked.float().mean())).sum())
    plain, ratio = (torch.stack(found) for found in sums.values())
    error = ((plain.var() + ratio.var()) / 4000) ** 0.5
    assert abs(plain.mean() - ratio.mean()) < 4 * error
    assert ratio.var() < 0.6 * plain.var()


def test_blocks_views_and_documents_are_counted_apart():
    """Against a loop, over a packed batch whose documents have two views."""
    documents = torch.tensor([[0] * 12 + [1] * 8 + [-1] * 2, [2] * 20 + [-1] * 2])
    streams = torch.tensor([[0, 0, *[1] * 5, *[2] * 5, 0, 0, *[1] * 3, *[2] * 3, -1, -1], [0] * 4 + [1] * 18])
    blocks = torch.tensor(
        [[0, 0, 1, 1, 2, 2, 2, 1, 1, 2, 2, 2, 0, 0, 1, 2, 2, 1, 2, 2, 0, 0], [0] * 4 + [1] * 9 + [2] * 9]
    )
    supervised = (streams > 0) & (documents >= 0)
    masked = (torch.rand(supervised.shape) < 0.5) & supervised
    found = noise_weights(noisy_of(masked), "mask_ratio", Supervised(supervised, blocks, documents, streams))
    for row, column in product(*map(range, masked.shape)):
        same = supervised.clone()
        for ids in (documents, streams, blocks):
            same &= ids == ids[row, column]
        expected = (int(same.sum()) + 1) / int((masked & same).sum()) if masked[row, column] else 0
        assert found[row, column].item() == pytest.approx(expected)


def test_inverse_t_and_uniform():
    masked = torch.tensor([[True, False, True]])
    noisy = noisy_of(masked, t=0.25)
    supervised = Supervised.of(torch.ones_like(masked), torch.zeros(1, 3, dtype=torch.long))
    assert noise_weights(noisy, "inverse_t", supervised).tolist() == [[4, 0, 4]]
    assert noise_weights(noisy, "uniform", supervised).tolist() == [[1, 0, 1]]
    with pytest.raises(ValueError, match=r"weighting must be one of .*'t'"):
        noise_weights(noisy, "t", supervised)
