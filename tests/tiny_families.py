"""A tiny model of every family with random weights, its tokenizer and its processor, all built here.

To add a family: write its builder, list it in `FAMILIES`, and give it a row in `docs/models.md`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin, Qwen2Config, Qwen2ForCausalLM
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from diffusionvl.checkpoints.text_processor import TextProcessor
from diffusionvl.modeling.processing_diffusionvl import without_video

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


def build_tokenizer(
    template: str, image: str = "<image>", eos: str = "<|im_end|>", **special: str
) -> PreTrainedTokenizerFast:
    """A byte-level BPE with ChatML's tokens, or Gemma's where its end of sequence is `<eos>`.

    Args:
        template: Chat template; `IMAGE` stands for an image.
        image: What the template writes for an image.
        eos: The end of sequence.
        **special: Tokens by the names that a processor knows them by.
    """
    turn = {"start_of_turn": "<|im_start|>", "end_of_turn": "<|im_end|>"}
    if eos == "<eos>":
        turn = {"start_of_turn": "<start_of_turn>", "end_of_turn": "<end_of_turn>"}
        template = template.replace("<|im_start|>", "<start_of_turn>").replace("<|im_end|>", "<end_of_turn>")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([WORDS, "system\nuser\nassistant\n"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=eos,
        pad_token="<|endoftext|>",
        extra_special_tokens={**turn, "image_token": "<image>", **special},
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
    """Sizes of a tower that cuts a picture of 16 x 16 into 4 patches."""
    return {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
        "initializer_range": 0.2,
        **changes,
    }


def build_text_model(name: str, eos: str = "<|im_end|>", **changes) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A text model of transformers by the name of its classes, such as `Llama`."""
    tokenizer = build_tokenizer(TEXT_TEMPLATE, eos=eos)
    config_class = getattr(transformers, f"{name}ForCausalLM").config_class
    config = config_class(**text_config(tokenizer, **changes))
    return getattr(transformers, f"{name}ForCausalLM")(config), TextProcessor(tokenizer)


def build_llava(tower: str, language: str = "Llama", **text) -> tuple[PreTrainedModel, ProcessorMixin]:
    """LLaVA over a CLIP tower, whose class token is left out, or a SigLIP tower, which has none."""
    tokenizer = build_tokenizer(IMAGE_TEMPLATE)
    size = {"height": 16, "width": 16}
    if tower == "clip":
        vision, strategy, extra = transformers.CLIPVisionConfig(**vision_config()), "default", 1
        image_processor = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=size)
    else:
        vision, strategy, extra = transformers.SiglipVisionConfig(**vision_config(vision_use_head=False)), "full", 0
        image_processor = SiglipImageProcessorPil(size=size)
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=getattr(transformers, f"{language}Config")(**text_config(tokenizer, **text)),
        image_token_id=tokenizer.image_token_id,
        vision_feature_select_strategy=strategy,
        vision_feature_layer=-1,
    )
    processor = transformers.LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=extra,
        chat_template=tokenizer.chat_template,
    )
    return transformers.LlavaForConditionalGeneration(config), processor


def build_llava_onevision() -> tuple[PreTrainedModel, ProcessorMixin]:
    """LLaVA-OneVision: a picture is cut into one to four tiles, by its shape."""
    tokenizer = build_tokenizer(IMAGE_TEMPLATE, video_token="<video>")
    grid = [[16, 16], [16, 32], [32, 16], [32, 32]]
    config = transformers.LlavaOnevisionConfig(
        vision_config=transformers.SiglipVisionConfig(**vision_config(vision_use_head=False)),
        text_config=transformers.Qwen2Config(**text_config(tokenizer)),
        image_token_index=tokenizer.image_token_id,
        video_token_index=tokenizer.video_token_id,
        image_grid_pinpoints=grid,
    )
    processor = without_video(transformers.LlavaOnevisionProcessor)(
        LlavaOnevisionImageProcessorPil(size={"height": 16, "width": 16}, image_grid_pinpoints=grid),
        tokenizer,
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=tokenizer.chat_template,
    )
    return transformers.LlavaOnevisionForConditionalGeneration(config), processor


def build_qwen(name: str, vision: dict, **text) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A family of Qwen-VL by the name of its classes: pictures of any shape, positions of three axes."""
    tokens = {"vision_start_token": "<|vision_start|>", "vision_end_token": "<|vision_end|>"}
    tokenizer = build_tokenizer(
        IMAGE_TEMPLATE, "<|vision_start|><image><|vision_end|>", video_token="<video>", **tokens
    )
    model_class = getattr(transformers, f"{name}ForConditionalGeneration")
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1]}
    config = model_class.config_class(
        text_config=text_config(tokenizer, rope_parameters=rope, head_dim=8, **text),
        vision_config={"depth": 2, "num_heads": 2, "patch_size": 8, "initializer_range": 0.2, **vision},
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        vision_start_token_id=tokenizer.vision_start_token_id,
        vision_end_token_id=tokenizer.vision_end_token_id,
    )
    processor_class = getattr(transformers, f"{name.removesuffix('Moe')}Processor")
    image_processor = Qwen2VLImageProcessorPil(
        patch_size=8, merge_size=2, size={"shortest_edge": 16 * 16, "longest_edge": 32 * 32}
    )
    processor = without_video(processor_class)(image_processor, tokenizer, chat_template=tokenizer.chat_template)
    return model_class(config), processor


def build_internvl(language: str = "Qwen2", **text) -> tuple[PreTrainedModel, ProcessorMixin]:
    """InternVL: a picture is cut into tiles, and each becomes four tokens between two of its own."""
    tokens = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<image>"}
    tokenizer = build_tokenizer(IMAGE_TEMPLATE, video_token="<video>", **tokens)
    config = transformers.InternVLConfig(
        vision_config=transformers.InternVLVisionConfig(**vision_config(patch_size=4)),
        text_config=getattr(transformers, f"{language}Config")(**text_config(tokenizer, **text)),
        image_token_id=tokenizer.image_token_id,
        image_seq_length=4,
    )
    image_processor = GotOcr2ImageProcessorPil(
        size={"height": 16, "width": 16}, crop_to_patches=True, min_patches=1, max_patches=3
    )
    processor = without_video(transformers.InternVLProcessor)(
        image_processor, tokenizer, image_seq_length=4, chat_template=tokenizer.chat_template
    )
    return transformers.InternVLForConditionalGeneration(config), processor


def build_idefics(name: str, **images) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Idefics3 or SmolVLM: pictures padded to one shape, their tiles in a batch of their own."""
    tokens = {"fake_image_token": "<fake_token_around_image>", "global_image_token": "<global-img>"}
    end = {"end_of_utterance_token": "<end_of_utterance>"}
    tokenizer = build_tokenizer(IMAGE_TEMPLATE, **tokens, **end)
    model_class = getattr(transformers, f"{name}ForConditionalGeneration")
    config = model_class.config_class(
        vision_config=vision_config(patch_size=4),
        text_config=transformers.LlamaConfig(**text_config(tokenizer)),
        image_token_id=tokenizer.image_token_id,
    )
    image_processor = Idefics3ImageProcessorPil(
        size={"longest_edge": 32}, max_image_size={"longest_edge": 16}, **images
    )
    video = {"video_processor": None} if name == "SmolVLM" else {}
    processor = without_video(getattr(transformers, f"{name}Processor"))(
        image_processor, tokenizer, image_seq_len=4, chat_template=tokenizer.chat_template, **video
    )
    return model_class(config), processor


def build_gemma3() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Gemma 3: the tokens of a picture see one another; most layers have a sliding window."""
    tokens = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer = build_tokenizer(IMAGE_TEMPLATE, "<start_of_image>", "<eos>", **tokens)
    text = text_config(tokenizer, head_dim=8, sliding_window=6, sliding_window_pattern=2)
    config = transformers.Gemma3Config(
        vision_config=transformers.SiglipVisionConfig(**vision_config(patch_size=4, vision_use_head=False)),
        text_config=transformers.Gemma3TextConfig(**text),
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
    )
    processor = transformers.Gemma3Processor(
        Gemma3ImageProcessorPil(size={"height": 16, "width": 16}),
        tokenizer,
        chat_template=tokenizer.chat_template,
        image_seq_length=4,
    )
    model = transformers.Gemma3ForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight)  # zeros, before training
    return model, processor


class Family(NamedTuple):
    """How a family is built, and what its models read."""

    build: Callable[[], tuple[PreTrainedModel, ProcessorMixin]]
    images: bool = False


QWEN3_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0],
}
MIXTURE = {
    "moe_intermediate_size": 24,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "output_router_logits": True,  # asks for a balancing loss, which reads the mask as one of padding
    "router_aux_loss_coef": 0.0,
}
SINKS = {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 6}
FAMILIES = {
    "Llama": Family(lambda: build_text_model("Llama")),
    "Qwen2": Family(lambda: build_text_model("Qwen2")),
    "Qwen2: sliding window": Family(
        lambda: build_text_model("Qwen2", use_sliding_window=True, sliding_window=6, max_window_layers=1)
    ),
    "Qwen3": Family(lambda: build_text_model("Qwen3", head_dim=8)),
    "Mistral": Family(lambda: build_text_model("Mistral", sliding_window=6)),
    "Gemma 2": Family(
        lambda: build_text_model("Gemma2", "<eos>", head_dim=8, sliding_window=6, attn_logit_softcapping=0.5)
    ),
    "Gemma 3 text": Family(
        lambda: build_text_model("Gemma3", "<eos>", head_dim=8, sliding_window=6, sliding_window_pattern=2)
    ),
    "Phi-3": Family(lambda: build_text_model("Phi3", sliding_window=6)),
    "OLMo 2": Family(lambda: build_text_model("Olmo2")),
    "SmolLM3": Family(lambda: build_text_model("SmolLM3", no_rope_layer_interval=2)),
    "SmolLM3: sliding window": Family(
        lambda: build_text_model("SmolLM3", no_rope_layer_interval=2, use_sliding_window=True, sliding_window=6)
    ),
    "Qwen2-VL": Family(lambda: build_qwen("Qwen2VL", {"embed_dim": 32, "hidden_size": 32}), images=True),
    "Qwen2.5-VL": Family(
        lambda: build_qwen(
            "Qwen2_5_VL",
            {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 32, "fullatt_block_indexes": [1]},
        ),
        images=True,
    ),
    "Qwen3-VL": Family(lambda: build_qwen("Qwen3VL", QWEN3_VISION), images=True),
    "Qwen3-VL-MoE": Family(
        lambda: build_qwen("Qwen3VLMoe", QWEN3_VISION, **MIXTURE),
        images=True,
    ),
    "LLaVA": Family(lambda: build_llava("clip"), images=True),
    "LLaVA: SigLIP": Family(lambda: build_llava("siglip"), images=True),
    "LLaVA: Gemma 2": Family(
        lambda: build_llava("siglip", "Gemma2", head_dim=8, sliding_window=6, attn_logit_softcapping=0.5), images=True
    ),
    "LLaVA-OneVision": Family(build_llava_onevision, images=True),
    "InternVL": Family(build_internvl, images=True),
    "InternVL: gpt-oss": Family(lambda: build_internvl("GptOss", **SINKS), images=True),
    "Idefics3": Family(lambda: build_idefics("Idefics3"), images=True),
    "SmolVLM": Family(lambda: build_idefics("SmolVLM", do_image_splitting=False), images=True),
    "Gemma 3": Family(build_gemma3, images=True),
}


def save_base(name: str, folder: str) -> None:
    """Saves a family's tiny AR base as the stock checkpoint that it is."""
    torch.manual_seed(0)
    model, processor = FAMILIES[name].build()
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def save_text_only(folder):
    """Saves a language model without eyes, and without a tokenizer."""
    config = Qwen2Config(
        vocab_size=32,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
