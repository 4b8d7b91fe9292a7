"""Drawing tokens against distributions written out by hand."""

import math

import pytest
import torch

from diffusionvl.modeling.sampling import Sampling, choose_tokens

MASK = 6  # a forbidden id of a vocabulary of 7
FORBIDDEN = torch.tensor([MASK])


def test_greedy_takes_the_best_allowed_token_and_gives_its_full_probability():
    logits = torch.randn(15, 7)
    logits[:, MASK] = 9.0
    tokens, confidence = choose_tokens(logits, FORBIDDEN)
    for place in range(15):
        values = logits[place].tolist()
        best = max(range(MASK), key=lambda token: values[token])
        assert tokens[place] == best
        full = math.exp(values[best]) / sum(math.exp(value) for value in values)
        assert float(confidence[place]) == pytest.approx(full, rel=1e-5)


def test_half_precision_logits_give_fp32_confidences():
    logits = torch.randn(4, 7)
    tokens, confidence = choose_tokens(logits.bfloat16(), FORBIDDEN)
    assert confidence.dtype == torch.float32
    expected = logits.bfloat16().float().softmax(-1).gather(-1, tokens[:, None])[:, 0]
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
@pytest.mark.parametrize("tempered", [False, True])
def test_draws_follow_the_distribution_written_out_by_hand(temperature, top_k, top_p, nucleus, tempered):
    """Confidences are the model's own, or with the reference's switch those of the distribution that is drawn from."""
    logits, forbidden = [1.0, -0.5, 2.0, 0.0, 1.5, 2.5, 3.0], [5, MASK]
    chances, confidences = distribution_by_hand(logits, forbidden, temperature, top_k, top_p)
    if not tempered:
        confidences = {token: math.exp(value) / sum(map(math.exp, logits)) for token, value in enumerate(logits)}
    assert len(chances) == nucleus
    count = 20_000
    sampling = Sampling(temperature, top_k, top_p, tempered_confidence=tempered)
    tokens, confidence = choose_tokens(torch.tensor(logits).expand(count, 7), torch.tensor(forbidden), sampling)
    assert set(tokens.unique().tolist()) == set(chances)
    for token, chance in chances.items():
        sigma = math.sqrt(chance * (1 - chance) / count)
        assert abs(float((tokens == token).float().mean()) - chance) <= 4.5 * sigma
        found = confidence[tokens == token]
        torch.testing.assert_close(found, torch.full_like(found, confidences[token]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("temperature", [0.0, 1e-45, 1e-38, 1e-6, 1e38])
def test_no_temperature_is_too_small_or_too_large(temperature):
    logits = 30 * torch.randn(50, 7)
    tokens, confidence = choose_tokens(logits, FORBIDDEN, Sampling(temperature))
    assert confidence.isfinite().all()
    if temperature < 1:
        greedy, sure = choose_tokens(logits, FORBIDDEN)
        assert torch.equal(tokens, greedy)
        assert torch.equal(confidence, sure)


HOT = Sampling(temperature=2.0)


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_places_and_rows_draw_independently():
    count = 20_000
    tokens, _ = choose_tokens(torch.zeros(2 * count, 2), FORBIDDEN[:0], HOT, [None, None], [count, count])
    rows = tokens.view(2, count)
    for same in (rows[0, :-1] == rows[0, 1:], rows[0] == rows[1]):
        assert abs(float(same.float().mean()) - 0.5) < 0.02


def test_a_row_with_its_own_generator_draws_the_same_in_any_batch():
    counts = [40, 0, 25, 33]  # a row may have no masked place
    rows = torch.randn(sum(counts), 7).split(counts)
    batched, _ = choose_tokens(torch.cat(rows), FORBIDDEN, HOT, seeded(1, 2, 3, 4), counts)
    for found, row, generator in zip(batched.split(counts), rows, seeded(1, 2, 3, 4), strict=True):
        assert torch.equal(found, choose_tokens(row, FORBIDDEN, HOT, [generator])[0])
    assert not torch.equal(batched, choose_tokens(torch.cat(rows), FORBIDDEN, HOT, seeded(5, 6, 7, 8), counts)[0])


def test_nothing_to_draw():
    for sampling in (Sampling(), HOT):
        tokens, confidence = choose_tokens(torch.randn(0, 7), FORBIDDEN, sampling, [None, None], [0, 0])
        assert (tokens.shape, tokens.dtype, confidence.shape) == ((0,), torch.long, (0,))
