"""A stock LLaVA or LLaVA-OneVision from a language model (LM) and a vision tower."""

import logging

import torch
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from ..checkpoints.vocabulary import give_row, origin_of_row
from ..modeling.errors import UserError
from .parts import is_siglip, load_language_model, load_tower, patches
from .processor import IMAGE_TOKEN, VIDEO_TOKEN, build_processor
from .projector import copy_projector, init_projector, load_projector

IMAGE_GRIDS = ("anyres", "single")
MAX_TILES = 4  # of `anyres_max_4`: features beyond 4 tiles' worth are scaled down
GRID_SIDES = range(1, 7)  # a picture is cut into 1x1 to 6x6 tiles
logger = logging.getLogger(__name__)


def assemble(
    lm: str,
    vision: str,
    image_grid: str = "anyres",
    projector: str | None = None,
    dtype: str = "auto",
    seed: int = 0,
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Joins a causal LM and a vision tower by a new projector (`mlp2x_gelu`).

    The tower's last layer is left out, as in LLaVA and in the reference: the projector reads the output of the one
    before, without the final norm.

    Args:
        lm: Causal LM, a folder or a hub id; its chat template takes the pictures in.
        vision: SigLIP, SigLIP 2 or CLIP checkpoint, a folder or a hub id; with or without its text side.
        image_grid: `anyres` (LLaVA-OneVision, `anyres_max_4`): the whole picture and its tiles, each row closed by a
            newline feature. `single` (LLaVA): the whole picture alone.
        projector: An assembled checkpoint whose projector is taken instead of a new one.
        dtype: Type of the weights: `float32`, `bfloat16`, or `auto` for the wider of the two checkpoints', which
            rounds neither.
        seed: Seed of the new projector's weights.

    Returns:
        The vision-language model, LM and tower as they were, and its processor; `save_checkpoint` saves both into one
        folder.

    Raises:
        UserError: `lm` is not a causal LM, `vision` is not a known tower, or their files do not fit together.
    """
    if image_grid not in IMAGE_GRIDS:
        raise UserError(f"image_grid must be one of {IMAGE_GRIDS}, got {image_grid!r}")
    aligned = None if projector is None else load_projector(projector)
    language_model, tokenizer = load_language_model(lm)
    tower, image_processor = load_tower(vision)
    wider = torch.promote_types(language_model.dtype, tower.dtype)
    weight_type = wider if dtype == "auto" else getattr(torch, dtype)
    for part in (language_model, tower):
        part.to(weight_type)
        part.config.dtype = weight_type
    tokens = [IMAGE_TOKEN, VIDEO_TOKEN] if image_grid == "anyres" else [IMAGE_TOKEN]
    add_media_tokens(language_model, tokenizer, tokens)
    model = join(language_model, tower, tokenizer, image_grid)
    check_same_logits(model, language_model)
    init_projector(model, seed)
    if aligned is not None:
        copy_projector(model, aligned)
    processor = build_processor(tokenizer, image_processor, model)
    sizes = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (language_model, tower)]
    kind, tile = type(model).__name__, "tile" if image_grid == "anyres" else "picture"
    tokens_a_tile = patches(tower.config)
    logger.info("%s: LM %.1f M, tower %.1f M parameters, %d tokens a %s", kind, *sizes, tokens_a_tile, tile)
    return model.eval(), processor


def add_media_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: list[str]) -> None:
    """Gives the tokenizer placeholders for images and videos, and the model rows for them."""
    own = IMAGE_TOKEN in tokenizer.get_vocab()
    tokenizer.add_special_tokens({"extra_special_tokens": tokens}, replace_extra_special_tokens=False)
    rows = model.get_input_embeddings().num_embeddings
    ids = tokenizer.convert_tokens_to_ids(tokens)
    give_row(model, max(ids))
    logger.info("image token %r has id %d: %s", IMAGE_TOKEN, ids[0], origin_of_row(rows, ids[0], own))


def join(
    language_model: PreTrainedModel, tower: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, image_grid: str
) -> PreTrainedModel:
    """Puts LM and tower into a stock model; its projector has no weights yet.

    Raises:
        UserError: The LM's weights do not fit into a stock model.
    """
    vision_config = tower.config
    body = language_model.base_model
    if language_model.config.tie_word_embeddings and "embed_tokens.weight" not in body.state_dict():
        raise UserError(
            f"a {language_model.config.model_type!r} language model ties its LM head to embeddings that a stock LLaVA "
            "does not find under their name; give another language model"
        )
    settings = {
        "text_config": language_model.config,
        "vision_config": vision_config,
        "image_token_index": tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -1,  # of the tower without its last layer
        "vision_feature_select_strategy": "full" if is_siglip(vision_config) else "default",
        "tie_word_embeddings": language_model.config.tie_word_embeddings,
        "dtype": language_model.dtype,
    }
    with torch.device("meta"):
        if image_grid == "anyres":
            model: PreTrainedModel = LlavaOnevisionForConditionalGeneration(
                LlavaOnevisionConfig(
                    video_token_index=tokenizer.convert_tokens_to_ids(VIDEO_TOKEN),
                    image_grid_pinpoints=pinpoints(vision_config),
                    vision_aspect_ratio=f"anyres_max_{MAX_TILES}",
                    **settings,
                )
            )
        else:
            model = LlavaForConditionalGeneration(LlavaConfig(image_seq_length=patches(vision_config), **settings))
    expected = {name: value.shape for name, value in model.state_dict().items()}
    model.model.vision_tower = tower
    model.model.language_model = body
    model.lm_head = language_model.get_output_embeddings()
    found = {name: value.shape for name, value in model.state_dict().items()}
    if found != expected:
        name = min(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        raise UserError(
            f"a {language_model.config.model_type!r} language model does not fit into a stock "
            f"{type(model).__name__}: {name} has shape {found.get(name)}, expected {expected.get(name)}"
        )
    model.generation_config = language_model.generation_config
    return model


@torch.no_grad()
def check_same_logits(model: PreTrainedModel, language_model: PreTrainedModel) -> None:
    """Checks that the assembled model writes text as its LM does.

    Some LMs scale or cap their logits after the LM head, which a LLaVA does not.

    Raises:
        UserError: It does not.
    """
    ids = torch.linspace(0, model.get_input_embeddings().num_embeddings - 1, 8).long()[None]
    expected = language_model.eval()(ids).logits
    if not torch.allclose(model.eval()(ids).logits, expected, atol=1e-5 * float(expected.abs().max())):
        raise UserError(
            f"a {language_model.config.model_type!r} language model computes its logits in a way of its own, which "
            f"a stock {type(model).__name__} does not; give another language model"
        )


def pinpoints(vision_config: PreTrainedConfig) -> list[list[int]]:
    """Sizes [height, width] that `anyres` scales a picture to: 1x1 to 6x6 tiles."""
    side = vision_config.image_size
    return [[side * rows, side * columns] for rows in GRID_SIDES for columns in GRID_SIDES]
