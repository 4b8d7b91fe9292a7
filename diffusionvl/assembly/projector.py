"""The projector between a vision tower and a language model (`mlp2x_gelu`): a new one, or an aligned one."""

import torch
from torch import nn
from transformers import PreTrainedModel

from ..checkpoints.checkpoint import Checkpoint
from ..modeling.configuration_diffusionvl import DiffusionVLConfig
from ..modeling.errors import UserError

PROJECTOR = ("multi_modal_projector.", "image_newline")  # beginnings of its weights' names in an assembled model


@torch.no_grad()
def init_projector(model: PreTrainedModel, seed: int) -> None:
    """Draws the projector's weights, scaled so that image features enter the LM as large as its own embeddings.

    The layers are drawn as torch (and LLaVA) draws linear layers. How large their output is depends on the tower: much
    larger than the embeddings, images would drown the text beside them, and much smaller, they would not be heard. So
    the last layer is scaled by one forward over noise of mean 0 and variance 1, as normalised pictures have.
    """
    config, embeddings = model.config, model.get_input_embeddings()
    dtype = embeddings.weight.dtype
    ids = torch.linspace(0, embeddings.num_embeddings - 1, 4096).long().unique()
    size = rms(embeddings(ids))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        projector = type(model.model.multi_modal_projector)(config)
        side = config.vision_config.image_size
        picture = torch.randn(1, config.vision_config.num_channels, side, side)
        if config.model_type == "llava_onevision":
            newline = size * torch.randn(config.text_config.hidden_size)
            model.model.image_newline = nn.Parameter(newline.to(dtype))
    features = model.model.vision_tower(picture.to(dtype), output_hidden_states=True).hidden_states[-1]
    scale = size / rms(projector(features.float()))
    projector.linear_2.weight *= scale
    projector.linear_2.bias *= scale
    model.model.multi_modal_projector = projector.to(dtype)


def rms(values: torch.Tensor) -> torch.Tensor:
    """Root mean square of all values."""
    return values.float().pow(2).mean().sqrt()


def load_projector(path: str) -> dict[str, torch.Tensor]:
    """Weights of the projector (and image newline, if any) of an assembled checkpoint, translated or not.

    Raises:
        UserError: It is another kind of checkpoint.
    """
    checkpoint = Checkpoint(path)
    model_type = checkpoint.base_config.model_type
    if model_type not in ("llava", "llava_onevision"):
        raise UserError(f"{path}: a {model_type!r} model has no such projector; give an assembled checkpoint")
    model = checkpoint.model()
    weights = (model.base if isinstance(model.config, DiffusionVLConfig) else model).model.state_dict()
    return {name: value for name, value in weights.items() if name.startswith(PROJECTOR)}


def copy_projector(model: PreTrainedModel, weights: dict[str, torch.Tensor]) -> None:
    """Copies weights that `load_projector` gave.

    Raises:
        UserError: They have other shapes.
    """
    own = {name: value for name, value in model.model.state_dict().items() if name.startswith(PROJECTOR)}
    for name in own.keys() & weights.keys():
        if own[name].shape != weights[name].shape:
            raise UserError(
                f"the given projector's {name} has shape {[*weights[name].shape]}, this LM and tower need "
                f"{[*own[name].shape]}; give the projector of the same LM and tower"
            )
        own[name].copy_(weights[name])
