"""What is published with a checkpoint: configuration, model, masks and decoding. Needs torch and transformers."""

from transformers import AutoConfig, AutoModelForImageTextToText

from .configuration_diffusionvl import DiffusionVLConfig
from .generation_configuration_diffusionvl import DiffusionVLGenerationConfig
from .generation_output_diffusionvl import DenoisingStep, DiffusionVLGenerationOutput
from .modeling_diffusionvl import DiffusionVLForConditionalGeneration, head_on

AutoConfig.register("diffusionvl", DiffusionVLConfig, exist_ok=True)
AutoModelForImageTextToText.register(DiffusionVLConfig, DiffusionVLForConditionalGeneration, exist_ok=True)

__all__ = [
    "DenoisingStep",
    "DiffusionVLConfig",
    "DiffusionVLForConditionalGeneration",
    "DiffusionVLGenerationConfig",
    "DiffusionVLGenerationOutput",
    "head_on",
]
