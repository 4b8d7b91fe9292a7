"""`python -m studies.quickstart.base --out DIR`: writes the untrained base model of the quickstart.

It is a tiny stock Qwen2.5-VL with a tokenizer and a processor of its own, in the hub's format.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from diffusionvl.commands.command_line import Parser
from diffusionvl.modeling.processing_diffusionvl import without_video
from studies.quickstart.easy_vqa import corpus

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# Qwen2-VL's template without its default system prompt: at this size every token counts.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part['type'] == 'text' -%}
{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""
PATCH_SIZE, MERGE_SIZE = 8, 2  # a 64x64 picture = 8x8 patches = 16 image tokens
IMAGE_PIXELS = 64 * 64


def build_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE in which every word of `texts` is one token.

    Args:
        texts: The training text; any other text is still encoded, in bytes.

    Returns:
        A tokenizer with Qwen's special tokens and chat template; pad is <|endoftext|>, eos is <|im_end|>.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=100_000,  # never reached: merging ends once every word is one token
        min_frequency=0,
        special_tokens=[],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, "system\nuser\nassistant\n"], trainer)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))  # after the words, as in Qwen's own vocabulary
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=[t for t in SPECIAL_TOKENS if t not in ("<|endoftext|>", "<|im_end|>")],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )


def build_config(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLConfig:
    """The tiny architecture: 4 vision blocks of width 96, 3 language layers of width 128."""
    token = tokenizer.convert_tokens_to_ids
    text = {
        # Like Qwen's, the matrix is rounded up and its last rows belong to no token.
        "vocab_size": (len(tokenizer) + 8 + 63) // 64 * 64,
        "hidden_size": 128,
        "intermediate_size": 320,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        # Qwen's 0.02 suits widths in the thousands; this is near 1 / sqrt(width) at the widths used here.
        "initializer_range": 0.08,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6]},
        "bos_token_id": None,
        "eos_token_id": token("<|im_end|>"),
        "pad_token_id": token("<|endoftext|>"),
    }
    vision = {
        "depth": 4,
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_heads": 4,
        "patch_size": PATCH_SIZE,
        "spatial_merge_size": MERGE_SIZE,
        "temporal_patch_size": 2,
        "out_hidden_size": text["hidden_size"],
        "fullatt_block_indexes": [0, 1, 2, 3],
        "initializer_range": 0.08,
        "rope_parameters": {"rope_type": "axial", "rope_theta": 100.0},
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def build_base(seed: int = 0) -> tuple[Qwen2_5_VLForConditionalGeneration, ProcessorMixin]:
    """Builds the untrained model and its processor.

    Args:
        seed: Seed of the random weights.

    Returns:
        (model in fp32, processor); a 64x64 picture becomes 16 image tokens.
    """
    tokenizer = build_tokenizer(corpus())
    image_processor = Qwen2VLImageProcessorPil(
        patch_size=PATCH_SIZE,
        merge_size=MERGE_SIZE,
        size={"shortest_edge": IMAGE_PIXELS, "longest_edge": IMAGE_PIXELS},
        # Centred on easy-VQA's light backgrounds, so that empty patches are near zero.
        image_mean=[0.94, 0.94, 0.94],
        image_std=[0.25, 0.25, 0.25],
    )
    processor = without_video(Qwen2_5_VLProcessor)(image_processor, tokenizer, chat_template=CHAT_TEMPLATE)
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(build_config(tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model, processor


def main(argv: list[str] | None = None) -> int:
    """Writes the untrained checkpoint and its processor.

    Returns:
        0, or 2 for an input that cannot be used.
    """
    description = "Write the untrained tiny Qwen2.5-VL and its processor."
    parser = Parser(prog="python -m studies.quickstart.base", description=description)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random weights")
    return parser.run(_write, argv)


def _write(args: argparse.Namespace) -> None:
    model, processor = build_base(args.seed)
    model.save_pretrained(args.out)
    processor.save_pretrained(args.out)
    print(f"{args.out}: {model.num_parameters():,} parameters, {len(processor.tokenizer)} tokens")


if __name__ == "__main__":
    sys.exit(main())
