"""Tiny vision towers with random weights, as a language model is assembled with them."""

from tiny_families import vision_config
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipConfig, SiglipModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

SIDE, PATCH = 32, 8  # 4 x 4 patches
VISION = vision_config(image_size=SIDE, patch_size=PATCH, num_hidden_layers=3)


def save_siglip(folder):
    """With its text side, as on the hub."""
    text = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1}
    SiglipModel(SiglipConfig(text_config=text, vision_config=VISION)).save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)


def save_clip(folder):
    """A tower alone; its image processor cuts the middle out of a picture."""
    CLIPVisionModel(CLIPVisionConfig(**VISION)).save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=size).save_pretrained(folder)
