"""Remasking policies against slow loops written out by hand."""

import pytest
import torch

from diffusionvl.modeling.remasking import REMASKING, Draft, entropy_bounded, transfer_schedule
from diffusionvl.modeling.sampling import Sampling

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


def keep(remasking, confidence, masked, quota, **numbers):
    """What a policy keeps; only the entropy reads the logits."""
    quotas = torch.full((len(masked), 1), quota)
    return REMASKING[remasking](Draft(confidence, masked, quotas, torch.zeros(0, 7)), Sampling(**numbers))


@pytest.mark.parametrize("remasking", [STATIC, DYNAMIC])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("quota", range(7))
def test_kept_tokens_are_those_of_a_slow_loop(quota, threshold, remasking):
    # Quarters are exact in fp32, so ties and values on the threshold are many.
    confidence = torch.randint(0, 5, (300, 6)) / 4
    masked = torch.rand(300, 6) < 0.6
    assert not masked.all(1).all()
    assert (masked.sum(1) == 0).any()
    found = keep(remasking, confidence, masked, quota, confidence_threshold=threshold)
    for row in range(len(masked)):
        expected = kept_by_hand(confidence[row].tolist(), masked[row].tolist(), quota, remasking, threshold)
        assert set(found[row].nonzero()[:, 0].tolist()) == expected


def test_the_threshold_itself_is_not_sure():
    confidence = torch.tensor([[0.5, 0.75, 0.5, 0.5]])
    every = torch.ones_like(confidence).bool()
    for quota, threshold, expected in (
        (1, 0.5, [False, True, False, False]),
        (2, 0.5, [True, True, False, False]),
        (1, 0.499, [True, True, True, True]),
    ):
        assert keep(DYNAMIC, confidence, every, quota, confidence_threshold=threshold).tolist() == [expected]


def test_each_row_has_its_own_quota():
    confidence, every = torch.tensor([[0.1, 0.4, 0.2, 0.3]] * 3), torch.ones(3, 4).bool()
    draft = Draft(confidence, every, torch.tensor([[0], [1], [3]]), torch.zeros(0, 7))
    found = REMASKING[STATIC](draft, Sampling())
    assert found.long().tolist() == [[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 1]]
    found = REMASKING[DYNAMIC](draft, Sampling(confidence_threshold=0.25))
    assert found.long().tolist() == [[0, 1, 0, 1], [0, 1, 0, 1], [0, 1, 1, 1]]


def bounded_by_hand(entropies, quota, bound):
    """The places that one row keeps, by {place: entropy}."""
    kept, spent = set(), 0.0
    for place in sorted(entropies, key=lambda place: (entropies[place], place)):
        if spent > bound and len(kept) >= quota:
            break
        kept.add(place)
        spent += entropies[place]
    return kept


@pytest.mark.parametrize("quota", [1, 2, 6])
@pytest.mark.parametrize("bound", [0.0, 0.5, 1.5, 100.0])
def test_entropy_bounded_keeps_while_the_sum_stays_under_the_bound(bound, quota):
    masked = torch.rand(100, 6) < 0.4
    assert (masked.sum(1) == 0).any()
    logits = 3 * torch.randn(int(masked.sum()), 7)
    draft = Draft(torch.zeros(100, 6), masked, torch.full((100, 1), quota), logits)
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(draft.entropy[masked], entropy)
    assert not draft.entropy[~masked].any()
    found = entropy_bounded(draft, Sampling(entropy_bound=bound))
    for row, values in enumerate(draft.entropy.tolist()):
        places = [place for place in range(6) if masked[row, place]]
        expected = bounded_by_hand({place: values[place] for place in places}, quota, bound)
        assert set(found[row].nonzero()[:, 0].tolist()) == expected


@pytest.mark.parametrize("remasking", REMASKING)
def test_a_policy_keeps_masked_places_and_fills_its_quota(remasking):
    masked = torch.rand(200, 8) < 0.5
    draft = Draft(torch.rand(200, 8), masked, torch.randint(1, 9, (200, 1)), torch.randn(int(masked.sum()), 7))
    found = REMASKING[remasking](draft, Sampling())
    assert not (found & ~masked).any()
    assert (found.sum(1) >= torch.minimum(masked.sum(1), draft.quota[:, 0])).all()
