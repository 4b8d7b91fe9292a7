"""What decoding costs: autoregression, the reference's procedure and full diffusion against our engine.

All decode the same prompts with the same weights by the same kernels, in turn, in one process:

    AR          transformers' `generate` with a KV cache; the base itself
    reference   DiffusionVL's own loop: one prompt after another, the LM head on every token, a commit of its own behind
                each block (so S + 1 forwards), also behind the last
    full        full diffusion: prompt and answer are one block and run whole in every step, without a cache
    ours        `generate`: rows together, fused commit, the LM head on masked tokens

A trained model and its base answer questions of easy-VQA, so that dynamic remasking and the quality beside each speed
are real. A random model of SmolLM2's shape writes answers of fixed lengths, with the static schedule only.

    python benchmarks/decode.py --base assets/easy-vqa-base --model outputs/quickstart/model \\
        --json benchmarks/results/decode.json --chart assets/decode.svg
"""

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from decode_baselines import CLOCKS, Answers, Inputs, clock, cut, decode_fully, decode_like_the_reference, set_clock
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging

from diffusionvl import DiffusionVLConfig, DiffusionVLForConditionalGeneration
from diffusionvl.checkpoint import load_model, load_processor
from diffusionvl.quickstart import easy_vqa
from diffusionvl.quickstart.evaluate import answer, encode

STATIC, DYNAMIC = "low_confidence_static", "low_confidence_dynamic"


class Batch(NamedTuple):
    """Prompts together, padded on the left, and each alone."""

    together: Inputs
    alone: list[Inputs]


@dataclass
class Measured:
    """One contender on one task, summed over its batches."""

    task: str
    contender: str
    batch: int
    quality: float | None = None
    tokens: int = 0
    forwards: float = 0.0
    seconds: float = 0.0
    first_block_seconds: float = 0.0
    peak_mib: float = 0.0
    ids: list[list[int]] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        """Of all rows together."""
        return self.tokens / self.seconds


class FirstTokens(BaseStreamer):
    """Notes when the first tokens behind the prompt come."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """Takes the time; the prompt is the first to come."""
        self.times.append(clock())

    def end(self) -> None:
        """Does nothing."""


def decode_by_generate(model: PreTrainedModel, batch: Batch, ends: list[int], **settings: Any) -> Answers:
    """By the `generate` of an AR model or of ours."""
    diffusion = isinstance(model, DiffusionVLForConditionalGeneration)
    if not diffusion:
        settings = {"do_sample": False, "use_cache": True, **settings}
    inputs, streamer = batch.together, FirstTokens()
    start = clock()
    output = model.generate(
        **inputs, eos_token_id=ends or None, streamer=streamer, return_dict_in_generate=True, **settings
    )
    seconds = clock() - start
    tokens = [cut(row, ends) for row in output.sequences[:, inputs["input_ids"].shape[1] :].tolist()]
    # An AR model's prefill gives the first token, so its forwards are its tokens.
    forwards = float(output.forwards.sum()) if diffusion else float(sum(map(len, tokens)))
    return Answers(tokens, forwards, seconds, streamer.times[1] - start)


def peak_memory(run: Callable[[], Answers]) -> tuple[Answers, float]:
    """The answers of a decoding and the most memory that the process had meanwhile, in MiB."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return run(), torch.cuda.max_memory_allocated() / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # Linux: start the peak anew
    answers = run()
    status = Path("/proc/self/status").read_text()
    return answers, int(status.split("VmHWM:")[1].split()[0]) / 1024


def compare(
    task: str,
    contenders: dict[str, Callable[[Batch], Answers]],
    batches: list[Batch],
    judge: Callable[[list[Measured]], None],
    repeats: int,
    warm_up: bool,
) -> list[Measured]:
    """Lets contenders decode the same batches in turn.

    Args:
        task: Its name.
        contenders: By name.
        batches: Prompts.
        judge: Writes the quality of each.
        repeats: How often each batch is decoded; its time is the median.
        warm_up: Whether to decode the first batch once more, before.
    """
    size = len(batches[0].alone)
    results = [Measured(task, name, size) for name in contenders]
    for number, batch in enumerate(batches):
        for result, decode in zip(results, contenders.values(), strict=True):
            if warm_up and number == 0:
                decode(batch)
            runs = [peak_memory(partial(decode, batch)) for _ in range(repeats)]
            result.seconds += statistics.median(answers.seconds for answers, _ in runs)
            result.first_block_seconds += statistics.median(answers.first for answers, _ in runs) / len(batches)
            result.peak_mib = max(result.peak_mib, *(peak for _, peak in runs))
            answers = runs[0][0]
            result.tokens += sum(map(len, answers.tokens))
            result.forwards += answers.forwards
            result.ids += answers.tokens
    judge(results)
    for result in results:
        quality = "" if result.quality is None else f"  quality {result.quality:.3f}"
        print(
            f"{result.task:16s} {result.contender:21s} batch {result.batch:2d}  "
            f"{result.tokens_per_second:8.1f} tokens/s  {result.forwards / result.tokens:6.3f} forwards/token  first "
            f"{1e3 * result.first_block_seconds:8.1f} ms  "
            f"peak {result.peak_mib:6.0f} MiB{quality}",
            flush=True,
        )
    return results


def trained_task(arguments: argparse.Namespace, batch: int) -> list[Measured]:
    """Long questions of easy-VQA's test split; quality is exact match."""
    base, model = load_model(arguments.base).eval(), load_model(arguments.model).eval()
    processor = load_processor(arguments.model)
    records = easy_vqa.test_records("long", arguments.questions)
    batches = []
    for begin in range(0, len(records), batch):
        chosen = records[begin : begin + batch]
        batches.append(Batch(dict(encode(processor, chosen)), [dict(encode(processor, [one])) for one in chosen]))
    own: dict[str, Any] = {"max_new_tokens": 64, "ends": model.generation_config.eos_token_ids}
    dynamic = {"remasking": DYNAMIC, "confidence_threshold": arguments.confidence_threshold}
    contenders = {
        "AR": lambda batch: decode_by_generate(base, batch, **own),
        "full": lambda batch: decode_fully(model, batch.together, **{**own, "ends": []}, measured=64),
        "reference, static": lambda batch: decode_like_the_reference(model, batch.alone, **own),
        "reference, dynamic": lambda batch: decode_like_the_reference(model, batch.alone, **own, **dynamic),
        "ours, separate commit": lambda batch: decode_by_generate(model, batch, **own, fused_commit=False),
        "ours, static": lambda batch: decode_by_generate(model, batch, **own),
        "ours, dynamic": lambda batch: decode_by_generate(model, batch, **own, **dynamic),
    }

    def judge(results: list[Measured]) -> None:
        for result in results:
            texts = processor.tokenizer.batch_decode(result.ids, skip_special_tokens=True)
            result.quality = statistics.mean(
                text.strip() == answer(one) for text, one in zip(texts, records, strict=True)
            )

    return compare("easy-VQA, long", contenders, batches, judge, arguments.repeats, warm_up=True)


def build_random(block_size: int) -> DiffusionVLForConditionalGeneration:
    """A random model of SmolLM2-135M's shape."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    base = LlamaForCausalLM(config)
    return DiffusionVLForConditionalGeneration(DiffusionVLConfig(config, block_size, mask_token_id=49151), base).eval()


def random_task(arguments: argparse.Namespace, batch: int, tokens: int) -> list[Measured]:
    """Answers of a fixed length by random weights; quality is the share of tokens that agree with the reference's."""
    model = build_random(arguments.block_size)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 49151, (batch, arguments.prompt_tokens), generator=generator)
    rows = [{"input_ids": row[None], "attention_mask": torch.ones_like(row)[None]} for row in ids]
    together = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    own: dict[str, Any] = {"max_new_tokens": tokens, "ends": []}
    contenders = {
        "AR": lambda batch: decode_by_generate(model.base, batch, **own),
        "full": lambda batch: decode_fully(model, batch.together, measured=4, **own),
        "reference, static": lambda batch: decode_like_the_reference(model, batch.alone, **own),
        "ours, separate commit": lambda batch: decode_by_generate(model, batch, **own, fused_commit=False),
        "ours, static": lambda batch: decode_by_generate(model, batch, **own),
    }

    def judge(results: list[Measured]) -> None:
        expected = next(result for result in results if result.contender.startswith("reference"))
        for result in results:
            if result.contender.startswith("ours"):
                pairs = [
                    pair for rows in zip(result.ids, expected.ids, strict=True) for pair in zip(*rows, strict=True)
                ]
                result.quality = statistics.mean(one == other for one, other in pairs)

    batches = [Batch(together, rows)]
    return compare(f"135M, {tokens} tokens", contenders, batches, judge, arguments.repeats_random, warm_up=False)


def draw(results: list[Measured], path: Path) -> None:
    """Bars of tokens/s, a panel for each task and batch size."""
    from matplotlib import pyplot

    panels = sorted({(one.task, one.batch) for one in results})
    tasks = sorted({task for task, _ in panels})
    sizes = sorted({batch for _, batch in panels})
    figure, axes = pyplot.subplots(
        len(tasks), len(sizes), figsize=(4 * len(sizes), 2.4 * len(tasks)), squeeze=False, layout="constrained"
    )
    for task, row in zip(tasks, axes, strict=True):
        for batch, axis in zip(sizes, row, strict=True):
            bars = [one for one in results if (one.task, one.batch) == (task, batch)][::-1]
            colors = ["#1f9e89" if one.contender.startswith("ours") else "#9aa5b1" for one in bars]
            drawn = axis.barh([one.contender for one in bars], [one.tokens_per_second for one in bars], color=colors)
            axis.bar_label(drawn, fmt="{:,.0f}", padding=3, fontsize=8)
            axis.set_title(f"{task}, batch {batch}", fontsize=9)
            axis.margins(x=0.2)
            axis.tick_params(labelsize=8)
            axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("tokens per second", fontsize=9)
    figure.savefig(path)


def summary(results: list[Measured]) -> list[dict[str, Any]]:
    """The numbers, with the ratios to AR and to the reference with the same schedule."""
    rows = []
    for one in results:
        peers = {other.contender: other for other in results if (other.task, other.batch) == (one.task, one.batch)}
        schedule = one.contender.split(", ")[-1]
        reference = peers.get(f"reference, {schedule}")
        row = {name: value for name, value in asdict(one).items() if name != "ids"}
        row["tokens_per_second"] = one.tokens_per_second
        row["forwards_per_token"] = one.forwards / one.tokens
        row["against_ar"] = one.tokens_per_second / peers["AR"].tokens_per_second
        row["against_reference"] = one.tokens_per_second / reference.tokens_per_second if reference else None
        row["same_tokens_as_reference"] = one.ids == reference.ids if reference else None
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", help="AR model that was translated; with --model")
    parser.add_argument("--model", help="its finetuned translation; easy-VQA is left out without")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--questions", type=int, default=48, help="of easy-VQA; a multiple of each batch size")
    parser.add_argument("--confidence-threshold", type=float, default=0.9, help="of dynamic remasking")
    parser.add_argument("--tokens", type=int, nargs="*", default=[64, 256], help="lengths that the random model writes")
    parser.add_argument("--prompt-tokens", type=int, default=128, help="of the random model's prompts")
    parser.add_argument("--block-size", type=int, default=8, help="of the random model")
    parser.add_argument("--clock", choices=[*CLOCKS], default="wall", help="cpu: of all threads, whatever else runs")
    parser.add_argument("--repeats", type=int, default=3, help="of easy-VQA")
    parser.add_argument("--repeats-random", type=int, default=1, help="of the random model")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--chart", type=Path, help="draw them here")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    set_clock(arguments.clock)
    load = os.getloadavg()[0]
    results: list[Measured] = []
    with torch.no_grad():
        for batch in arguments.batches:
            if arguments.model:
                results += trained_task(arguments, batch)
            for tokens in arguments.tokens:
                results += random_task(arguments, batch, tokens)
    if arguments.json:
        machine = {
            "date": date.today().isoformat(),
            "processor": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "torch": torch.__version__,
            "clock": arguments.clock,
            "load_before": load,
        }
        arguments.json.write_text(json.dumps({**machine, "rows": summary(results)}, indent=1) + "\n", encoding="utf-8")
    if arguments.chart:
        draw(results, arguments.chart)


if __name__ == "__main__":
    main()
