"""Corruption: what is masked, how often, and that a row's noise is its own. Statistical tests have fixed seeds."""

from itertools import permutations, product

import pytest
import torch
from helpers import collated, load_model, some_records

from diffusionvl.objective.corruption import Supervised, corrupt, mask_tokens, row_generator
from diffusionvl.objective.loss import IGNORED
from diffusionvl.objective.noise_schedule import T_MIN, weight

MASK = 99
ORDERS = ["permuted", "reference", "sequence"]


def batch_of(*rows):
    """Tokens, supervision and blocks of rows that are lists of (supervised tokens of a block, others before them)."""
    width = max(sum(map(sum, row)) for row in rows)
    supervised = torch.zeros(len(rows), width).bool()
    blocks = torch.zeros(len(rows), width).long()
    for index, row in enumerate(rows):
        begin = 0
        for block, (count, others) in enumerate(row):
            end = begin + others + count
            blocks[index, begin:end] = block
            supervised[index, begin + others : end] = True
            begin = end
    return torch.randint(0, 90, blocks.shape), supervised, blocks


def noised(x_0, supervised, blocks, rows, seed=0, step=0, order="permuted", complementary=False, mask_slope=0.0, **ids):
    """The corruption of rows of a data set in one step of a run."""
    generators = [row_generator(seed, step, row) for row in rows]
    tokens = Supervised.of(supervised, blocks, **ids)
    return corrupt(x_0, tokens, MASK, generators, order, complementary, mask_slope)


SHORT, LONG, PARTIAL = [(2, 0)], [(4, 0)] * 5, [(0, 4), (0, 4), (2, 2), (4, 0), (3, 0)]


def draws(supervised, blocks, steps, order="permuted", rows=None):
    """t of the first supervised token of each block [steps, rows, N], and the masked tokens [steps, rows, T]."""
    rows = list(range(len(blocks))) if rows is None else rows
    x_0 = torch.zeros_like(blocks)
    noisy = [noised(x_0, supervised, blocks, rows, 0, step, order) for step in range(steps)]
    return torch.stack([one.t for one in noisy]), torch.stack([one.masked for one in noisy])


@pytest.mark.parametrize("order", ORDERS)
def test_only_supervised_tokens_are_masked(order):
    x_0, supervised, blocks = batch_of(SHORT, LONG, PARTIAL)
    hit = torch.zeros_like(supervised)
    for step in range(200):
        noisy = noised(x_0, supervised, blocks, [3, 1, 4], 0, step, order)
        assert torch.equal(noisy.x_t == MASK, noisy.masked)
        assert torch.equal(noisy.x_t[~noisy.masked], x_0[~noisy.masked])
        assert not noisy.masked[~supervised].any()
        assert (noisy.t[~supervised] == 0).all()
        assert noisy.t[supervised].min() >= T_MIN
        assert noisy.t.max() <= 1
        hit |= noisy.masked
    assert torch.equal(hit, supervised)


def test_the_input_is_left_as_it_is():
    x_0, supervised, blocks = batch_of(LONG)
    before = x_0.clone()
    noised(x_0, supervised, blocks, [0])
    assert torch.equal(x_0, before)


@pytest.mark.parametrize("order", ORDERS)
def test_a_block_has_one_level(order):
    _, supervised, blocks = batch_of(LONG, PARTIAL)
    t, _ = draws(supervised, blocks, 5, order)
    for row, block in product(range(2), range(5)):
        members = supervised[row] & (blocks[row] == block)
        if members.any():
            levels = t[:, row, members]
            assert torch.equal(levels, levels[:, :1].expand_as(levels))


def test_strata_run_over_a_rows_own_supervised_blocks():
    """Neither blocks without supervision nor other rows use up a stratum."""
    _, supervised, blocks = batch_of(SHORT, LONG, PARTIAL)
    t, _ = draws(supervised, blocks, 20)
    for row, count in enumerate([1, 5, 3]):
        for levels in t[:, row]:
            distinct = levels[supervised[row]].unique()
            assert ((distinct - T_MIN) / (1 - T_MIN) * count).floor().tolist() == list(range(count))


def test_permuted_levels_are_uniform_at_every_block():
    _, supervised, blocks = batch_of([(1, 0)] * 6)
    t, _ = draws(supervised, blocks, 1000)
    t = t[:, 0]
    # 4.5 standard errors of the mean, and the 0.1 % bound of Kolmogorov and Smirnov, of 1000 uniform draws.
    assert (t.mean(0) - 0.5).abs().max() < 4.5 * 12**-0.5 * 1000**-0.5
    expected = torch.linspace(0, 1, 1000)[:, None]
    assert (t.sort(0).values - expected).abs().max() < 1.95 * 1000**-0.5


def test_reference_levels_grow_with_the_place_in_row_and_batch():
    _, supervised, blocks = batch_of([(1, 0)] * 4, [(1, 0)] * 4)
    t, _ = draws(supervised, blocks, 500, "reference")
    assert (t.flatten(1).diff(dim=1) > 0).all()
    expected = (torch.arange(8) + 0.5) / 8
    assert (t.flatten(1).mean(0) - expected).abs().max() < 0.01


def test_sequence_noise_has_one_uniform_level_for_a_row():
    _, supervised, blocks = batch_of(LONG, PARTIAL)
    t, _ = draws(supervised, blocks, 1000, "sequence")
    for row in range(2):
        levels = t[:, row, supervised[row]]
        assert torch.equal(levels, levels[:, :1].expand_as(levels))
        expected = torch.linspace(0, 1, 1000)
        assert (levels[:, 0].sort().values - expected).abs().max() < 1.95 * 1000**-0.5
    assert not torch.equal(t[:, 0].amax(-1), t[:, 1].amax(-1))


@pytest.mark.parametrize("level", [T_MIN, 0.1, 0.5, 0.9])
def test_the_share_of_masked_tokens_is_t(level):
    count = 50_000
    ones = torch.ones(1, count)
    noisy = mask_tokens(ones.long(), ones.bool(), ones * level, torch.rand(1, count), MASK)
    assert abs(noisy.masked.float().mean().item() - level) < 4.5 * (level * (1 - level) / count) ** 0.5
    assert torch.equal(noisy.t, ones * level)


def test_at_t_of_one_everything_is_masked():
    ones = torch.ones(1, 1000)
    assert mask_tokens(ones.long(), ones.bool(), ones, torch.rand(1, 1000), MASK).masked.all()


@pytest.mark.parametrize("order", ORDERS)
def test_each_block_is_masked_at_its_own_level(order):
    count = 4000
    _, supervised, blocks = batch_of([(count, 0)] * 4)
    t, masked = draws(supervised, blocks, 3, order)
    shares = masked.view(3, 4, count).float().mean(-1)
    assert (shares - t.view(3, 4, count)[..., 0]).abs().max() < 4.5 * 0.5 * count**-0.5


@pytest.mark.parametrize("order", ORDERS)
def test_the_weights_of_masked_tokens_add_up_to_the_supervised_tokens(order):
    """The sum over masked tokens of 1 / t has the number of supervised tokens as its expectation: no bias."""
    _, supervised, blocks = batch_of([(8, 0)] * 5)
    t, masked = draws(supervised, blocks, 1500, order)
    found = (weight(t) * masked)[:, 0].sum(-1)
    # A token's weight has variance E[1 / t] - 1 = 5.9, and tokens are not correlated.
    assert abs(found.mean().item() - 40) < 4.5 * (5.9 * 40 / 1500) ** 0.5


def noise(x_0, supervised, blocks, rows, seed=0, step=0, order="permuted"):
    """The noise of each row, by its index: t and masked of its supervised tokens."""
    noisy = noised(x_0, supervised, blocks, rows, seed, step, order)
    return {
        row: (noisy.t[index][supervised[index]].tolist(), noisy.masked[index][supervised[index]].tolist())
        for index, row in enumerate(rows)
    }


def test_a_rows_noise_is_the_same_in_every_batch():
    rows = {5: LONG, 7: PARTIAL, 9: SHORT}
    expected = noise(*batch_of(*rows.values()), list(rows))
    for size in (1, 2, 3):
        for chosen in permutations(rows, size):
            found = noise(*batch_of(*(rows[row] for row in chosen)), list(chosen))
            assert found == {row: expected[row] for row in chosen}


def test_padding_and_the_global_generator_do_not_change_it():
    x_0, supervised, blocks = batch_of(LONG, PARTIAL)
    expected = noise(x_0, supervised, blocks, [5, 7])
    torch.manual_seed(123)
    padded = [torch.nn.functional.pad(tensor, (0, 17)) for tensor in (x_0, supervised, blocks)]
    assert noise(*padded, [5, 7]) == expected
    drawn = torch.rand(1)
    torch.manual_seed(123)
    assert torch.equal(torch.rand(1), drawn)


def test_the_layout_does_not_change_it(translated_dir, processor, pictures):
    model, records = load_model(translated_dir), some_records(pictures)
    found = []
    for layout in ("response_only", "two_stream"):
        batch = collated(model, processor, records, layout)
        supervised = batch["labels"] != IGNORED
        found.append(noise(batch["input_ids"], supervised, batch["block_ids"], batch["rows"].tolist()))
    assert found[0] == found[1]


def test_it_differs_by_seed_step_and_row():
    x_0, supervised, blocks = batch_of(LONG)
    seen = {
        str(noise(x_0, supervised, blocks, [row], seed, step)[row])
        for seed, step, row in product((0, 1, 42), (0, 1, 2, 1000), (0, 1, 2, 10**6))
    }
    assert len(seen) == 3 * 4 * 4


def test_neighbouring_generators_are_independent():
    first = torch.tensor(
        [torch.rand(1, generator=row_generator(0, step, row)) for step in range(40) for row in range(50)]
    )
    assert abs(first.mean().item() - 0.5) < 4.5 * 12**-0.5 * 2000**-0.5
    for lag in (1, 50):  # the next row, the next step
        pair = torch.stack([first[:-lag], first[lag:]])
        assert torch.corrcoef(pair)[0, 1].abs() < 4.5 * 2000**-0.5


@pytest.mark.parametrize("order", ORDERS)
def test_rows_without_supervision_have_no_noise(order):
    x_0, supervised, blocks = batch_of([(0, 6)], LONG)
    noisy = noised(x_0, supervised, blocks, [0, 1], order=order)
    assert torch.equal(noisy.x_t[0], x_0[0])
    assert (noisy.t[0] == 0).all()
    nothing = noised(x_0[:1], supervised[:1], blocks[:1], [0], order=order)
    assert not nothing.masked.any()


def test_an_unknown_order_is_refused():
    with pytest.raises(ValueError, match=r"noise_order must be one of .*'permuted'.*, got 'random'"):
        noised(*batch_of(SHORT), [0], order="random")


def in_one_row(*documents):
    """The tokens, supervision, blocks and documents of rows, put behind one another into one."""
    parts = [batch_of(document) for document in documents]
    x_0, supervised, blocks = (torch.cat(tensors, dim=1) for tensors in zip(*parts, strict=True))
    lengths = torch.tensor([part[0].shape[1] for part in parts])
    return x_0, supervised, blocks, torch.arange(len(documents)).repeat_interleave(lengths)[None]


@pytest.mark.parametrize("order", ["permuted", "sequence"])
def test_a_documents_noise_is_the_same_in_a_pack(order):
    documents = {5: LONG, 7: PARTIAL, 9: SHORT}
    for chosen in permutations(documents):
        x_0, supervised, blocks, ids = in_one_row(*(documents[index] for index in chosen))
        noisy = noised(x_0, supervised, blocks, list(chosen), order=order, document=ids)
        for number, index in enumerate(chosen):
            own = supervised & (ids == number)
            expected = noise(*batch_of(documents[index]), [index], order=order)[index]
            assert (noisy.t[own].tolist(), noisy.masked[own].tolist()) == expected


def of_views(count, complementary=False, step=0, blocks=LONG):
    """t and masked tokens of each view of one document, [views, T] each."""
    x_0, supervised, block_ids = (tensor.repeat(1, count) for tensor in batch_of(blocks))
    streams = torch.arange(1, count + 1).repeat_interleave(x_0.shape[1] // count)[None]
    noisy = noised(x_0, supervised, block_ids, [3], 0, step, complementary=complementary, stream=streams)
    return noisy.t.view(count, -1), noisy.masked.view(count, -1)


def test_views_draw_one_after_another():
    t, masked = of_views(3)
    alone = of_views(1)
    assert torch.equal(t[:1], alone[0])
    assert torch.equal(masked[:1], alone[1])
    for other in (1, 2):
        assert not torch.equal(t[other], t[0])
        levels = t[other].unique()
        assert ((levels - T_MIN) / (1 - T_MIN) * 5).floor().tolist() == [0, 1, 2, 3, 4]


def test_a_pair_of_complements_masks_every_token_once():
    for step in range(200):
        t, masked = of_views(4, complementary=True, step=step)
        assert torch.equal(masked[::2], ~masked[1::2])
        torch.testing.assert_close(t[::2] + t[1::2], torch.ones(2, 20))
        assert t.min() >= T_MIN - 1e-6
        assert not torch.equal(masked[0], masked[2])


def test_a_complement_is_weighted_as_a_view_of_its_own():
    """Over all masks of three tokens, whatever a token costs beside the ones that are masked with it.

    The chance of a mask at t is that of its complement at 1 - t, so the complement's mean, weighted by 1 / (1 - t), is
    the mean of a view at 1 - t.
    """
    masks = torch.tensor(list(product([False, True], repeat=3)))
    costs = torch.rand(8, 3)  # of each token, by the mask
    complements = [(masks == ~mask).all(-1).nonzero()[0, 0] for mask in masks]

    def mean(level, of_mask):
        chances = torch.where(masks, level, 1 - level).prod(-1)
        return sum(chance * value for chance, value in zip(chances, of_mask, strict=True))

    own = [(costs[index] * mask).sum() for index, mask in enumerate(masks)]
    for t in (0.1, 0.5, 0.8):
        second = mean(t, [own[index] * weight(torch.tensor(1 - t)) for index in complements])
        torch.testing.assert_close(second, mean(1 - t, [cost * weight(torch.tensor(1 - t)) for cost in own]))


def test_the_weights_of_complements_add_up_to_the_supervised_tokens():
    sums = []
    for step in range(1500):
        t, masked = of_views(2, complementary=True, step=step, blocks=[(8, 0)] * 5)
        sums.append((weight(t) * masked).sum(-1))
    found = torch.stack(sums).mean(0)
    # As for one view: E[1 / t] - 1 = 5.9 for a token.
    assert (found - 40).abs().max() < 4.5 * (5.9 * 40 / 1500) ** 0.5


def test_a_slope_masks_the_last_tokens_of_a_block_more_often_and_keeps_the_mean():
    """A block of four at one level: place k is masked with probability t + slope t (1 - t) (2 k / 3 - 1)."""
    x_0, supervised, blocks = batch_of([(4, 0)] * 2 + [(1, 0)])
    tokens = Supervised.of(supervised, blocks)
    plain, sloped = (
        [corrupt(x_0, tokens, MASK, [row_generator(0, step, 0)], mask_slope=slope) for step in range(4000)]
        for slope in (0.0, 0.8)
    )
    t = torch.stack([noisy.t[0] for noisy in plain])
    place = torch.tensor([-1, -1 / 3, 1 / 3, 1] * 2 + [0])
    expected = (t + 0.8 * t * (1 - t) * place).clamp(min=T_MIN)
    assert torch.allclose(torch.stack([noisy.t[0] for noisy in sloped]), expected)
    rate = torch.stack([noisy.masked[0] for noisy in sloped]).float().mean(0)
    assert torch.allclose(rate, expected.mean(0), atol=0.03)
    assert rate[3] - rate[0] > 0.2


def test_a_sloped_pair_of_complements_masks_each_token_once():
    x_0, supervised, blocks = batch_of([(4, 0)] * 4)
    stream = torch.tensor([[1] * 8 + [2] * 8])
    blocks = torch.cat([blocks[:, :8]] * 2, 1)
    for step in range(50):
        noisy = noised(x_0, supervised, blocks, [0], 0, step, complementary=True, stream=stream, mask_slope=1.0)
        assert torch.equal(noisy.masked[:, :8], ~noisy.masked[:, 8:])
        assert torch.allclose(noisy.t[:, :8], 1 - noisy.t[:, 8:])
