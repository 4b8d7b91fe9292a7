"""Distillation: what is learned from a teacher, and how much each place of a draft counts.

Legend: B rows, T tokens of a row, M tokens that are predicted, V vocabulary.
"""

import torch
from torch import Tensor

TARGETS = ("data", "teacher")
DRAFT_NOISES = ("full", "random")


def divergence(student: Tensor, teacher: Tensor, top_k: int | None = None) -> Tensor:
    """Kullback-Leibler divergence of a student from a teacher's distribution, in fp32. [M, V], [M, V] -> [M].

    Args:
        student: Logits, which get the gradient.
        teacher: Logits, which get none.
        top_k: Number of the teacher's most probable tokens that are compared, their probabilities scaled to 1; all
            by default.
    """
    teacher, student = teacher.detach().float(), student.float().log_softmax(-1)
    student = student[..., : teacher.shape[-1]]  # a frozen teacher may lack the mask token's row
    if top_k is not None and top_k < teacher.shape[-1]:
        teacher, chosen = teacher.topk(top_k, dim=-1)
        student = student.gather(-1, chosen)
    target = teacher.log_softmax(-1)
    return (target.exp() * (target - student)).sum(-1)


def draft_weights(places: Tensor, decay: float | None) -> Tensor:
    """Weight of each place k of a block, exp(-(k - 1) / decay) for k >= 1 (DFlash); 1 for all without a decay. [B, T]

    An early miss costs every later token of a draft. Place 0 weighs as much as place 1: its token is the one that the
    clean stream predicts, too.
    """
    if decay is None:
        return torch.ones_like(places, dtype=torch.float32)
    return torch.exp(-(places - 1).clamp(min=0) / decay)
