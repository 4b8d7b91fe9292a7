"""The loss: both normalisers against a loop written out, and batches that may be cut in any way."""

import math

import pytest
import torch

from diffusionvl.objective.loss import IGNORED, cross_entropy, loss_counts, token_weights

LENGTHS = (9, 1, 0, 4)  # supervised tokens of each row


def a_batch():
    """Labels [4, 12], cross-entropies, masked tokens and noise levels."""
    labels = torch.full((4, 12), IGNORED)
    for row, length in enumerate(LENGTHS):
        labels[row, torch.randperm(12)[:length]] = torch.randint(0, 50, (length,))
    shape = labels.shape
    return labels, torch.rand(shape), (torch.rand(shape) < 0.6) & (labels != IGNORED), torch.rand(shape) + 0.01


def looped_loss(labels, losses, masked, t, normalizer):
    """The reference's loss (1 / B) sum_b (1 / N_b) sum_i CE_i / t_i over rows with a loss, or the mean of tokens."""
    rows, full, tokens, total = 0.0, 0, 0, 0.0
    for row in range(len(labels)):
        count = sum(1 for label in labels[row].tolist() if label != IGNORED)
        own = sum(float(losses[row, i] / t[row, i]) for i in range(labels.shape[1]) if masked[row, i])
        rows += own / max(count, 1)
        full += count > 0
        tokens += count
        total += own
    return rows / full if normalizer == "per_sample" else total / tokens


@pytest.mark.parametrize("normalizer", ["per_sample", "tokens"])
def test_the_loss_is_the_loop(normalizer):
    labels, losses, masked, t = a_batch()
    weights = token_weights(labels, normalizer) / t
    found = (losses * weights)[masked].sum() / loss_counts(labels, normalizer).sum()
    assert found.item() == pytest.approx(looped_loss(labels, losses, masked, t, normalizer), rel=1e-5)


@pytest.mark.parametrize("normalizer", ["per_sample", "tokens"])
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_batches_may_be_cut(normalizer, cut):
    labels = a_batch()[0]
    parts = labels.split([cut, len(labels) - cut])
    assert torch.equal(torch.cat([loss_counts(part, normalizer) for part in parts]), loss_counts(labels, normalizer))
    weights = torch.cat([token_weights(part, normalizer) for part in parts])
    assert torch.equal(weights, token_weights(labels, normalizer))


@pytest.mark.parametrize(("normalizer", "rows"), [("per_sample", [1, 1, 0, 1]), ("tokens", list(LENGTHS))])
def test_what_a_row_weighs(normalizer, rows):
    labels = a_batch()[0]
    weights = token_weights(labels, normalizer)
    torch.testing.assert_close(weights.sum(-1), torch.tensor(rows, dtype=torch.float32))
    assert (weights[labels == IGNORED] == 0).all()
    assert weights.dtype == torch.float32


def test_no_supervision_is_a_loss_of_zero():
    labels = torch.full((2, 5), IGNORED)
    for normalizer in ("per_sample", "tokens"):
        assert (token_weights(labels, normalizer) == 0).all()
        assert loss_counts(labels, normalizer).tolist() == [0, 0]
    nothing = torch.zeros(0, 7, requires_grad=True)
    loss = cross_entropy(nothing, torch.zeros(0, dtype=torch.long)).sum()
    assert loss.item() == 0
    loss.backward()
    assert nothing.grad.shape == (0, 7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cross_entropy_is_computed_in_fp32(dtype):
    logits = (20 * torch.randn(6, 11)).to(dtype)
    targets = torch.randint(0, 11, (6,))
    found = cross_entropy(logits, targets)
    assert found.dtype == torch.float32
    for row, target, loss in zip(logits.tolist(), targets.tolist(), found.tolist(), strict=True):
        expected = math.log(sum(math.exp(value - row[target]) for value in row))
        assert loss == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_an_unknown_normalizer_is_refused():
    with pytest.raises(ValueError, match=r"normalizer must be one of .*'tokens'.*, got 'mean'"):
        token_weights(torch.zeros(1, 1), "mean")


@pytest.mark.parametrize("normalizer", ["per_sample", "tokens"])
def test_documents_of_one_row_weigh_as_rows_of_their_own(normalizer):
    labels = a_batch()[0]
    packed = torch.cat([labels.flatten(), torch.full((7,), IGNORED)])[None]
    documents = torch.cat([torch.arange(4).repeat_interleave(12), torch.full((7,), -1)])[None]
    weights = token_weights(packed, normalizer, documents)
    assert torch.equal(weights[0, :48].view(4, 12), token_weights(labels, normalizer))
    assert (weights[0, 48:] == 0).all()
    assert torch.equal(loss_counts(packed, normalizer, documents), loss_counts(labels, normalizer))
