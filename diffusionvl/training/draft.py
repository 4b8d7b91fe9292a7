"""Training of a draft-only adapter: which weights it has, and that nothing else is trained."""

from typing import Any

from ..checkpoints.loading import located
from ..modeling.draft_adapter import DraftAdapter, weights_fingerprint
from ..modeling.errors import UserError
from ..modeling.modeling_diffusionvl import DiffusionVLForConditionalGeneration


def add_draft(
    model: DiffusionVLForConditionalGeneration,
    base: str,
    rank: int | None,
    alpha: float | None = None,
    layers: list[str] | None = None,
) -> DiffusionVLForConditionalGeneration:
    """Gives a model with a causal clean stream a draft-only adapter, which changes nothing yet.

    Args:
        model: The model; what it saves from here is the adapter alone.
        base: Where the model's own weights are: a translated or an AR checkpoint, a folder or a hub id.
        rank: Rank of the adapter's matrices.
        alpha: Their product is scaled by alpha / rank; twice the rank by default.
        layers: Names of the linear layers that get matrices, such as `o_proj`; all of the decoder by default.

    Raises:
        UserError: The clean stream is not causal, or the model has no such layers or an adapter already.
    """
    if not isinstance(model, DiffusionVLForConditionalGeneration):
        raise UserError(f"{base}: lora_on 'noisy' needs a checkpoint made by `diffusionvl translate`; take it out")
    if model.config.draft_adapter is not None:
        raise UserError(
            f"{base}: has a draft-only adapter, which is trained on without lora_r and lora_on; take them out"
        )
    if model.config.clean_attention != "causal":
        raise UserError(
            f"{base}: a draft-only adapter needs clean_attention 'causal', got {model.config.clean_attention!r}; "
            "translate the AR model with it"
        )
    assert rank is not None
    assert model.config.mask_token_id is not None
    settings = draft_settings(base, rank, alpha, layers)
    kind = settings["rank"], settings["alpha"], settings["layers"]
    model.draft = DraftAdapter(model.base, model.config.mask_token_id, *kind)
    model.config.draft_adapter = settings
    return model


def draft_settings(base: str, rank: int, alpha: float | None = None, layers: list[str] | None = None) -> dict[str, Any]:
    """What a checkpoint's config holds of its draft-only adapter. Arguments are those of `add_draft`."""
    return {
        "rank": rank,
        "alpha": 2 * rank if alpha is None else alpha,
        "layers": sorted({*layers}) if layers else None,
        "base": located(base),
        "fingerprint": weights_fingerprint(base),
    }


def train_draft_alone(model: DiffusionVLForConditionalGeneration) -> None:
    """Freezes everything but the adapter, whose weights are fp32 whatever the base's are."""
    assert model.draft is not None
    model.requires_grad_(False)
    model.draft.float().requires_grad_(True)
