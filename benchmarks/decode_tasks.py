"""The tasks of `decode.py` and their contenders: a trained model on easy-VQA, and random weights of a known shape."""

import argparse
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.decode_baselines import Answers, Inputs, cut, decode_fully, decode_like_the_reference
from benchmarks.decode_report import MODES, Measured
from diffusionvl import DiffusionVLConfig, DiffusionVLForConditionalGeneration
from diffusionvl.checkpoints.loading import find_device, load_model, load_processor
from diffusionvl.evaluation.decoding import answer_batch, on_model
from studies.quickstart import easy_vqa
from studies.quickstart.contest import answer, prompts

LONGEST = 64  # tokens of an answer to a long question of easy-VQA, which has 30 to 48
# SmolLM2-135M, and the language model of Qwen2.5-VL-3B.
SHAPES = {
    "135M": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    "3B": {
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
    },
}


class Batch(NamedTuple):
    """Prompts together, padded on the left, and each alone."""

    together: Inputs
    alone: list[Inputs]


class Contender(NamedTuple):
    """A way to decode.

    Attributes:
        name: Name in the table.
        base: The AR model that runs underneath.
        decode: Answers a batch.
        one_by_one: Whether it answers one prompt after another, whatever the batch size.
    """

    name: str
    base: PreTrainedModel
    decode: Callable[[Batch], Answers]
    one_by_one: bool = False


class Task(NamedTuple):
    """Prompts and those that answer them.

    Attributes:
        name: Name in the table.
        contenders: Contenders in the order of the table.
        batches: Returns the prompts in batches of a size.
        judge: Returns the quality of a contender's answers, in the order of the prompts, or None where it has none.
        repeats: How often each batch is decoded; its time is the median.
    """

    name: str
    contenders: list[Contender]
    batches: Callable[[int], list[Batch]]
    judge: Callable[[Measured, list[Measured]], float | None]
    repeats: int


def decode_by_generate(model: PreTrainedModel, batch: Batch, ends: Sequence[int], **settings: Any) -> Answers:
    """Decodes by the `generate` of an AR model or of ours."""
    found = answer_batch(model, batch.together, eos_token_id=list(ends) or None, **settings)
    return Answers([found.row(row).tokens for row in range(len(found.lengths))], found.cost)


def contenders_of(
    base: PreTrainedModel, model: DiffusionVLForConditionalGeneration, own: dict[str, Any], full_steps: int
) -> list[Contender]:
    """Returns the contenders that every task has; `own` are the settings that all share."""
    # It writes all its tokens whatever they are; one that it was not trained for may end with the first of them.
    full = {**own, "steps": min(full_steps, own["max_new_tokens"]), "ends": ()}
    ours = [Contender("ours, static", model.base, partial(decode_by_generate, model, decoding="denoise", **own))]
    if model.config.clean_attention == "causal":
        ours += [
            Contender(f"ours, {mode}", model.base, partial(decode_by_generate, model, decoding=mode, **own))
            for mode in MODES
        ]
    else:  # the reference's clean tokens see their whole block
        slow = partial(decode_like_the_reference, **own)
        ours.insert(0, Contender("reference, static", model.base, lambda batch: slow(model, batch.alone), True))
    return [
        Contender("AR", base, lambda batch: decode_by_generate(base, batch, **own)),
        Contender("full", model.base, lambda batch: decode_fully(model, batch.together, **full)),
        *ours,
    ]


def trained_task(arguments: argparse.Namespace) -> Task:
    """Builds the task of long questions from easy-VQA's test split; quality is exact match."""
    device = find_device(arguments.device)
    base, model = (
        load_model(name, getattr(torch, arguments.dtype)).eval().to(device)
        for name in (arguments.base, arguments.model)
    )
    processor = load_processor(arguments.model)
    records = easy_vqa.test_records("long", arguments.questions)
    own: dict[str, Any] = {"max_new_tokens": LONGEST, "ends": tuple(model.generation_config.eos_token_ids)}
    dynamic = {**own, "remasking": "low_confidence_dynamic", "confidence_threshold": arguments.confidence_threshold}

    def batches(size: int) -> list[Batch]:
        prepared = partial(on_model, model=model)
        chosen = [records[begin : begin + size] for begin in range(0, len(records), size)]
        return [
            Batch(prepared(prompts(processor, some)), [prepared(prompts(processor, [one])) for one in some])
            for some in chosen
        ]

    def judge(result: Measured, results: list[Measured]) -> float | None:
        if result.contender == "full" and arguments.full_steps < LONGEST:
            return None
        ids = [cut(row, own["ends"]) for row in result.ids]
        texts = processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return statistics.mean(text.strip() == answer(one) for text, one in zip(texts, records, strict=True))

    name = f"{arguments.name or Path(arguments.model).name}, easy-VQA long"
    contenders = [
        *contenders_of(base, model, own, arguments.full_steps),
        Contender(
            "ours, separate commit",
            model.base,
            lambda batch: decode_by_generate(model, batch, **own, fused_commit=False),
        ),
        Contender(
            "reference, dynamic",
            model.base,
            lambda batch: decode_like_the_reference(model, batch.alone, **dynamic),
            True,
        ),
        Contender("ours, dynamic", model.base, lambda batch: decode_by_generate(model, batch, **dynamic)),
    ]
    if model.config.draft_adapter is not None:  # it does not denoise
        contenders = [one for one in contenders if one.name == "AR" or one.name.endswith(MODES)]
    return Task(name, contenders, batches, judge, arguments.repeats)


def build_random(shape: str, block_size: int, clean_attention: str = "block") -> DiffusionVLForConditionalGeneration:
    """Builds a random model of a known shape, whose last id is the mask token."""
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES[shape], tie_word_embeddings=True, bos_token_id=None, eos_token_id=None)
    ids = {"mask_token_id": config.vocab_size - 1}
    own = DiffusionVLConfig(config, block_size, clean_attention=clean_attention, **ids)
    return DiffusionVLForConditionalGeneration(own, LlamaForCausalLM(config)).eval()


def random_task(arguments: argparse.Namespace, tokens: int) -> Task:
    """Builds the task of random weights and answers of a fixed length; quality is agreement with the reference."""
    model = build_random(arguments.shape, arguments.block_size, "causal" if arguments.causal else "block")
    model = model.to(find_device(arguments.device), getattr(torch, arguments.dtype))
    generator = torch.Generator().manual_seed(1)
    shape = (max(arguments.batches), arguments.prompt_tokens)
    rows_of_ids = torch.randint(1, model.config.mask_token_id, shape, generator=generator).to(model.device)
    own: dict[str, Any] = {"max_new_tokens": tokens, "ends": ()}

    def batches(size: int) -> list[Batch]:
        rows = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows_of_ids[:size].split(1)]
        together = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        return [Batch(together, rows)]

    def judge(result: Measured, results: list[Measured]) -> float | None:
        if not result.contender.startswith("ours") or result.contender.endswith(MODES):
            return None
        expected = next((one for one in results if one.contender.startswith("reference")), None)
        if expected is None:
            return None
        pairs = [pair for rows in zip(result.ids, expected.ids, strict=False) for pair in zip(*rows, strict=True)]
        return statistics.mean(one == other for one, other in pairs)

    contenders = contenders_of(model.base, model, own, arguments.full_steps)
    return Task(f"{arguments.shape} random, {tokens} tokens", contenders, batches, judge, arguments.repeats_random)
