"""The noise schedule: one level from each stratum, in an order that favours no block, or in the reference's."""

import pytest
import torch

from diffusionvl.objective.noise_schedule import T_MIN, alpha, reference_t, stratified_t, weight


def strata_of(t):
    """The stratum of each level, of as many equal ones as there are levels."""
    uniform = (t.double() - T_MIN) / (1 - T_MIN)
    return (uniform * t.numel()).floor().clamp(0, t.numel() - 1).long()


@pytest.mark.parametrize("blocks", [1, 2, 7, 100])
def test_each_stratum_is_used_once(blocks):
    for _ in range(50):
        assert strata_of(stratified_t(blocks)).sort().values.tolist() == list(range(blocks))


def test_strata_come_in_every_order():
    orders = {tuple(strata_of(stratified_t(3)).tolist()) for _ in range(100)}
    assert len(orders) == 6


def test_the_generator_alone_decides():
    draws = []
    for state in (1, 2):
        torch.manual_seed(state)
        draws.append(stratified_t(5, torch.Generator().manual_seed(0)))
    assert torch.equal(*draws)
    assert not torch.equal(draws[0], stratified_t(5, torch.Generator().manual_seed(1)))


def test_the_references_levels_grow_over_the_batch():
    t = reference_t(torch.rand(3, 7)).flatten()
    assert (t.diff() > 0).all()
    assert strata_of(t).tolist() == list(range(21))


@pytest.mark.parametrize("u", [0.0, 1 - 2**-24])
@pytest.mark.parametrize("blocks", [1, 3, 1000])
def test_levels_stay_between_t_min_and_one(monkeypatch, blocks, u):
    """Even at the ends of what the generator draws, where rounding could cross them."""
    monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.full(size, u))
    for t in (stratified_t(blocks), reference_t(torch.rand(2, blocks))):
        assert t.dtype == torch.float32
        assert t.min() >= T_MIN
        assert t.max() <= 1


def test_no_blocks_have_no_levels():
    assert stratified_t(0).shape == (0,)


def test_the_weight_follows_from_alpha():
    t = torch.linspace(T_MIN, 1, 50, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(alpha(t).sum(), t)
    torch.testing.assert_close(weight(t), -slope / (1 - alpha(t)))
    assert alpha(torch.tensor([0.0, 1.0])).tolist() == [1, 0]
