"""The training losses, from a batch of rows to one weighted cross-entropy for each token that is predicted.

The block-diffusion loss (BD3-LM, equation 8; DiffusionVL, section 3.2) is

    L = 1 / count * sum over documents k, blocks b of k and masked tokens i of b of
            1 / N_k  *  1 / t_b  *  -log p(x_0[i] | x_t of block b, x_0 of the blocks before b)

and is computed in five steps:

1. each block that carries loss gets a noise level t (`objective/noise_schedule.py`);
2. each of its tokens is masked with probability t (`objective/corruption.py`);
3. one forward over the clean and the noisy stream predicts every masked token in place, without a shift; the LM head
   sees masked tokens alone (`modeling/block_masks.py` says who attends to whom);
4. the cross-entropy of each masked token is weighted by 1 / t, or as `weighting` says (`objective/loss.py`);
5. and by 1 / N_k, or as `normalizer` says. The trainer divides the sum by the count over the whole optimizer step.

With a causal clean stream, the same forward gives the AR model's logits of the clean tokens: `ar_weight` adds its
loss, and draft training (`draft`) may learn from them instead of from the data.

The autoregressive (AR) loss predicts each supervised token of a clean stream from the token before it.

Legend: A axes of a position, B rows, T tokens of a row, K documents, M tokens that are predicted, V vocabulary.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..modeling.block_masks import CLEAN
from ..objective.block_sizes import split_blocks
from ..objective.certainty import certainty_loss, mask_from_a_step, mask_least_certain
from ..objective.corruption import Corrupted, Supervised, corrupt, mask_tokens, row_generator
from ..objective.distillation import divergence, draft_weights
from ..objective.loss import IGNORED, cross_entropy, loss_counts, noise_weights, token_weights
from .arguments import BlockDiffusionConfig
from .next_tokens import COUNTS, next_logits, teacher_logits

NOT_INPUTS = ("labels", "rows", "twins", "written", "error", *COUNTS)  # what a batch holds besides the model's inputs


class TokenLosses(NamedTuple):
    """The loss of each token that a batch predicts.

    Attributes:
        tokens: Indices of the predicted tokens in the flattened batch [M].
        surprise: Their cross-entropy [M].
        weighted: The cross-entropy times its weight, whose sum is the batch's part of the loss [M].
        correct: Whether the most probable token is the right one [M].
        noise: What the tokens were masked by; None for the AR loss.
        clean: The losses of the clean stream's supervised tokens, which `ar_weight` adds.
    """

    tokens: Tensor
    surprise: Tensor
    weighted: Tensor
    correct: Tensor
    noise: Corrupted | None = None
    clean: "TokenLosses | None" = None

    def parts(self) -> list["TokenLosses"]:
        """These losses, and those of the clean stream if there are any; the loss of a batch is the sum of both."""
        return [self] if self.clean is None else [self, self.clean]


def block_diffusion_loss(
    model: nn.Module,
    batch: dict[str, Any],
    args: BlockDiffusionConfig,
    mask_token_id: int,
    step: int,
    teacher: PreTrainedModel | None = None,
) -> TokenLosses:
    """The block-diffusion loss of a batch: the cross-entropy of masked tokens, weighted by their noise.

    Args:
        model: A block-diffusion model, maybe inside a wrapper that trains it.
        batch: From `RowDataset.collate`, with noisy streams; or from `with_own_answers`, whose tokens learn what the
            teacher predicts, whatever `targets` says.
        args: Settings of the run; seed, noise order, weighting and normalizer are read.
        mask_token_id: The id that replaces a masked token.
        step: Optimizer step; a document's noise depends on the seed, the step and its index in the data set alone.
        teacher: An AR model, frozen, that `targets: teacher` learns from; the clean stream by default.
    """
    labels, documents = batch["labels"], batch["document_ids"]
    supervised = supervised_tokens(batch)
    noisy = _corrupted(model, batch, supervised, args, mask_token_id, step)  # steps 1 and 2
    tokens = noisy.masked.flatten().nonzero()[:, 0]
    # The clean stream does not learn an answer of its own, unless another model teaches it.
    own = "written" in batch
    clean = clean_targets(batch) if args.ar_weight and (not own or teacher is not None) else tokens[:0]
    taught = tokens[has_twin(batch).flatten()[tokens]] if own or args.targets == "teacher" else tokens[:0]
    before = batch["twins"].flatten()[taught] - 1
    wanted = [tokens, clean - 1, before if teacher is None else before[:0]]  # each by the token before it
    logits = _logits(model, batch, noisy.x_t, torch.cat(wanted))  # step 3
    predictions, clean_predictions, target_logits = logits.split([len(part) for part in wanted])
    weights = noise_weights(noisy, args.weighting, supervised.share_levels(args.noise_order))  # step 4
    weights = weights * token_weights(labels, args.normalizer, documents)  # step 5
    if args.draft:
        weights = weights * draft_weights(supervised.place, args.draft_decay)
    losses = _token_losses(predictions, tokens, labels, weights)._replace(noise=noisy)
    indices = torch.cat([before, clean[: len(clean) * own] - 1])
    if teacher is not None and len(indices):
        # Its embeddings may be padded further than the model's; the tokens are the same.
        target_logits = teacher_logits(teacher, batch, indices)[:, : predictions.shape[-1]]
    if len(taught):
        losses = _taught(losses, torch.isin(tokens, taught), predictions, target_logits[: len(taught)], weights, args)
    if args.certainty_weight:
        certainty = certainty_loss(predictions, losses.correct) * weights.flatten()[tokens]
        losses = losses._replace(weighted=losses.weighted + args.certainty_weight * certainty)
    if args.ar_weight and len(clean):
        by_document = args.ar_weight * clean_weights(clean, labels, documents, args.normalizer)
        learned = _token_losses(clean_predictions, clean, batch["input_ids"], by_document)
        if own:
            every, target_logits = torch.ones_like(clean).bool(), target_logits[len(taught) :]
            learned = _taught(learned, every, clean_predictions, target_logits, by_document, args)
        losses = losses._replace(clean=learned)
    return losses


def supervised_tokens(batch: dict[str, Any]) -> Supervised:
    """Which tokens of a batch carry loss, and where each stands."""
    return Supervised(batch["labels"] != IGNORED, batch["block_ids"], batch["document_ids"], batch["stream_ids"])


def with_block_sizes(batch: dict[str, Any], sizes: Tensor, block_size: int, causal: bool) -> dict[str, Any]:
    """A batch whose K documents have blocks of other sizes; labels are fewer where they are smaller.

    Args:
        batch: From `RowDataset.collate`.
        sizes: Size of each noisy copy's blocks [K, views]; of one document they are equal, unless `causal`.
        block_size: D, by which the batch is cut.
        causal: Whether clean tokens are numbered one by one.
    """
    view = (batch["stream_ids"] - 1).clamp(min=0)
    of_token = sizes.to(view.device)[batch["document_ids"].clamp(min=0), view]
    split = split_blocks(supervised_tokens(batch), fill_distance(batch) != 0, of_token, block_size, causal)
    return {**batch, "block_ids": split.block, "labels": batch["labels"].masked_fill(~split.mask, IGNORED)}


def _logits(model: nn.Module, batch: dict[str, Any], input_ids: Tensor, indices: Tensor) -> Tensor:
    """Logits [M, V] of tokens of the flattened batch [M], whose ids are replaced [B, T]."""
    inputs = {name: value for name, value in batch.items() if name not in NOT_INPUTS}
    return model(**inputs | {"input_ids": input_ids, "token_indices": indices, "use_cache": False}).logits


def _corrupted(
    model: nn.Module,
    batch: dict[str, Any],
    supervised: Supervised,
    args: BlockDiffusionConfig,
    mask_token_id: int,
    step: int,
) -> Corrupted:
    """The batch at its noise levels: which tokens are masked is up to chance, to the model, or to how it wrote them.

    A draft begins with nothing but masks, at t = 1.
    """
    x_0 = batch["input_ids"]
    if args.draft and args.draft_noise == "full":
        t = torch.ones_like(x_0, dtype=torch.float32)
        return mask_tokens(x_0, supervised.mask, t, torch.zeros_like(t), mask_token_id)
    generators = [row_generator(args.seed, step, row) for row in batch["rows"].tolist()]
    noisy = corrupt(x_0, supervised, mask_token_id, generators, args.noise_order, args.complementary, args.mask_slope)
    if "written" in batch:
        return mask_from_a_step(x_0, supervised, noisy.t, batch["written"], mask_token_id)
    if args.own_states:
        confidence = _confidence(model, batch, supervised, mask_token_id)
        return mask_least_certain(x_0, supervised, noisy.t, confidence, mask_token_id)
    return noisy


@torch.no_grad()
def _confidence(model: nn.Module, batch: dict[str, Any], supervised: Supervised, mask_token_id: int) -> Tensor:
    """The highest probability that the model gives to any token where it sees masks alone [B, T], fp32."""
    x_0, tokens = batch["input_ids"], supervised.mask.flatten().nonzero()[:, 0]
    logits = _logits(model, batch, x_0.masked_fill(supervised.mask, mask_token_id), tokens)
    confidence = torch.zeros(x_0.numel(), device=x_0.device)
    return confidence.index_copy(0, tokens, logits.float().softmax(-1).max(-1).values).view_as(x_0)


def has_twin(batch: dict[str, Any]) -> Tensor:
    """Whether a supervised noisy token is a copy of a clean token that another one of its document precedes. [B, T]

    The fill after an end of turn is a copy of none; it has a later position than the token that it follows.
    """
    twins, documents = batch["twins"], batch["document_ids"].flatten()
    follows = documents[twins] == documents[(twins - 1).clamp(min=0)]
    return (batch["labels"] != IGNORED) & (fill_distance(batch) == 0) & follows & (twins > 0)


def fill_distance(batch: dict[str, Any]) -> Tensor:
    """Distance of each token from its clean twin, which is 0 but for the fill after an end of turn. [B, T]"""
    positions = batch["position_ids"][0]
    return positions - positions.flatten()[batch["twins"]]


def clean_targets(batch: dict[str, Any]) -> Tensor:
    """The clean twins of the supervised tokens, each once, as indices into the flattened batch [M]."""
    first_view = has_twin(batch) & (batch["stream_ids"] == CLEAN + 1)
    return batch["twins"][first_view]


def clean_weights(clean: Tensor, labels: Tensor, documents: Tensor, normalizer: str) -> Tensor:
    """Weights by which a document's clean tokens count together as much as its noisy ones do. [B, T]

    Args:
        clean: Of `clean_targets` [M].
        labels: [B, T].
        documents: [B, T].
        normalizer: One of `NORMALIZERS`.
    """
    wanted = loss_counts(labels, normalizer, documents)
    own = documents.flatten()[clean]
    share = wanted / own.bincount(minlength=len(wanted)).clamp(min=1)
    return torch.zeros(labels.numel(), device=labels.device).index_copy(0, clean, share[own].float()).view_as(labels)


def _taught(
    losses: TokenLosses,
    taught: Tensor,
    predictions: Tensor,
    target_logits: Tensor,
    weights: Tensor,
    args: BlockDiffusionConfig,
) -> TokenLosses:
    """Losses in which the tokens that a teacher knows [M] learn its distribution, in place of the data or beside it."""
    share = args.teacher_weight
    learned = divergence(predictions[taught], target_logits, args.teacher_top_k)
    learned = share * learned + (1 - share) * losses.surprise[taught]
    surprise = losses.surprise.masked_scatter(taught, learned)
    correct = losses.correct.masked_scatter(taught, predictions[taught].argmax(-1) == target_logits.argmax(-1))
    return losses._replace(surprise=surprise, correct=correct, weighted=surprise * weights.flatten()[losses.tokens])


def autoregressive_loss(
    model: nn.Module, base: PreTrainedModel, batch: dict[str, Any], args: BlockDiffusionConfig
) -> TokenLosses:
    """The autoregressive loss of a batch: the cross-entropy of supervised tokens, each predicted by the one before it.

    Args:
        model: An AR model, maybe inside a wrapper that trains it.
        base: The model itself.
        batch: From `RowDataset.collate`, with clean streams alone; a row's first token carries no loss.
        args: Settings of the run; the normalizer is read.
    """
    labels, documents = batch["labels"], batch["document_ids"]
    tokens = (labels != IGNORED).flatten().nonzero()[:, 0]
    logits = next_logits(model, base, batch, tokens - 1)
    return _token_losses(logits, tokens, labels, token_weights(labels, args.normalizer, documents))


def _token_losses(logits: Tensor, tokens: Tensor, labels: Tensor, weights: Tensor) -> TokenLosses:
    """The losses of tokens [M] from their logits [M, V], given the right tokens and weights of the batch [B, T]."""
    targets = labels.flatten()[tokens]
    surprise = cross_entropy(logits, targets)
    correct = logits.detach().argmax(-1) == targets
    return TokenLosses(tokens, surprise, surprise * weights.flatten()[tokens], correct)
