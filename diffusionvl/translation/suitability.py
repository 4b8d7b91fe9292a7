"""Which AR bases can be translated, and why the others cannot.

A base has to compute what its mask and its positions say, and nothing else: no state that runs along the row, no
second stack that reads the prompt, no distances of its own. What a config or a class shows is reported here, before the
weights are loaded; `trial.py` proves the rest.
"""

import inspect

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    PreTrainedConfig,
)

from ..modeling.configuration_diffusionvl import DiffusionVLConfig
from ..modeling.errors import UserError
from ..modeling.families import PREFIX_FAMILIES, cache_input, has_state, layer_windows

NEEDED_INPUTS = ("attention_mask", "position_ids")


def check_config(config: PreTrainedConfig, base: str) -> None:
    """Refuses a base that cannot work, by its config and its class.

    Args:
        config: The base's config.
        base: Its name, for the message.

    Raises:
        UserError: Naming the reason.
    """
    reason = _reason(config)
    if reason is not None:
        raise UserError(f"{base}: model type {config.model_type!r} cannot be translated: {reason}")
    try:
        layer_windows(config)
    except ValueError as error:
        raise UserError(f"{base}: cannot be translated: {error}") from error


def _reason(config: PreTrainedConfig) -> str | None:
    """Why a config's model cannot be translated, or None."""
    text_config = config.get_text_config(decoder=True)
    if isinstance(config, DiffusionVLConfig):
        return "it is a block-diffusion checkpoint already; give the AR model it came from"
    if config.is_encoder_decoder or text_config.is_encoder_decoder:
        return "it is an encoder-decoder, whose prompt is not in the row that is cut into blocks"
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING:
        return "it is of a family that fills in tokens which it sees on both sides, and does not go on with a text"
    mappings = (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING)
    quantization = config.to_dict().get("quantization_config")
    if quantization is not None:
        return f"its weights are quantised ({quantization.get('quant_method')}); give the model they are of"
    classes = [mapping[type(part)] for mapping in mappings for part in (config, text_config) if type(part) in mapping]
    if not classes:
        return "transformers has no causal language model and no image-text-to-text model of this type"
    if any(has_state(model_class, text_config) for model_class in classes):
        return "it keeps a recurrent state (Mamba, linear attention), which no attention mask rules"
    if text_config.to_dict().get("use_bidirectional_attention"):
        return "its images, or all its tokens, see one another in both directions in some of the layers"
    if config.model_type in PREFIX_FAMILIES:
        return "it reads a whole prompt in both directions, pictures and question alike"
    if not classes[0].can_generate():
        return "it does not write text"
    inputs = inspect.signature(classes[0].forward).parameters
    if "cross_attention_mask" in inputs or "cross_attention_states" in inputs:
        return (
            "it reads its images, or a finer stream of bytes, by cross-attention, which no block-diffusion mask rules"
        )
    missing = [name for name in (*NEEDED_INPUTS, cache_input(classes[0])) if name not in inputs]
    if missing:
        return f"its forward takes no {missing[0]}, so what a token sees cannot be set"
    return None
