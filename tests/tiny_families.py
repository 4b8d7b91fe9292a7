"""A tiny model of every family with random weights, its tokenizer and its processor, all built here.

To add a family: write its builder, list it in `FAMILIES`, and give it a row in `docs/models.md`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin

from diffusionvl.text_processor import TextProcessor

WORDS = "what is the color of the shape? is there a circle, a triangle or a square in the image? red teal blue yes no"
TEXT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
IMAGE_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- for part in message['content'] -%}
{{- IMAGE if part['type'] == 'image' else part['text'] -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def build_tokenizer(template: str, image: str = "<image>", **special: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE with ChatML's tokens; `special` are tokens by the names that a processor knows them by."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([WORDS, "system\nuser\nassistant\n"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={"start_token": "<|im_start|>", "image_token": "<image>", **special},
        chat_template=template.replace("IMAGE", repr(image)),
        clean_up_tokenization_spaces=False,
    )


def text_config(tokenizer: PreTrainedTokenizerFast, **changes) -> dict:
    """Sizes that every language model takes, and the tokenizer's special ids."""
    return {
        "vocab_size": len(tokenizer) + 3,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **changes,
    }


def vision_config(**changes) -> dict:
    """Sizes of a tower that cuts a picture of 32 x 32 into 4 patches."""
    return {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
        "initializer_range": 0.2,
        **changes,
    }


def build_text_model(name: str, **changes) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A text model of transformers by the name of its classes, such as `Llama`."""
    tokenizer = build_tokenizer(TEXT_TEMPLATE)
    config_class = getattr(transformers, f"{name}ForCausalLM").config_class
    config = config_class(**text_config(tokenizer, **changes))
    return getattr(transformers, f"{name}ForCausalLM")(config), TextProcessor(tokenizer)


def build_llava(tower: str) -> tuple[PreTrainedModel, ProcessorMixin]:
    """LLaVA over a CLIP tower, whose class token is left out, or a SigLIP tower, which has none."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        SiglipVisionConfig,
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    tokenizer = build_tokenizer(IMAGE_TEMPLATE)
    size = {"height": 32, "width": 32}
    if tower == "clip":
        vision, strategy, extra = CLIPVisionConfig(**vision_config()), "default", 1
        image_processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size)
    else:
        vision, strategy, extra = SiglipVisionConfig(**vision_config(vision_use_head=False)), "full", 0
        image_processor = SiglipImageProcessorPil(size=size)
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**text_config(tokenizer)),
        image_token_id=tokenizer.image_token_id,
        vision_feature_select_strategy=strategy,
        vision_feature_layer=-1,
    )
    processor = LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=extra,
        chat_template=tokenizer.chat_template,
    )
    return LlavaForConditionalGeneration(config), processor


class Family(NamedTuple):
    """How a family is built, and what its models read."""

    build: Callable[[], tuple[PreTrainedModel, ProcessorMixin]]
    images: bool = False


FAMILIES = {
    "Llama": Family(lambda: build_text_model("Llama")),
    "Qwen2": Family(lambda: build_text_model("Qwen2")),
    "Qwen2 (sliding window)": Family(
        lambda: build_text_model("Qwen2", use_sliding_window=True, sliding_window=6, max_window_layers=1)
    ),
    "Qwen3": Family(lambda: build_text_model("Qwen3", head_dim=8)),
    "Mistral": Family(lambda: build_text_model("Mistral", sliding_window=6)),
    "Gemma 2": Family(lambda: build_text_model("Gemma2", head_dim=8, sliding_window=6, attn_logit_softcapping=0.5)),
    "Gemma 3 (text)": Family(
        lambda: build_text_model("Gemma3", head_dim=8, sliding_window=6, sliding_window_pattern=2)
    ),
    "Phi-3": Family(lambda: build_text_model("Phi3", sliding_window=6)),
    "OLMo 2": Family(lambda: build_text_model("Olmo2")),
    "SmolLM3": Family(lambda: build_text_model("SmolLM3", no_rope_layer_interval=2)),
    "SmolLM3 (sliding window)": Family(
        lambda: build_text_model("SmolLM3", no_rope_layer_interval=2, use_sliding_window=True, sliding_window=6)
    ),
    "LLaVA": Family(lambda: build_llava("clip"), images=True),
    "LLaVA (SigLIP)": Family(lambda: build_llava("siglip"), images=True),
}


def save_base(name: str, folder: str) -> None:
    """Saves a family's tiny AR base as the stock checkpoint that it is."""
    torch.manual_seed(0)
    model, processor = FAMILIES[name].build()
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
