"""Translates an autoregressive checkpoint into a block-diffusion one, without training."""

import logging

import torch
from transformers import PreTrainedModel, ProcessorMixin

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.text_processor import TextProcessor
from ..checkpoints.vocabulary import give_row, origin_of_row
from ..data.chat_template import check_template, end_of_turn, response_header_ids, with_opening
from ..modeling.configuration_diffusionvl import DiffusionVLConfig
from ..modeling.errors import UserError
from ..modeling.families import placeholder_ids
from ..modeling.modeling_diffusionvl import DiffusionVLForConditionalGeneration
from .suitability import check_config
from .trial import check_images, check_model

MASK_TOKEN = "<|mask|>"
logger = logging.getLogger(__name__)


def translate(
    base: str,
    block_size: int = 8,
    position_mode: str = "native",
    block_origin: str = "response",
    clean_attention: str = "causal",
    dtype: str | torch.dtype = "auto",
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    chat_template: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[DiffusionVLForConditionalGeneration, ProcessorMixin]:
    """Turns an AR model into a block-diffusion one: same weights, another mask, one more token.

    Args:
        base: AR checkpoint, a folder or a hub id.
        block_size: D, tokens that are denoised together.
        position_mode: `native` or `sequential` (see `DiffusionVLConfig`).
        block_origin: `response` or `absolute` (see `DiffusionVLConfig`).
        clean_attention: `causal`, with which the translation also stays an AR model, or `block`, the paper's (see
            `DiffusionVLConfig`).
        dtype: Type of the weights; the checkpoint's own by default.
        min_pixels: A smaller picture is scaled up to this many pixels (Qwen-VL families); the processor's by default.
        max_pixels: A larger one is scaled down to this many.
        chat_template: Jinja template of conversations; the checkpoint's own by default.
        trust_remote_code: Whether to run the base's own code where its model is not in transformers.

    Returns:
        The model and its processor with the mask token; `save_checkpoint` saves both into one folder.

    Raises:
        UserError: There is no such checkpoint, it cannot be translated, or a setting does not fit it.
    """
    checkpoint = Checkpoint(base, trust_remote_code)
    check_config(checkpoint.config, base)
    processor = checkpoint.processor
    set_pixels(processor, min_pixels, max_pixels)
    set_chat_template(processor, chat_template, base)
    header_ids = _header_ids(processor, base, block_origin)
    model = checkpoint.model(dtype)
    diffusion_config = DiffusionVLConfig(
        model.config,
        block_size=block_size,
        mask_token_id=add_mask_token(model, processor),
        position_mode=position_mode,  # type: ignore[arg-type]
        block_origin=block_origin,  # type: ignore[arg-type]
        clean_attention=clean_attention,  # type: ignore[arg-type]
        response_header_ids=header_ids,
        base_model_name_or_path=base,
        eos_token_id=end_of_turn(processor).token_id,
        pad_token_id=processor.tokenizer.pad_token_id,
        dtype=model.dtype,
    )
    translated = DiffusionVLForConditionalGeneration(diffusion_config, model).eval()
    check_model(translated, base)
    if checkpoint.reads_images:
        check_images(translated, processor, base)
    translated.generation_config.update(remasking="low_confidence_dynamic", confidence_threshold=0.9)
    translated.generation_config.eos_token_id = _eos_token_ids(model, processor)
    return translated, processor


def _header_ids(processor: ProcessorMixin, base: str, block_origin: str) -> list[int]:
    """The ids in front of a response.

    Raises:
        UserError: Nothing does, and blocks are to start there.
    """
    found = response_header_ids(processor)
    if block_origin == "response" and not found:
        raise UserError(
            f"{base}: the chat template writes nothing in front of a response, so its blocks cannot start there; "
            "use block_origin='absolute'"
        )
    return found


def set_pixels(processor: ProcessorMixin, least: int | None, most: int | None) -> None:
    """Sets the pixels that a picture is scaled to, in training and decoding alike: they decide its number of tokens.

    Raises:
        UserError: The processor does not count pixels, or the least is more than the most.
    """
    if least is None and most is None:
        return
    size = {} if isinstance(processor, TextProcessor) else dict(processor.image_processor.size)
    if size.keys() != {"shortest_edge", "longest_edge"}:
        raise UserError(
            f"min_pixels and max_pixels are settings of the Qwen-VL families; {type(processor).__name__} scales "
            "pictures in another way, which its preprocessor_config.json says"
        )
    least = size["shortest_edge"] if least is None else least
    most = size["longest_edge"] if most is None else most
    if not 0 < least <= most:
        raise UserError(f"min_pixels must be positive and at most max_pixels, got {least} and {most}")
    processor.image_processor.size = {"shortest_edge": least, "longest_edge": most}


def set_chat_template(processor: ProcessorMixin, template: str | None, base: str) -> None:
    """Sets the chat template, unless it is None.

    Raises:
        UserError: There is none, given or of the base's own, several without a default one, or it loses what is said.
    """
    if template is not None:
        text_only = isinstance(processor, TextProcessor)
        processor.chat_template = template if text_only else with_opening(template, processor.tokenizer)
    own = processor.chat_template
    if own is None or (isinstance(own, dict) and "default" not in own):
        found = "no chat template" if own is None else f"the chat templates {sorted(own)} and no default one"
        raise UserError(f"{base}: has {found}; give one, a Jinja template, as chat_template")
    try:
        check_template(processor)
    except ValueError as error:
        raise UserError(f"{base}: {error}; another one, a Jinja template, can be given as chat_template") from error


def _eos_token_ids(model: PreTrainedModel, processor: ProcessorMixin) -> list[int]:
    """Every id that ends an answer: of a turn, by the chat template, and all that the AR model has."""
    eos = model.generation_config.eos_token_id
    ends = [end_of_turn(processor).token_id, processor.tokenizer.eos_token_id]
    ends += eos if isinstance(eos, list) else [eos]
    return sorted({token_id for token_id in ends if token_id is not None})


def add_mask_token(model: PreTrainedModel, processor: ProcessorMixin) -> int:
    """Gives the tokenizer a mask token: its own if it has one, else a new one on an unused row of the embeddings.

    Embedding matrices are usually longer than the vocabulary. The new token takes the first row after it, whose
    weights are kept as they are; only if there is none, one row is added, the mean of the others. The log says which.

    Returns:
        The mask token's id.

    Raises:
        UserError: The mask token would mean something else, too.
    """
    tokenizer, rows = processor.tokenizer, model.get_input_embeddings().num_embeddings
    own = tokenizer.mask_token_id is not None
    taken = [*placeholder_ids(model.config), tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id]
    if tokenizer.mask_token_id in taken and tokenizer.mask_token_id is not None:
        raise UserError(
            f"the tokenizer's mask token {tokenizer.mask_token!r} has another meaning already; unset its mask_token"
        )
    if tokenizer.mask_token_id is None:
        taken += tokenizer.get_vocab().values()
        tokenizer.add_special_tokens({"mask_token": MASK_TOKEN})
        if tokenizer.mask_token_id in taken:
            raise UserError(
                f"the id {tokenizer.mask_token_id} that a new mask token {MASK_TOKEN!r} would have is that of another "
                "token, by the tokenizer or by config.json; set the tokenizer's mask_token to a token of its own"
            )
    give_row(model, tokenizer.mask_token_id)
    origin = origin_of_row(rows, tokenizer.mask_token_id, own)
    logger.info("mask token %r has id %d: %s", tokenizer.mask_token, tokenizer.mask_token_id, origin)
    return tokenizer.mask_token_id
