"""Certainty: the entropy of what is right, and masks that follow the model's own confidence."""

import math

import torch
from helpers import assert_same

from diffusionvl.objective.certainty import certainty_loss, mask_least_certain
from diffusionvl.objective.corruption import Supervised


def test_certainty_is_the_entropy_of_the_tokens_that_are_right():
    logits = torch.randn(5, 7, dtype=torch.float64)
    correct = torch.tensor([True, False, True, True, False])
    expected = [
        -sum(p * math.log(p) for p in row) if right else 0.0
        for row, right in zip(logits.softmax(-1).tolist(), correct.tolist(), strict=True)
    ]
    assert_same(certainty_loss(logits, correct).double(), torch.tensor(expected).double(), 1e-6)


def test_a_block_masks_the_tokens_of_which_the_model_is_least_certain():
    block = torch.tensor([[0, 0, 1, 1, 1, 1, 2, 2], [0, 0, 0, 0, 5, 5, 5, 5]])
    supervised = Supervised.of(torch.tensor([[0, 1, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1, 1]]).bool(), block)
    for seed in range(20):
        source = torch.Generator().manual_seed(seed)
        confidence = torch.rand(2, 8, generator=source)
        levels = torch.rand(2, 6, generator=source)
        t = levels.gather(1, block).masked_fill(~supervised.mask, 0)
        noisy = mask_least_certain(torch.zeros_like(block), supervised, t, confidence, 9)
        expected = torch.zeros(2, 8).bool()
        for row in range(2):
            for number in block[row].unique():
                own = ((block[row] == number) & supervised.mask[row]).nonzero()[:, 0].tolist()
                count = math.ceil(float(levels[row, number]) * len(own)) if own else 0
                expected[row, sorted(own, key=lambda at: confidence[row, at])[:count]] = True
        assert torch.equal(noisy.masked, expected)
        assert torch.equal(noisy.x_t == 9, expected)
        assert torch.equal(noisy.t, t)
