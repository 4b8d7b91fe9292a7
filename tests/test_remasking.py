"""Remasking and drawing against slow loops written out by hand."""

import math

import pytest
import torch

from diffusionvl.modeling.remasking_diffusionvl import choose_tokens, tokens_to_keep, transfer_schedule

MASK = 6  # a forbidden id of a vocabulary of 7
STATIC, DYNAMIC = "low_confidence_static", "low_confidence_dynamic"


@pytest.mark.parametrize(
    ("block_size", "steps", "schedule"),
    [(8, 3, [3, 3, 2]), (8, 8, [1] * 8), (8, 1, [8]), (7, 4, [2, 2, 2, 1]), (1, 1, [1])],
)
def test_the_first_steps_take_the_remainder(block_size, steps, schedule):
    assert transfer_schedule(block_size, steps) == schedule


@pytest.mark.parametrize("block_size", [1, 4, 7, 32])
def test_a_schedule_fills_the_block_and_no_step_is_idle(block_size):
    for steps in range(1, block_size + 1):
        schedule = transfer_schedule(block_size, steps)
        assert len(schedule) == steps
        assert sum(schedule) == block_size
        assert min(schedule) >= 1


def kept_by_hand(confidence, masked, quota, remasking, threshold):
    """The places that one row keeps."""
    places = [place for place in range(len(masked)) if masked[place]]
    if remasking == DYNAMIC:
        sure = {place for place in places if confidence[place] > threshold}
        if len(sure) >= quota:
            return sure
    kept = set()
    while len(kept) < min(quota, len(places)):
        best = None
        for place in places:
            if place not in kept and (best is None or confidence[place] > confidence[best]):
                best = place
        kept.add(best)
    return kept


@pytest.mark.parametrize("remasking", [STATIC, DYNAMIC])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("quota", range(7))
def test_kept_tokens_are_those_of_a_slow_loop(quota, threshold, remasking):
    # Quarters are exact in fp32, so ties and values on the threshold are many.
    confidence = torch.randint(0, 5, (300, 6)) / 4
    masked = torch.rand(300, 6) < 0.6
    assert not masked.all(1).all()
    assert (masked.sum(1) == 0).any()
    found = tokens_to_keep(confidence, masked, quota, remasking, threshold)
    for row in range(len(masked)):
        expected = kept_by_hand(confidence[row].tolist(), masked[row].tolist(), quota, remasking, threshold)
        assert set(found[row].nonzero()[:, 0].tolist()) == expected


def test_the_threshold_itself_is_not_sure():
    confidence = torch.tensor([[0.5, 0.75, 0.5, 0.5]])
    every = torch.ones_like(confidence).bool()
    assert tokens_to_keep(confidence, every, 1, DYNAMIC, 0.5).tolist() == [[False, True, False, False]]
    assert tokens_to_keep(confidence, every, 2, DYNAMIC, 0.5).tolist() == [[True, True, False, False]]
    assert tokens_to_keep(confidence, every, 1, DYNAMIC, 0.499).tolist() == [[True, True, True, True]]


def test_greedy_takes_the_best_allowed_token_and_tells_its_full_probability():
    logits = torch.randn(3, 5, 7)
    logits[..., MASK] = 9.0
    tokens, confidence = choose_tokens(logits, [MASK])
    for row in range(3):
        for place in range(5):
            values = logits[row, place].tolist()
            best = max(range(MASK), key=lambda token: values[token])
            assert tokens[row, place] == best
            full = math.exp(values[best]) / sum(math.exp(value) for value in values)
            assert float(confidence[row, place]) == pytest.approx(full, rel=1e-5)


def test_half_precision_logits_give_fp32_confidences():
    logits = torch.randn(1, 4, 7)
    tokens, confidence = choose_tokens(logits.bfloat16(), [MASK])
    assert confidence.dtype == torch.float32
    expected = logits.bfloat16().float().softmax(-1).gather(-1, tokens[..., None])[..., 0]
    assert torch.equal(confidence, expected)


def distribution_by_hand(logits, forbidden, temperature, top_k, top_p):
    """Probability of being drawn and confidence, by token: temperature, then top-k, then top-p."""
    tempered = {token: math.exp(value / temperature) for token, value in enumerate(logits)}
    ranked = sorted((token for token in tempered if token not in forbidden), key=lambda t: -tempered[t])
    if top_k:
        ranked = ranked[:top_k]
    total = sum(tempered[token] for token in ranked)
    nucleus, reached = [], 0.0
    for token in ranked:
        if reached < top_p:
            nucleus.append(token)
        reached += tempered[token] / total
    drawn = {token: tempered[token] / sum(tempered[t] for t in nucleus) for token in nucleus}
    whole = sum(tempered[token] for token in [*nucleus, *forbidden])
    return drawn, {token: tempered[token] / whole for token in nucleus}


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "nucleus"),
    [(1.0, 0, 1.0, 5), (0.5, 0, 1.0, 5), (2.0, 3, 1.0, 3), (1.0, 0, 0.8, 3), (1.5, 4, 0.7, 3), (1.0, 1, 1.0, 1)],
)
def test_draws_follow_the_distribution_written_out_by_hand(temperature, top_k, top_p, nucleus):
    logits, forbidden = [1.0, -0.5, 2.0, 0.0, 1.5, 2.5, 3.0], [5, MASK]
    chances, confidences = distribution_by_hand(logits, forbidden, temperature, top_k, top_p)
    assert len(chances) == nucleus
    count = 20_000
    tokens, confidence = choose_tokens(
        torch.tensor(logits).expand(2, count // 2, 7), forbidden, temperature, top_k, top_p
    )
    assert set(tokens.unique().tolist()) == set(chances)
    for token, chance in chances.items():
        sigma = math.sqrt(chance * (1 - chance) / count)
        assert abs(float((tokens == token).float().mean()) - chance) <= 4.5 * sigma
        found = confidence[tokens == token]
        torch.testing.assert_close(found, torch.full_like(found, confidences[token]), rtol=1e-5, atol=0)


def test_places_and_rows_draw_independently():
    tokens, _ = choose_tokens(torch.zeros(2, 20_000, 2), [], temperature=1.0)
    left, right = tokens[0, :-1] == tokens[0, 1:], tokens[0] == tokens[1]
    for same in (left, right):
        assert abs(float(same.float().mean()) - 0.5) < 0.02


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_a_row_with_its_own_generator_draws_the_same_in_any_batch():
    logits = torch.randn(3, 40, 7)
    batched, _ = choose_tokens(logits, [MASK], 2.0, generator=seeded(1, 2, 3))
    for row, generator in enumerate(seeded(1, 2, 3)):
        alone, _ = choose_tokens(logits[row, None], [MASK], 2.0, generator=[generator])
        assert torch.equal(batched[row], alone[0])
    assert not torch.equal(batched, choose_tokens(logits, [MASK], 2.0, generator=seeded(4, 5, 6))[0])


def test_one_generator_repeats_a_batch():
    logits = torch.randn(2, 40, 7)
    first, again = (choose_tokens(logits, [MASK], 2.0, generator=seeded(1)[0])[0] for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, choose_tokens(logits, [MASK], 2.0, generator=seeded(2)[0])[0])
