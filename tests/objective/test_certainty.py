"""Certainty: the entropy of what is right, and masks that follow the model's own confidence or steps."""

import math

import torch
from helpers import assert_same

from diffusionvl.objective.certainty import certainty_loss, mask_from_a_step, mask_least_certain
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
        expected, share = torch.zeros(2, 8).bool(), torch.zeros(2, 8)
        for row in range(2):
            for number in block[row].unique():
                own = ((block[row] == number) & supervised.mask[row]).nonzero()[:, 0].tolist()
                count = math.ceil(float(levels[row, number]) * len(own)) if own else 0
                expected[row, sorted(own, key=lambda at: confidence[row, at])[:count]] = True
                share[row, own] = count / len(own) if own else 0.0
        assert torch.equal(noisy.masked, expected)
        assert torch.equal(noisy.x_t == 9, expected)
        assert_same(noisy.t, share, 1e-6)


def test_a_block_masks_what_was_written_in_one_of_its_steps_or_later():
    block = torch.tensor([[0, 0, 1, 1, 1, 1, 2, 2], [0, 0, 0, 0, 5, 5, 5, 5]])
    supervised = Supervised.of(torch.tensor([[0, 1, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1, 1]]).bool(), block)
    begun = set()
    for seed in range(40):
        source = torch.Generator().manual_seed(seed)
        written = torch.randint(0, 4, (2, 8), generator=source)
        levels = 1 - torch.rand(2, 6, generator=source)  # above 0, up to 1
        t = levels.gather(1, block).masked_fill(~supervised.mask, 0)
        noisy = mask_from_a_step(torch.zeros_like(block), supervised, t, written, 9)
        for row in range(2):
            for number in block[row].unique():
                own = ((block[row] == number) & supervised.mask[row]).nonzero()[:, 0].tolist()
                if not own:
                    continue
                steps = 1 + max(int(written[row, at]) for at in own)
                begin = steps - math.ceil(float(levels[row, number]) * steps)
                begun.add((begin, steps))
                masked = [at for at in own if written[row, at] >= begin]
                assert [at for at in own if noisy.masked[row, at]] == masked
                assert_same(noisy.t[row, own], torch.full((len(own),), len(masked) / len(own)))
        assert not noisy.masked[~supervised.mask].any()
        assert not noisy.t[~supervised.mask].any()
        assert torch.equal(noisy.x_t == 9, noisy.masked)
    assert begun >= {(begin, steps) for steps in range(2, 5) for begin in range(steps)}
